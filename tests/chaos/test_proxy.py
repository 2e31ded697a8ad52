"""The proxy does what it says, and a Store sees through it."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from bs_ray.storage import Store
from bs_ray.storage.seaweed import LocalObjectStore
from tests.chaos.proxy import FAULTS, Proxy, Step

_DATA = bytes(range(256)) * 8
_RATE = 0.5
_HITS = 4  # enough, and every one costs its wait


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_sees_through(
    fault: str, object_store: LocalObjectStore, bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(object_store.endpoint_url, rates={fault: _RATE}, hang_s=0.2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        rounds = 0
        while rounds < 6 and sum(event.fault != "" for event in proxy.events) < _HITS:
            index, rounds = rounds, rounds + 1
            bucket.write(f"a/{index} ü.bin", _DATA)
            assert bucket.write_if_absent(f"b/{index}.bin", _DATA)
            assert bucket.read(f"a/{index} ü.bin") == _DATA
            assert len(bucket.list("a/")) == index + 1
        events = list(proxy.events)
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.endpoint_url)
    assert {bucket.read(e.key) for e in bucket.list()} == {_DATA}
    hit = [event for event in events if event.fault]
    assert len(hit) > 2 and {event.fault for event in hit} == {fault}
    if fault != "delay":  # every one of them cost another attempt
        # Where it hears that there is an object, it reads it: it may be its own.
        found_there = sum(event.status == 412 and not event.fault for event in events)
        assert len(events) == 4 * rounds + len(hit) + found_there
    if fault == "flip_request":
        assert {event.status for event in hit} == {400}


def test_faults_depend_on_the_seed_and_the_request_alone() -> None:
    rates = {"reset": 0.3, "flip_reply": 0.3}
    first, again, other = (Proxy("http://127.0.0.1:1", seed=s, rates=rates) for s in (1, 1, 2))
    keys = [f"{index % 40}" for index in range(120)]

    def drawn(proxy: Proxy, order: Callable[[list[str]], Any]) -> list[tuple[str, str]]:
        return sorted((key, proxy.draw("GET", key, 0)[0]) for key in order(keys))

    straight = drawn(first, list)
    assert straight == drawn(again, reversed)
    assert straight != drawn(other, list)
    assert 0.4 < sum(fault != "" for _, fault in straight) / len(keys) < 0.8


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_step_waits_and_is_never_answered(
    when: str, object_store: LocalObjectStore, bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(object_store.endpoint_url) as proxy:
        proxy.arm(Step(when, "PUT", "*/b", nth=2))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        bucket.write("b", b"1")
        proxy.go.set()
        bucket.write("b", b"2")
        assert proxy.reached.is_set()
    stopped = [event for event in proxy.events if event.fault == "stopped"]
    assert [(e.status, e.upload) for e in stopped] == [
        (0 if when == "before" else 200, hashlib.sha256(b"2").hexdigest())
    ]
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.endpoint_url)
    assert bucket.read("b") == b"2"
