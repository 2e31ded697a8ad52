"""What a job file may say: a class for each kind of job, with its settings, defaults and checks.

May import no other room, no torch and no Ray: a command answers a misspelt setting at once.
"""

from bs_ray.config.base import JobError, Prompts, check_name
from bs_ray.config.edit import EditJob
from bs_ray.config.editor import PRESETS, EditorSettings, QualityGate
from bs_ray.config.evaluate import EvalJob
from bs_ray.config.judges import JudgeSettings
from bs_ray.config.load import (
    Job,
    as_begun_before,
    editor_settings,
    flat_settings,
    job_hash,
    job_of,
    load,
    shipped_job,
    words_at_strength,
)
from bs_ray.config.overrides import apply_override
from bs_ray.config.serve import Autoscaling, ServeJob
from bs_ray.config.table import TableJob
from bs_ray.config.train import (
    CachedTeacher,
    EarlyStop,
    LiveTeacher,
    Losses,
    Pairs,
    Tracking,
    TrainJob,
)
from bs_ray.config.words import Words, WordsAtStrength

__all__ = [
    "PRESETS",
    "Autoscaling",
    "CachedTeacher",
    "EarlyStop",
    "EditJob",
    "EditorSettings",
    "EvalJob",
    "Job",
    "JobError",
    "JudgeSettings",
    "LiveTeacher",
    "Losses",
    "Pairs",
    "Prompts",
    "QualityGate",
    "ServeJob",
    "TableJob",
    "Tracking",
    "TrainJob",
    "Words",
    "WordsAtStrength",
    "apply_override",
    "as_begun_before",
    "check_name",
    "editor_settings",
    "flat_settings",
    "job_hash",
    "job_of",
    "load",
    "shipped_job",
    "words_at_strength",
]
