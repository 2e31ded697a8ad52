"""The recipe of `tiny-photo`: SDXL's architecture at 128 px, trained from nothing on photographs.

May import what `tiny` may, but never Ray, so that it runs with torch and diffusers alone.
"""
