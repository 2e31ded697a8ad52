"""Serving: sliders and photos over HTTP, on Ray Serve.

`schema` is what goes over the wire, `ingress` the HTTP side, `batcher` and `replica` the side that
computes, and `app` puts the two together and starts them.
"""
