"""The side that computes: a replica with one base, whose batcher steps many edits together.

`tasks` holds what the HTTP side asks for, as values. Nothing here knows of HTTP or imports
`http`.
"""
