"""Bytes to pixels and back: decoding behind limits, encoding with metadata, sheets of pictures.

May import config and storage. Decoding and encoding stay free of torch.
"""
