"""Metrics from the event to Prometheus, dashboard and alerts; traces to a collector."""

import asyncio
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray import cloudpickle, serve

from bs_ray.serve import tracing
from bs_ray.serve.metrics import STEP_ROWS, IngressMetrics, ReplicaMetrics, exposition, merged
from tests.promptly import promptly

FOLDER = Path(__file__).parents[2] / "cluster" / "observability"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PANELS = {p["title"]: p for p in DASHBOARD["panels"] if p["type"] != "row"}
RULES = [
    r for g in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for r in g["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
MEASURES = {rule["record"]: rule for rule in RULES if "record" in rule}
APP = "observed"
# Workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)"
)


def until(what: str, found: Callable[[], Any], timeout_s: float = 60) -> Any:
    """What `found` returns, once it is true. Ray reports every 10 s."""
    deadline = time.monotonic() + timeout_s
    while not (result := found()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.5)
    return result


class Server(ThreadingHTTPServer):
    """A loopback server that runs inside the `with`."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        super().__init__(("127.0.0.1", 0), handler)
        Thread(target=self.serve_forever, daemon=True).start()

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Quiet(BaseHTTPRequestHandler):
    def answer(self, body: bytes, media_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


# --- known events -----------------------------------------------------------------------------
# Times fall into the buckets 0.175-0.25, 0.25-0.5 and 0.5-1 s.
STEP_S, QUEUE_S, REQUEST_S = 0.2, 0.3, 0.6
STEPS = {2: 10, 4: 30}
# No share lies on an alert's threshold, where rounding would decide: 7.5 % fail, 5 % are refused.
REQUESTS = {("edits", 200): 30, ("edits", 500): 3, ("edits", 503): 2, ("generations", 200): 5}
OUTCOMES = {"done": 20, "failed": 2, "cancelled": 1, "refused": 3}
USES = {"smile@1": 12, "age@2": 6}
LOADS = {"memory": 9, "registry": 3, "failed": 1}
LIMITED = {"alice": 4, "bob": 1}


class Recorder:
    """Stands where the engine and the ingress do: in a Serve replica."""

    def __init__(self) -> None:
        self.engine, self.ingress = ReplicaMetrics(), IngressMetrics()

    def record(self) -> str:
        """Every event above, once. Returns the replica's name."""
        engine, ingress = self.engine, self.ingress
        for rows, times in STEPS.items():
            repeat(times, engine.stepped, rows, STEP_S)
        repeat(8, engine.queued, QUEUE_S)
        for method, events in [
            (engine.finished, OUTCOMES),
            (engine.slider_used, USES),
            (engine.slider_loaded, LOADS),
            (ingress.rate_limited, LIMITED),
        ]:
            for label, times in events.items():
                repeat(times, method, label)
        for (operation, status), times in REQUESTS.items():
            repeat(times, ingress.answered, operation, status, REQUEST_S)
        engine.occupancy(running=3, waiting=2)
        engine.resident(5)
        return serve.get_replica_context().replica_tag


def repeat(times: int, method: Callable[..., None], *args: object) -> None:
    for _ in range(times):
        method(*args)


def expected_samples(times: int) -> dict[tuple[str, str], float]:
    """(name, labels of ours) -> value, after `times` calls of `record`."""
    steps, requests = sum(STEPS.values()), sum(REQUESTS.values())
    counts: dict[tuple[str, str], float] = {
        **{("edits_total", outcome): n for outcome, n in OUTCOMES.items()},
        **{("slider_uses_total", slider): n for slider, n in USES.items()},
        **{("slider_loads_total", origin): n for origin, n in LOADS.items()},
        **{("rate_limited_total", key): n for key, n in LIMITED.items()},
        **{("requests_total", f"{operation} {s}"): n for (operation, s), n in REQUESTS.items()},
        ("request_seconds_count", "edits"): requests - REQUESTS["generations", 200],
        ("request_seconds_bucket", "0.5 edits"): 0,
        ("request_seconds_bucket", "1.0 edits"): requests - REQUESTS["generations", 200],
        ("queue_seconds_count", ""): 8,
        ("step_seconds_count", ""): steps,
        ("step_seconds_bucket", "0.175"): 0,
        ("step_seconds_bucket", "0.25"): steps,
        ("step_rows_count", ""): steps,
        ("step_rows_sum", ""): sum(rows * n for rows, n in STEPS.items()),
        ("step_rows_bucket", "2.5"): STEPS[2],
    }
    gauges = {("running_edits", ""): 3.0, ("waiting_edits", ""): 2.0, ("sliders_resident", ""): 5.0}
    return {key: n * times for key, n in counts.items()} | gauges


OURS = ("from", "key", "le", "operation", "outcome", "slider", "status")


def samples_of(page: str) -> dict[tuple[str, str], float]:
    """The samples of our application, keyed as in `expected_samples`."""
    return {
        (
            sample.name.removeprefix("ray_bs_ray_"),
            " ".join(sample.labels[name] for name in OURS if name in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.labels.get("application") == APP
    }


def scrape() -> str:
    return asyncio.run(exposition())


def wait_for(expected: dict[tuple[str, str], float]) -> None:
    """Until the page says this. What differs at the end is the failure."""
    deadline = time.monotonic() + 45
    while True:
        found = samples_of(scrape())
        wrong = {k: (v, found.get(k)) for k, v in expected.items() if found.get(k) != v}
        if not wrong:
            return
        assert time.monotonic() < deadline, f"(expected, got): {wrong}"
        time.sleep(0.5)


# --- one Ray, one Prometheus ------------------------------------------------------------------
EVERY_S = 2
"""Between scrapes, and between evaluations of rules."""


@dataclass
class World:
    replica: str
    address: str
    """Of Prometheus; empty without one."""
    at: str = ""
    """The time that all queries ask for, once set: a later scrape may come too late."""
    alerts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Those pending then, by name: 5 minutes later nothing would have happened for 5 minutes."""

    def get(self, path: str, **query: str) -> Any:
        reply = httpx.get(f"http://{self.address}/api/v1/{path}", params=query, timeout=10).json()
        assert reply["status"] == "success", (query, reply)
        return reply["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Label values, in order of the labels' names -> value."""
        return {
            " ".join(v for k, v in sorted(found["metric"].items()) if k != "__name__"): float(
                found["value"][1]
            )
            for found in self.get("query", query=expression, time=self.at)["result"]
        }


class Page(Quiet):
    def do_GET(self) -> None:
        self.answer(scrape().encode(), "text/plain; version=0.0.4")


@pytest.fixture(scope="module")
def recorder(ray_cluster: None) -> Iterator[Any]:
    serve.start(proxy_location="Disabled")
    deployment = serve.deployment(Recorder).options(ray_actor_options={"num_cpus": 0.1})
    yield serve.run(deployment.bind(), name=APP, route_prefix=None)
    serve.shutdown()


@pytest.fixture(scope="module")
def world(recorder: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Events recorded, scraped by Prometheus where there is one, and recorded once more."""
    replica = recorder.record.remote().result()
    wait_for(expected_samples(1))
    if not shutil.which("prometheus"):
        recorder.record.remote().result()
        wait_for(expected_samples(2))
        yield World(replica, "")
        return
    with Server(Page) as page:
        folder = tmp_path_factory.mktemp("prometheus")
        process, address = start_prometheus(folder, page.address)
        try:
            world = World(replica, address)
            until("Prometheus", lambda: answers(address))
            for metric in ("ray_bs_ray_requests_total", "ray_serve_deployment_replica_healthy"):
                until(metric, lambda metric=metric: world.query(metric))
            recorder.record.remote().result()
            wait_for(expected_samples(2))
            complete_s = time.time()
            until("scrapes", lambda: scraped(world) > complete_s)
            kept_s = time.time()
            # A rule looks at the data of up to an interval before it runs.
            until("rules", lambda: evaluated(world) > kept_s + EVERY_S)
            world.at = f"{time.time():.3f}"
            pending = world.get("alerts")["alerts"]
            world.alerts = {alert["labels"]["alertname"]: alert for alert in pending}
            yield world
        finally:
            process.kill()
            process.wait()


def start_prometheus(folder: Path, page: str) -> tuple[subprocess.Popen[bytes], str]:
    """One that scrapes our page for our metrics, and this node itself for Ray Serve's."""
    (node,) = [n for n in ray.nodes() if n["Alive"]]
    keep = {"source_labels": ["__name__"], "regex": "ray_serve_.*", "action": "keep"}
    targets = {"bs-ray": page, "ray": f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"}
    jobs: list[dict[str, Any]] = [
        {"job_name": name, "static_configs": [{"targets": [target]}]}
        for name, target in targets.items()
    ]
    jobs[1]["metric_relabel_configs"] = [keep]
    every = {"scrape_interval": f"{EVERY_S}s", "evaluation_interval": f"{EVERY_S}s"}
    rules = [str(FOLDER / "alerts.yaml")]
    config = {"global": every, "rule_files": rules, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", "--log.level=warn"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
    return subprocess.Popen(command, cwd=folder), address


def scraped(world: World) -> float:
    """Since when both pages' data is there to be asked for, s since the epoch."""
    return world.query("min(timestamp(up)) and on () sum(up) == 2").get("", 0)


def evaluated(world: World) -> float:
    """When the last of the groups of rules ran, s since the epoch."""
    groups = world.get("rules")["groups"]
    last = min(datetime.fromisoformat(group["lastEvaluation"][:19]) for group in groups)
    return last.replace(tzinfo=UTC).timestamp()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def prometheus(world: World) -> World:
    if not world.address:
        pytest.skip("needs prometheus (Debian: prometheus)")
    return world


# --- the page ---------------------------------------------------------------------------------
def test_the_page_has_what_was_recorded(world: World) -> None:
    wait_for(expected_samples(2))
    # On a machine with too much to do, a node may be late for one page.
    page = until(
        "a whole page", lambda: "node_up" in (p := scrape()) and "_edits_total{" in p and p
    )
    families = list(text_string_to_metric_families(page))
    names = [family.name for family in families]
    assert len(names) == len(set(names)) and all(n.startswith("ray_bs_ray_") for n in names)
    assert all(family.documentation and family.type != "unknown" for family in families)
    labels = [s.labels for f in families for s in f.samples if s.name.endswith("_running_edits")]
    (mine,) = [found for found in labels if found.get("application") == APP]
    assert mine["replica"] == world.replica and mine["deployment"] == "Recorder"
    assert mine["WorkerId"]  # by which an alert matches two metrics of one process
    (up,) = [family for family in families if family.name == "ray_bs_ray_node_up"]
    assert [sample.value for sample in up.samples] == [1]


@pytest.mark.slow
def test_gauges_stay_while_nothing_happens(ray_cluster: None) -> None:
    """Alerts on an idle or a hung engine need them; Ray alone forgets them after 20 to 30 s."""

    class Idle:
        def __init__(self) -> None:
            self.metrics = ReplicaMetrics()
            self.metrics.resident(77)

    actor = ray.remote(num_cpus=0.1)(Idle).remote()
    shown = "ray_bs_ray_sliders_resident{.*} 77.0"
    until("the gauge", lambda: re.search(shown, scrape()))
    time.sleep(40)
    assert re.search(shown, scrape())
    ray.kill(actor)
    until("the end of a dead replica's gauge", lambda: not re.search(shown, scrape()))


NODE = """\
# HELP ray_bs_ray_edits_total Edits.
# TYPE ray_bs_ray_edits_total counter
ray_bs_ray_edits_total{{outcome="done",slider="a\u2028b\\n",NodeAddress="{node}"}} {value}
# HELP ray_other Not ours.
# TYPE ray_other gauge
ray_other 1.0
"""


def test_pages_of_nodes_become_one() -> None:
    page = merged([NODE.format(node="a", value=1), NODE.format(node="b", value=2), ""])
    assert page.count("# HELP") == page.count("# TYPE") == 1 and "ray_other" not in page
    (family,) = text_string_to_metric_families(page)
    assert [(s.labels["NodeAddress"], s.value) for s in family.samples] == [("a", 1), ("b", 2)]
    assert family.samples[0].labels["slider"] == "a\u2028b\n"


def test_a_node_that_does_not_answer_is_told(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (node,) = ray.nodes()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call, says nothing
        port = silent.getsockname()[1]
        dumb = {"Alive": True, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": port}
        off = {**dumb, "MetricsExportPort": -1}
        gone = {**dumb, "Alive": False}
        monkeypatch.setattr(ray, "nodes", lambda: [dumb, off, gone, node])
        with promptly():
            page = scrape()
    up = [f for f in text_string_to_metric_families(page) if f.name == "ray_bs_ray_node_up"]
    values = {sample.labels["node"]: sample.value for sample in up[0].samples}
    mine = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    assert values == {f"127.0.0.1:{port}": 0, "127.0.0.1:-1": 0, mine: 1}


_ON_THREE_NODES = """
import asyncio, json, sys, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
from bs_ray.serve.metrics import EngineMetrics, exposition

class Engine:
    def work(self, edits):
        self.metrics = EngineMetrics()
        for _ in range(edits):
            self.metrics.finished("done")

ray.init(address=sys.argv[1], log_to_driver=False)
actor = ray.remote(num_cpus=0.5)(Engine)
places = [On(node["NodeID"], soft=False) for node in ray.nodes()]
engines = [actor.options(scheduling_strategy=place).remote() for place in places]
ray.get([engine.work.remote(n) for n, engine in enumerate(engines, 1)])
deadline = time.monotonic() + 45
while (page := asyncio.run(exposition())).count("edits_total{") < 3 and time.monotonic() < deadline:
    time.sleep(0.5)
print(json.dumps(page))
"""


@pytest.mark.slow
@pytest.mark.ray
def test_every_node_is_on_the_page() -> None:
    from tests.chaos.cluster import Nodes

    with Nodes(os.environ) as nodes:
        command = [sys.executable, "-c", _ON_THREE_NODES, nodes.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    page = json.loads(done.stdout.splitlines()[-1])
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert sorted(s.value for s in families["ray_bs_ray_edits"].samples) == [1, 2, 3]
    assert [s.value for s in families["ray_bs_ray_node_up"].samples] == [1, 1, 1]


# --- the dashboard ----------------------------------------------------------------------------
FILL = {str(edge): sum(n for rows, n in STEPS.items() if rows < edge) for edge in STEP_ROWS}
STATUS = {"200": 35.0, "500": 3, "503": 2}
# Panel -> for each of its queries, label values -> value. Rates are known up to their unit of
# time, so of these the ratios are compared.
RATES: dict[str, list[dict[str, float]]] = {
    "Requests": [STATUS],
    "Rate limited": [dict(LIMITED)],
    "Batch fill, distribution": [{**FILL, "+Inf": 40}],
    "Edits": [dict(OUTCOMES)],
    "Top sliders": [dict(USES)],
    "Loads": [dict(LOADS)],
}
VALUES: dict[str, list[dict[str, float]]] = {
    "Latency": [{"": 0.75}, {"": 0.975}, {"": 0.995}],
    "Edits now": [{"": 3}, {"": 2}],
    "Batch fill": [{"": 3.5}],
    "Step time": [{"": 0.2125}, {"": 0.24925}],
    "Queue time": [{"": 0.375}, {"": 0.4975}],
    "Cache hits": [{"": 0.75}],
    "Healthy replicas": [{f"{APP} Recorder": 1}],
    "Replica starts": [{f"{APP} Recorder": 1}],
    "Calls in the replicas": [{f"{APP} Recorder": 0}],
}
MEASURED: dict[str, dict[str, float]] = {
    "bs_ray:error_share:ratio5m": {"": 3 / 40},
    "bs_ray:refused_share:ratio5m": {"": 2 / 40},
    "bs_ray:request_seconds:p99_5m": {"edits": 0.995, "generations": 0.995},
    "bs_ray:queue_seconds:p90_5m": {"": 0.475},
    "bs_ray:waiting_edits": {"": 2},
    "bs_ray:slider_miss_share:ratio10m": {"": 0.25},
}


def expressions(title: str) -> list[str]:
    """The panel's queries, over all that Prometheus has seen."""
    found = [target["expr"] for target in PANELS[title]["targets"]]
    return [re.sub(r"\$__(rate_interval|range)", "5m", expression) for expression in found]


def assert_has(found: dict[str, float], expected: dict[str, float]) -> None:
    """An older test of the session may have left more, which does not count any more."""
    got = {labels: found.get(labels) for labels in expected}
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-9), found


@pytest.mark.parametrize("title", [t for t in PANELS if t in RATES])
def test_rates_of_the_dashboard(prometheus: World, title: str) -> None:
    for expression, expected in zip(expressions(title), RATES[title], strict=True):
        found = prometheus.query(expression)
        largest = max(found.values(), default=0)
        assert largest > 0, expression
        shares = {labels: value / largest for labels, value in found.items()}
        assert_has(shares, {k: v / max(expected.values()) for k, v in expected.items()})


@pytest.mark.parametrize("title", [t for t in PANELS if t in VALUES])
def test_values_of_the_dashboard(prometheus: World, title: str) -> None:
    for expression, expected in zip(expressions(title), VALUES[title], strict=True):
        assert_has(prometheus.query(expression), expected)


def test_resident_sliders_are_by_replica(prometheus: World) -> None:
    (expression,) = expressions("Resident sliders")
    assert prometheus.query(expression)[prometheus.replica] == 5
    assert RATES.keys() | VALUES.keys() | {"Resident sliders"} == PANELS.keys()


def test_the_dashboard_is_complete() -> None:
    panels = DASHBOARD["panels"]
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Traffic", "Engine", "Sliders", "Ray Serve"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"]) == ("datasource", "datasource")
    for panel in PANELS.values():
        sources = [panel["datasource"], *(t["datasource"] for t in panel["targets"])]
        assert all(s == {"type": "prometheus", "uid": "${datasource}"} for s in sources)
        unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
        assert len(panel["description"]) > 20 and unit
    cells = [(x, y) for panel in panels for x, y in area(panel["gridPos"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def area(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


# --- the alerts -------------------------------------------------------------------------------
@needs_promtool
@pytest.mark.parametrize(
    "command",
    ["check rules alerts.yaml", "test rules alerts.test.yaml", "check config prometheus.yaml"],
)
def test_promtool_agrees(command: str) -> None:
    done = subprocess.run(
        ["promtool", *command.split()], cwd=FOLDER, capture_output=True, text=True
    )
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


def test_each_alert_is_tested_both_ways_and_says_what_to_do() -> None:
    tests = yaml.safe_load((FOLDER / "alerts.test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["promql_expr_test"]]
    for name, alert in ALERTS.items():
        mine = [case for case in cases if f'"{name}"' in case["expr"]]
        assert {bool(case.get("exp_samples")) for case in mine} == {True, False}, name
        assert alert["labels"]["severity"] in ("warning", "critical") and alert["for"]
        assert len(alert["annotations"]["summary"]) < 100 < len(alert["annotations"]["description"])


def data_behind(expression: str) -> str:
    """An alert's query without what makes it empty when all is well."""
    without = re.sub(r"\s*(>|==)\s*[\d.]+", "", expression)
    without = re.sub(r"^absent\((.*)\)$", r"\1", without)
    return without.replace("unless", "and")


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_have_data(prometheus: World, name: str) -> None:
    expression = ALERTS[name]["expr"]
    prometheus.query(expression)
    assert data_behind(expression) != expression
    assert prometheus.query(data_behind(expression))


def test_rules_in_a_real_prometheus(prometheus: World) -> None:
    for name, expected in MEASURED.items():
        assert_has(prometheus.query(MEASURES[name]["expr"]), expected)
        assert_has(prometheus.query(name), expected)
    loads = prometheus.query("bs_ray:slider_loads:rate10m")
    assert_has({k: v / loads["registry"] for k, v in loads.items()}, {"memory": 3, "failed": 1 / 3})
    assert MEASURED.keys() | {"bs_ray:slider_loads:rate10m"} == MEASURES.keys()

    groups = prometheus.get("rules")["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert health == dict.fromkeys([*MEASURES, *ALERTS], "ok")
    pending = prometheus.alerts
    assert {"BsRayErrors", "BsRaySliderLoadsFail"} <= pending.keys()
    assert not {"BsRaySaturated", "BsRayEngineHung", "BsRayNoEngine", "BsRaySlow"} & pending.keys()
    assert pending["BsRayErrors"]["annotations"]["summary"].startswith("7.5% of requests")


# --- traces -----------------------------------------------------------------------------------
class Collector(Server):
    """An OTLP/HTTP collector that keeps (service, span)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        super().__init__(_Collect)

    def named(self) -> dict[str, Any]:
        return {span.name: span for _, span in self.spans}


class _Collect(Quiet):
    server: Collector

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp

        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for group in otlp.ExportTraceServiceRequest.FromString(body).resource_spans:
            of = {a.key: a.value.string_value for a in group.resource.attributes}
            for scope in group.scope_spans:
                self.server.spans += [(of["service.name"], span) for span in scope.spans]
        reply = otlp.ExportTraceServiceResponse().SerializeToString()
        self.answer(reply, "application/x-protobuf")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """With tracing set up to send there."""
    pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http",
        reason="needs opentelemetry-exporter-otlp-proto-http",
    )
    with Collector() as collector:
        monkeypatch.setenv(tracing.ENDPOINT, f"http://{collector.address}")
        assert tracing.setup("ingress") and tracing.setup("ingress")
        yield collector
        tracing.stop()
    assert tracing.carrier() == {}


def _replica(parent: dict[str, str]) -> dict[str, str]:
    """The other side of a call, in a process of its own."""
    assert tracing.setup("editor")
    with tracing.span("queue", parent):
        pass
    with tracing.span("compute", parent, rows=3):
        inner = tracing.carrier()
    tracing.flush()
    return inner


def test_one_trace_across_processes(collector: Collector, ray_cluster: None) -> None:
    with tracing.span("edits", operation="edits"):
        with tracing.span("decode", bytes=12):
            pass
        there = {"env_vars": {tracing.ENDPOINT: os.environ[tracing.ENDPOINT]}}
        task = ray.remote(num_cpus=0.1)(_replica).options(runtime_env=there)
        inner = ray.get(task.remote(tracing.carrier()))
        with tracing.span("encode"):
            pass
    tracing.flush()
    spans = collector.named()
    assert {(service, span.name) for service, span in collector.spans} == {
        *(("ingress", name) for name in ("edits", "decode", "encode")),
        *(("editor", name) for name in ("queue", "compute")),
    }
    root = spans.pop("edits")
    assert not root.parent_span_id
    for span in spans.values():
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    _, trace, own, _ = inner["traceparent"].split("-")
    assert (trace, own) == (root.trace_id.hex(), spans["compute"].span_id.hex())
    (rows,) = spans["compute"].attributes
    assert (rows.key, rows.value.int_value) == ("rows", 3)


def test_a_callers_trace_goes_on_and_errors_show(collector: Collector) -> None:
    headers = {"accept": "*/*", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    with pytest.raises(ValueError, match="no such"), tracing.span("edits", headers):
        raise ValueError("no such slider")
    tracing.flush()
    span = collector.named()["edits"]
    assert span.trace_id == b"\xab" * 16 and span.parent_span_id == b"\xcd" * 8
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert "no such slider" in span.status.message and span.events[0].name == "exception"


def test_a_collector_that_is_down_holds_nobody_up(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing.stop()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call, says nothing
        port = silent.getsockname()[1]
        monkeypatch.setenv(tracing.ENDPOINT, f"http://127.0.0.1:{port}")
        start_s = time.monotonic()
        assert tracing.setup("ingress")
        for _ in range(3000):  # more than the SDK keeps
            with tracing.span("edits"):
                pass
        tracing.flush(0.2)
        tracing.stop(0.2)
    assert time.monotonic() - start_s < 15  # the SDK tries for half a minute
    assert not collector.spans


def test_off_means_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.ENDPOINT, raising=False)
    assert not tracing.setup("ingress")
    assert tracing.span("edits", rows=1) is tracing.span("decode", {"traceparent": "any"})
    with tracing.span("edits"), tracing.span("decode"):
        assert tracing.carrier() == {}
    tracing.flush()
    tracing.stop()


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(tracing.ENDPOINT, "http://127.0.0.1:9")
    exporter = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, exporter, None)  # as if it were not installed
    with caplog.at_level(logging.WARNING, "bs_ray"):
        assert not tracing.setup("ingress")
    assert "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http" in caplog.text
    with tracing.span("edits"):
        assert tracing.carrier() == {}
