"""`bs-ray demo`: everything once, offline, from an empty folder to a report with pictures of people
first.

May import every room; only the command line imports it.
"""

from bs_ray.demo.run import demo

__all__ = ["demo"]
