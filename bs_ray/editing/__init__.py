"""Editing: one batch of images, a model, sliders, strengths. Not where they came from."""
