"""`bs-ray edit`: a prefix of photos becomes a prefix of edited photos, by Ray Data.

pending shards -> fetch, decode (tasks) -> edit (actors) -> encode, write, commit (tasks)

plan.py      the job, checked before any work
shard.py     one shard's photos through the Editor
pipeline.py  the stages on Ray Data
board.py     what a person sees meanwhile: progress, latest.png, Prometheus
run.py       the verb: resume, run, reconcile
report.py    report.html and contact sheets
estimate.py  what a job would cost, before it is run
"""
