"""`bs-ray evaluate`: what a slider moves, what it should have left alone, and a page of both.

`run` is the way in. `splits/` are the pictures, `arms` the sliders, `judging` the judges; `sweep`
is what a worker does, `parts` what is kept of it. `grid` turns the table into arrays, `metrics` and
`matched` have the formulas, `figures`, `comparison` and `methods` the figures; `tables`, `plots`,
`strips` and `report` show them. May import every room but the other verbs.
"""
