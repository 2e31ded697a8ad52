"""What the student is to predict: the frozen teacher, its stored samples, Concept Sliders'
procedure.

May import the rest of `train`, except `watching` and `planning`.
"""
