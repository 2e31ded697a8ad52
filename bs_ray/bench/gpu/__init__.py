"""One command for a GPU machine: what the full-size base does there, within a given time.

May import train, editing, serve/engine and bench; never Ray nor a client of an object store, so
that it runs wherever torch, diffusers and deepspeed are installed.
"""
