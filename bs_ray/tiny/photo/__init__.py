"""The recipe of `tiny-photo`: SDXL's architecture at 128 px, trained from nothing on photographs.

Imports torch, diffusers and transformers, never Ray: it also runs where only those are at hand.
"""
