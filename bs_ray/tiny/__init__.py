"""Small trained bases that ship inside the package, their worlds of faces, and their recipes.

`recipe`, `loop` and `build` train them from nothing; `photo/` is the recipe for photographs. May
import config, storage, images, models, judges, datasets and sliders.
"""
