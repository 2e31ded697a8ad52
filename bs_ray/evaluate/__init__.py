"""Evaluate: what a slider moves, what it should have left alone, and a page that shows both."""
