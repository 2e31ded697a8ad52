"""Editing: one batch of photos, one model, and a mix of sliders for each edit.

`editor` is the way in, `methods/` are the samplers, `run` and `context` are what these share with
the server's batcher, `gate` makes a bad edit weaker, `generate` starts from a prompt. May import
config, storage, images, models, judges and sliders.
"""
