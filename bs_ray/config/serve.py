"""The job file of `bs-ray serve`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from bs_ray.config.base import Settings, check_name
from bs_ray.config.editor import EditorSettings


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
    registry: str = "sliders"
    sliders: list[str] = Field(min_length=1)
    """`name` is always its newest version, `name@version` that one; `*` all that fit the base."""
    refresh_s: float = Field(5.0, gt=0)
    """How often the registry is looked at for new versions."""
    max_rank: int | None = Field(None, ge=1)
    """Highest LoRA rank that there is room for; that of the sliders at the start by default."""
    cached_sliders: int = Field(256, ge=1)
    """Sliders in a replica's memory; the least recently used makes room. `editor.resident_sliders`
    says how many of them may act at once."""
    editor: EditorSettings = EditorSettings()
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    autoscaling: Autoscaling = Autoscaling()
    max_batch_rows: int = Field(16, ge=1)
    """Most edits in one forward pass."""
    max_queued_requests: int = Field(256, ge=1)
    """Edits that wait at one replica; more are answered 503 at once."""
    deadline_s: float = Field(30.0, gt=0)
    """How long an edit may take from its arrival. One that would be late, or make another one late,
    is answered 503 at once; a request may ask for less (X-Request-Timeout, seconds)."""
    step_timeout_s: float = Field(60.0, gt=0)
    """A replica whose step takes longer hangs, and is replaced."""
    drain_s: float = Field(30.0, gt=0)
    """How long a replica that is told to stop may finish the edits it has."""
    cpus_per_replica: float = Field(1.0, ge=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    max_pixels: int = Field(16_000_000, ge=1)
    max_bytes: int = Field(16 << 20, ge=1)
    decode_s: float = Field(10.0, gt=0)
    """Seconds of CPU that decoding one photo may take."""
    decode_mb: int = Field(1024, ge=256)
    """Memory that it may take."""
    max_strength: float = Field(4.0, gt=0)
    """Largest |scale| that a request may ask for."""
    keys: str | None = None
    """File of API keys (`bs-ray keys add`), local or s3://; without one everybody may ask."""
    outputs: str | None = None
    """Folder or prefix for pictures that are asked for as URLs; its own rules delete them."""
    image_hosts: list[str] = []
    """Hosts that photos may be fetched from by URL, `photos.example.com` or `*.example.com`."""
    cors_origins: list[str] = []
    """Web origins whose pages may call the API."""

    _name = field_validator("name")(check_name)
