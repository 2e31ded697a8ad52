"""A table of methods, such as the paper's I and II, by one command: train what its registry lacks,
measure all of it at equal effect, and lay it out (docs/evaluation.md, "A table of methods").

`run` is the way in. `sliders` trains, `figures` measures on what evaluate has left, `outputs` and
`table.html.j2` show it. May import every room; nothing but the command line imports it.
"""
