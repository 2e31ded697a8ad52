"""Frozen networks that look at pictures: a loss to train/, a measure to evaluate/ and the gate.

Pictures are float32 RGB in [-1, 1], [B, 3, H, W]; a judge resizes them to its own size first. May
import config and models.
"""
