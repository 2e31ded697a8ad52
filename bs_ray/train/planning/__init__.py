"""What a training job will take, before it runs: memory, forward passes, the teacher's cache.

May import the rest of `train`.
"""
