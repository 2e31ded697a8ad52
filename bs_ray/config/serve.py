"""The job file of `bs-ray serve`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from bs_ray.config.base import OtherBases, Settings, check_name
from bs_ray.config.editor import EditorSettings, JobEditor


class Autoscaling(Settings):
    """Ray Serve's replica count."""

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: float = Field(16, gt=0)
    """Requests in flight per replica that the autoscaler aims for."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"got min_replicas {self.min_replicas} > max_replicas {self.max_replicas}; "
                "expected min <= max"
            )
        return self


class ServeJob(Settings):
    """Serve sliders: `bs-ray serve JOB.yaml`."""

    kind: Literal["serve"] = "serve"
    name: str
    base: str = "tiny"
    other_bases: OtherBases = "warn"
    """Whether sliders that `sliders` names may come from another base of the family: `refuse`,
    `warn` (a note with every edit) or `allow`."""
    registry: str = "sliders"
    sliders: list[str] = Field(min_length=1)
    """`name` follows the newest version, `name@version` stays at one, and `*` takes every slider
    that fits the base."""
    words: bool = False
    """Whether requests may bring sliders of words: prompts that are a slider as they are."""
    refresh_s: float = Field(5.0, gt=0)
    """Seconds between looks at the registry for new versions."""
    max_rank: int | None = Field(None, ge=1)
    """Highest LoRA rank that the bank has room for; by default that of the sliders found at the
    start."""
    cached_sliders: int = Field(256, ge=1)
    """Sliders that a replica keeps in memory; the least recently used makes room for others.
    `editor.resident_sliders` says how many of them may act at once."""
    editor: JobEditor = EditorSettings()
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    autoscaling: Autoscaling = Autoscaling()
    max_batch_rows: int = Field(16, ge=1)
    """Most edits in one forward pass."""
    max_queued_requests: int = Field(256, ge=1)
    """Edits that may wait at one replica; further ones are answered 503 at once."""
    deadline_s: float = Field(30.0, gt=0)
    """Seconds that an edit may take from its arrival. One that would be late, or would make another
    one late, is answered 503 at once. A request may ask for less (header X-Request-Timeout)."""
    step_timeout_s: float = Field(60.0, gt=0)
    """A replica whose step takes longer than this many seconds counts as hanging and is
    replaced."""
    drain_s: float = Field(30.0, gt=0)
    """Seconds in which a replica that is being stopped may finish the edits it has."""
    cpus_per_replica: float = Field(1.0, ge=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    max_pixels: int = Field(16_000_000, ge=1)
    max_bytes: int = Field(16 << 20, ge=1)
    decode_s: float = Field(10.0, gt=0)
    """Seconds of CPU that decoding one photo may take."""
    decode_mb: int = Field(1024, ge=256)
    """Memory in MB that decoding one photo may take."""
    max_strength: float = Field(4.0, gt=0)
    """Largest |scale| that a request may ask for."""
    keys: str | None = None
    """File of API keys (`bs-ray keys add`), local or s3://; without one everybody may call."""
    outputs: str | None = None
    """Prefix, local or s3://, for pictures that a request wants as URLs. Nothing here deletes them:
    that is for the bucket's own rules."""
    image_hosts: list[str] = []
    """Hosts that a request may name photos of by URL: `photos.example.com` or `*.example.com`."""
    cors_origins: list[str] = []
    """Web origins whose pages may call the API."""

    _name = field_validator("name")(check_name)
