"""Training: `step` is the paper's method on one page, `loop` says when, and `run` says where.

`batches` and `targets/` are what rows are to predict, `watching/` is what a person sees of a run,
`planning/` is what a job will take. May import every room but editing and the other verbs.
"""
