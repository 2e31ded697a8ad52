"""Benches: a module for each figure of docs/results.md, measured side by side in one run.

May import every room.
"""
