"""`bs-ray demo`: everything once, offline, from an empty folder to a report."""

from bs_ray.demo.run import demo

__all__ = ["demo"]
