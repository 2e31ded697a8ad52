"""Serving: sliders and photos over HTTP, on Ray Serve.

`schema` and `problems` are what goes over the wire, `ingress` and `service` the HTTP side, `engine`
and `replica` the side that computes; `tasks` is what one asks of the other. `app` puts them
together and starts them.
"""
