"""Benches: ratios measured side by side in one run, medians with spread. A module each."""
