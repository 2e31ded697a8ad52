"""Training: noun by noun on top of `models` and `sliders`. Ray only in run.py, DeepSpeed only in
engines.py; step.py is the paper's method on one page.
"""
