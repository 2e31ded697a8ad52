"""Sliders: low-rank weights with a card, their registry, and the bank that applies many at once.

What a strength means is decided in `card`, `calibration` and `mix`; other tools' files are read and
written in `formats`. May import config, storage and models.
"""
