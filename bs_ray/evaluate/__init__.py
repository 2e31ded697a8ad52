"""`bs-ray evaluate`: what a slider moves, what it should have left alone, and a page of both.

`run` sweeps sliders, `methods` compares edit methods, `metrics` has the formulas, and `worlds/` is
where held-out faces come from. May import every room but the other verbs.
"""
