"""Starting and stopping: a job becomes a Ray Serve application.

`build` is what `serve run` and KubeRay's RayService import; `serve_job` is the command line's.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from rich.console import Console

from bs_ray.config import JobError, ServeJob, load
from bs_ray.editing.editor import Edit
from bs_ray.models import identify_base
from bs_ray.raysession import ray_session
from bs_ray.serve.ingress import RETRY_AFTER_S, Busy, create_app
from bs_ray.serve.replica import EditorReplica, Reply
from bs_ray.sliders.artifact import Card, Slider
from bs_ray.sliders.registry import Registry

_SHUTDOWN_S = 30.0
"""How long a replica that is told to stop may finish the edits it has."""
_INGRESS_CPUS = 0.1
# Room in the ingress beyond the edits that the replicas can hold: health checks, error replies.
_SPARE_REQUESTS = 32


def build(args: Mapping[str, str] | ServeJob) -> Application:
    """The application of a job, given as such or as `{"job": "path/to/serve.yaml"}`.

    Slider versions are fixed here, once: replicas that start later load the same ones. Host and
    port belong to the Serve instance, so those of the job count for `serve_job` only.
    Raises JobError, SliderError.
    """
    job = args if isinstance(args, ServeJob) else _load(args)
    sliders = _resolve(job)
    job = job.model_copy(update={"sliders": _pinned(job, sliders)})
    editor = _editor_deployment(job).bind(job)
    return _ingress_deployment(job).bind(job, [slider.card for slider in sliders], editor)


def serve_job(job: ServeJob, *, console: Console | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises what `running` does."""
    console = console or Console()
    with running(job, console=console) as url:
        console.print(_curl_example(url, job), highlight=False, soft_wrap=True)
        # What stops services sends SIGTERM, which Ray's own handler answers by aborting.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("Stopping: edits that have begun are finished first.")


@contextmanager
def running(job: ServeJob, *, console: Console | None = None) -> Iterator[str]:
    """Serve inside the `with`: yields the base URL once edits can be asked for.

    Raises BaseNotFound, SliderError or JobError, before anything is started, for a base that is
    not there, a slider that is unknown or of another base, or a port that is taken.
    """
    check(job)
    if console:
        console.print(f"Starting {job.name}: base {job.base}, sliders {', '.join(job.sliders)}")
    with ray_session():
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _refuse_a_second_serve()
        serve.start(http_options={"host": job.host, "port": job.port})
        try:
            serve.run(build(job), name=job.name, route_prefix="/")
            yield f"http://{'127.0.0.1' if job.host == '0.0.0.0' else job.host}:{job.port}"
        finally:
            serve.shutdown()


def check(job: ServeJob) -> None:
    """Find what can be found wrong in seconds, without loading the base."""
    own = identify_base(job.base)
    for slider in _resolve(job):
        slider.check_base(own)
    try:
        socket.create_server((job.host, job.port)).close()
    except OSError as error:
        raise JobError(
            f"port: got {job.host}:{job.port}, which cannot be listened on ({error.strerror}); "
            "expected a free port: add port=8001 to the command"
        ) from None


def _refuse_a_second_serve() -> None:
    """Host and port are Serve's own settings, and stopping stops all its applications."""
    if present := list(serve.status().applications):
        raise JobError(
            f"Ray: got a cluster that serves {', '.join(present)} already; expected one without "
            "Serve applications. Add this job with `serve deploy` (see cluster/rayservice.yaml)"
        )


# --- the job ----------------------------------------------------------------------------------
def _load(args: Mapping[str, str]) -> ServeJob:
    if set(args) != {"job"}:
        raise JobError(f"args: got {sorted(args)}; expected job: the path of a serve job file")
    job = load(args["job"], kind="serve")
    assert isinstance(job, ServeJob)
    return job


def _resolve(job: ServeJob) -> list[Slider]:
    """The job's sliders, in order. Raises SliderError, or JobError for one listed twice."""
    registry = Registry(job.registry)
    sliders = [registry.resolve(reference) for reference in job.sliders]
    twice = [name for name, n in Counter(s.card.name for s in sliders).items() if n > 1]
    if twice:
        raise JobError(f"sliders: got {', '.join(twice)} more than once; expected each name once")
    return sliders


def _pinned(job: ServeJob, sliders: Sequence[Slider]) -> list[str]:
    """References that mean the same tomorrow: name@version, or a file's path as it is."""
    return [
        given if given.endswith(".safetensors") else slider.reference
        for given, slider in zip(job.sliders, sliders, strict=True)
    ]


# --- the deployments --------------------------------------------------------------------------
def _replica_room(job: ServeJob) -> int:
    """Edits that one replica takes: the batch it computes, and the next one waiting for it."""
    return 2 * job.max_batch_rows


def _editor_deployment(job: ServeJob) -> serve.Deployment:
    return serve.deployment(EditorReplica).options(
        name="editor",
        ray_actor_options={"num_cpus": job.cpus_per_replica, "num_gpus": job.gpus_per_replica},
        autoscaling_config=AutoscalingConfig(**job.autoscaling.model_dump()),
        max_ongoing_requests=_replica_room(job),
        max_queued_requests=job.max_queued_requests,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
    )


def _ingress_deployment(job: ServeJob) -> serve.Deployment:
    # The editor's queue must fill before the ingress does: then it is our own 503 that says so,
    # and not the proxy's, which is plain text.
    replicas_hold = job.autoscaling.max_replicas * _replica_room(job)
    room = replicas_hold + job.max_queued_requests + _SPARE_REQUESTS
    return serve.deployment(_Ingress).options(
        name="ingress",
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
        max_ongoing_requests=room,
        max_queued_requests=room,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
    )


@serve.ingress()
class _Ingress:
    """The HTTP side as a deployment."""

    def __init__(self, job: ServeJob, cards: Sequence[Card], editor: DeploymentHandle):
        self._app = create_app(job, cards, _RemoteEngine(editor))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app


class _RemoteEngine:
    """The editor deployment as an Engine."""

    def __init__(self, editor: DeploymentHandle):
        self._editor = editor

    async def edit(self, edit: Edit) -> Reply:
        return await _busy_or(self._editor.edit.remote(edit))

    async def ready(self) -> None:
        await _busy_or(self._editor.ready.remote())


async def _busy_or(response):
    try:
        return await response
    except (BackPressureError, DeploymentUnavailableError, RayActorError) as error:
        # An edit is a value: one whose replica died may be asked for again.
        raise Busy from error


def _curl_example(url: str, job: ServeJob) -> str:
    name = job.sliders[0].partition("@")[0]
    return (
        f"Listening on {url} (API: {url}/docs). Try:\n"
        f"  curl -s {url}/v1/images/edits -F image=@photo.jpg \\\n"
        f"""    -F 'sliders=[{{"name": "{name}", "scale": 1.5}}]' \\\n"""
        "    | python -c 'import base64, json, sys; sys.stdout.buffer.write("
        """base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))' > edited.png\n"""
        "Ctrl-C stops it."
    )
