"""`bs-ray serve`: edits and generations over HTTP, on Ray Serve.

`http/` is the side that callers talk to, `engine/` is the side that computes, and `deploy` puts the
two together; metrics and tracing belong to both. May import every room but the other verbs.
"""
