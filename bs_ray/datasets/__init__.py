"""Photos to train on: where they come from, how they are packed, and a run's pool of them.

May import config, storage, images and models.
"""
