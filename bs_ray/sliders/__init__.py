"""Sliders: low-rank weights with a card. Not how they were trained or asked for."""
