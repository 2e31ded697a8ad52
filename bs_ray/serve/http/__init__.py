"""The HTTP side: what goes over the wire, who may ask, and a request's way to the engine and back.

`ingress` has the routes, `schema` and `problems` are the wire, `service` is one request's way,
`catalogue` is which sliders there are. Of `engine` it imports tasks alone.
"""
