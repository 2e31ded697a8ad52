"""The HTTP side: bodies and errors, who may call, and a request's way to the engine and back.

`ingress` has the routes, `schema` the bodies, `problems` the errors, `service` the way of a
request, `catalogue` the sliders that it may name. Of `engine`, `http` imports `tasks` alone.
"""
