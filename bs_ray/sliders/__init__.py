"""Sliders: low-rank weights with a card, their registry, and the bank that applies many at once.

What a strength means is decided in `card`, `calibration` and `mix`; other tools' files are read in
`importing` and written in `exporting`. May import config, storage and models.
"""
