"""What a person sees of a run: previews, curves, the early stop, and the finished calibration.

May import the rest of `train`, except `planning`.
"""
