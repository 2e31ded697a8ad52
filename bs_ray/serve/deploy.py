"""Starting and stopping: a job becomes a Ray Serve application.

`serve run` and KubeRay's RayService import `build`; the command line calls `serve_job`.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from rich.console import Console

from bs_ray.config import JobError, ServeJob, load
from bs_ray.editing.locate import Sight
from bs_ray.images.faces import need_centerface
from bs_ray.models import absolute_base, identify_base
from bs_ray.models.base_identity import BaseIdentity
from bs_ray.ray_session import ray_session
from bs_ray.serve.engine.tasks import Busy, Event, Result, Task
from bs_ray.serve.http.catalogue import Catalogue, Listed
from bs_ray.serve.http.fetch import HostRule
from bs_ray.serve.http.ingress import create_app
from bs_ray.serve.http.keys import KeyRing
from bs_ray.serve.metrics import IngressMetrics, exposition
from bs_ray.serve.tracing import setup
from bs_ray.sliders.registry import Registry

_INGRESS_CPUS = 0.1
_INGRESS_REQUESTS = 64
"""Beyond this many requests at once, which an ingress decodes and encodes, another one starts."""
_SPARE_REQUESTS = 256
"""Room in the ingress for health checks and error replies, beside the edits that replicas hold."""
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 1.0, 10.0
"""With these a dead replica is noticed and replaced within seconds."""
_STOP_S = 10.0
"""For everything but the edits in flight when Serve stops."""


def build(args: Mapping[str, str] | ServeJob) -> Application:
    """The application of a job, or of the job file in `{"job": "path/to/serve.yaml"}`.

    Host and port belong to the Serve instance, so only `serve_job` uses the job's. Raises JobError
    and SliderError.
    """
    job = args if isinstance(args, ServeJob) else _load(args)
    catalogue = _catalogue(job)
    listed = catalogue.load()
    if not listed:
        raise JobError(f"sliders: got none in {job.registry} that fit the base; train one first")
    first = next(iter(listed.values())).card
    if job.editor.prompt is None:
        # Replicas that start later, perhaps with other sliders, must use the same prompt.
        editor = job.editor.model_copy(update={"prompt": first.target})
        job = job.model_copy(update={"editor": editor})
    rank = job.max_rank or max(1, *(slider.card.rank for slider in listed.values()))
    places = [slider.place for slider in listed.values()]
    # Replicas on all nodes load the same revision; callers know the base by the job's own name.
    loaded = job.model_copy(update={"base": absolute_base(job.base)})
    editor = _editor_deployment(job).bind(loaded, places, rank)
    return _ingress_deployment(job).bind(job, catalogue.base, listed, editor)


def serve_job(job: ServeJob, *, console: Console | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises what `running` does."""
    console = console or Console()
    with running(job, console=console) as url:
        if not job.keys and job.host not in ("127.0.0.1", "localhost", "::1"):
            console.print(f"[yellow]No keys:[/] everybody who reaches {job.host} may call.")
        console.print(_curl_example(url, job), highlight=False, soft_wrap=True)
        # Service managers send SIGTERM to stop, on which Ray's own handler would abort.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("Stopping: edits that have begun are finished first.")


@contextmanager
def running(job: ServeJob, *, console: Console | None = None) -> Iterator[str]:
    """Serve within the `with`: yields the base URL once the server takes edits.

    Before anything is started, raises BaseNotFound for a missing base, SliderError for a slider
    that is unknown or of another base, and JobError for a port that is taken.
    """
    listed = check(job)
    if console:
        for slider in listed.values():
            if slider.card.elsewhere:
                console.print(f"{job.name}: {slider.card.elsewhere}", soft_wrap=True)
        console.print(f"Starting {job.name}: base {job.base}, sliders {', '.join(job.sliders)}")
    with ray_session():
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _refuse_a_second_serve()
        serve.start(http_options={"host": job.host, "port": job.port})
        try:
            serve.run(build(job), name=job.name, route_prefix="/")
            yield f"http://{'127.0.0.1' if job.host == '0.0.0.0' else job.host}:{job.port}"
        finally:
            _stop_serve(job.drain_s + _STOP_S)


def _stop_serve(timeout_s: float) -> None:
    """Stop Serve and its applications, whose edits have `timeout_s` to end.

    Its controller ends by killing itself. `serve.shutdown` alone has Ray report that on the
    console, as a call that failed and will be tried again; a call without retries reports nothing.
    """
    with suppress(RayActorError, GetTimeoutError, ValueError):  # ended; too slow; never there
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        stopped = controller.graceful_shutdown.options(max_task_retries=0).remote()
        ray.get(stopped, timeout=timeout_s)
    serve.shutdown()


def check(job: ServeJob) -> dict[str, Listed]:
    """Check what can be checked in seconds, without loading the base; the sliders by name.

    Raises ValueError (JobError, SliderError, KeysError, FacesUnavailable), which says what to do.
    """
    listed = _catalogue(job).load()
    KeyRing.load(job.keys)
    for host in job.image_hosts:
        HostRule.parse(host)
    if job.editor.region == "face":
        need_centerface()
    try:
        socket.create_server((job.host, job.port)).close()
    except OSError as error:
        raise JobError(
            f"port: got {job.host}:{job.port}, which cannot be listened on ({error.strerror}); "
            "expected a free port: add port=8001 to the command"
        ) from None
    return listed


def _refuse_a_second_serve() -> None:
    """Raise JobError where Serve runs already, since stopping it would stop all its
    applications."""
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


def _catalogue(job: ServeJob) -> Catalogue:
    base = identify_base(job.base)
    registry, others = Registry(job.registry), job.other_bases
    return Catalogue(registry, job.sliders, base, job.refresh_s, others=others)


# --- the deployments --------------------------------------------------------------------------
def _replica_room(job: ServeJob) -> int:
    """How many requests one replica takes. Its batcher refuses by itself, and then says when to
    call again."""
    return job.max_batch_rows + job.max_queued_requests + 1


def _editor_deployment(job: ServeJob) -> serve.Deployment:
    # Not at the top: with it comes torch, which an ingress does without.
    from bs_ray.serve.engine.replica import EditorReplica

    return serve.deployment(EditorReplica).options(
        name="editor",
        ray_actor_options={"num_cpus": job.cpus_per_replica, "num_gpus": job.gpus_per_replica},
        autoscaling_config=AutoscalingConfig(**job.autoscaling.model_dump()),
        max_ongoing_requests=_replica_room(job),
        max_queued_requests=job.max_queued_requests,
        graceful_shutdown_timeout_s=job.drain_s,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
    )


def _ingress_deployment(job: ServeJob) -> serve.Deployment:
    # Replicas must be full before the ingress is: callers then get the API's own 503 rather than
    # the proxy's, which is plain text.
    room = job.autoscaling.max_replicas * _replica_room(job) + _SPARE_REQUESTS
    return serve.deployment(_Ingress).options(
        name="ingress",
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
        autoscaling_config=AutoscalingConfig(
            min_replicas=1,
            max_replicas=job.autoscaling.max_replicas,
            target_ongoing_requests=_INGRESS_REQUESTS,
        ),
        max_ongoing_requests=room,
        max_queued_requests=room,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        graceful_shutdown_timeout_s=job.drain_s,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
    )


@serve.ingress()
class _Ingress:
    """The HTTP side as a deployment."""

    def __init__(
        self,
        job: ServeJob,
        base: BaseIdentity,
        listed: Mapping[str, Listed],
        editor: DeploymentHandle,
    ):
        setup("bs_ray.ingress")
        # Until the registry answers, the sliders of the deployment are served.
        registry, others = Registry(job.registry), job.other_bases
        catalogue = Catalogue(
            registry, job.sliders, base, job.refresh_s, others=others, listed=listed
        )
        backend = _RemoteReplicas(editor)
        self._app = create_app(job, base.id, catalogue, backend, IngressMetrics())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app


class _RemoteReplicas:
    """The editor deployment as a Backend."""

    def __init__(self, editor: DeploymentHandle):
        self._editor = editor
        self._streaming = editor.options(stream=True)

    async def result(self, task: Task) -> Result:
        with _gone_is_busy():
            found: Result = await self._editor.result.remote(task)
        return found

    async def events(self, task: Task) -> AsyncIterator[Event]:
        with _gone_is_busy():
            async for event in self._streaming.events.remote(task):
                yield event

    async def sight(self) -> Sight:
        with _gone_is_busy():
            found: Sight = await self._editor.sight.remote()
        return found

    async def ready(self) -> None:
        with _gone_is_busy():
            await self._editor.ready.remote()

    async def metrics(self) -> str:
        return await exposition()


@contextmanager
def _gone_is_busy() -> Iterator[None]:
    """Raise Busy for a task whose replica has died or has no room; it may safely be sent again."""
    try:
        yield
    except (BackPressureError, DeploymentUnavailableError, RayActorError) as error:
        raise Busy("no replica has room") from error


def _curl_example(url: str, job: ServeJob) -> str:
    name = job.sliders[0].partition("@")[0]
    return (
        f"Listening on {url} (playground: {url}/, API: {url}/docs). Try:\n"
        f"  curl -s {url}/v1/images/edits -F image=@photo.jpg \\\n"
        f"""    -F 'sliders=[{{"name": "{name}", "scale": 1.5}}]' \\\n"""
        "    | python -c 'import base64, json, sys; sys.stdout.buffer.write("
        """base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))' > edited.png\n"""
        "Ctrl-C stops it."
    )
