"""`bs-ray edit`: a prefix of photos becomes a prefix of edited photos, by Ray Data.

    listing -> input_list (pinned)
    pending shards -> fetch (tasks) -> edit (actors) -> write: encode, sink, ledger (tasks)
    verify -> ledger.write_reports -> report

A shard is the unit of work and of commitment. May import config, storage, images, models, judges,
sliders and editing; the modules that a fetching or writing task imports stay free of torch.
"""
