"""Frozen networks that look at pictures: a loss to train/, a measure to evaluate/ and the gate.

`judge` says what all of them have in common, whoever trained them, and `load` finds those that are
at hand. The base's own are also there as functions of tensors (`network` and what stands on it):
pictures are float32 RGB in [-1, 1], [B, 3, H, W]. May import config, images and models.
"""
