"""API keys: files, authentication, rates and new keys."""

import asyncio
import base64
import hashlib
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest

from bs_ray.serve.http.keys import (
    ANONYMOUS,
    Key,
    KeyRing,
    KeysError,
    Limiter,
    _turn,
    add_key,
    new_key,
    parse_keys,
)
from bs_ray.serve.http.problems import Problem
from bs_ray.storage import MissingKeyError, Store

HASH = "0" * 63 + "a"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1e6

    def __call__(self) -> float:
        return self.now_s


def authenticated(ring: KeyRing, header: str | None) -> str:
    return asyncio.run(ring.authenticate(header)).id


def refused(ring: KeyRing, header: str | None) -> Problem:
    with pytest.raises(Problem) as caught:
        asyncio.run(ring.authenticate(header))
    return caught.value


# --- files ------------------------------------------------------------------------------------
def test_a_file_is_read() -> None:
    text = f"keys: [{{id: team-a, sha256: '{HASH}', expires: 2027-01-01, sliders: [age]}}]"
    (key,) = parse_keys(text.encode(), "f").keys
    assert (key.id, key.expires, key.sliders) == ("team-a", date(2027, 1, 1), ["age"])
    assert (key.requests_per_minute, key.burst) == (None, 20)


SECRET = "bsr_" + "Xx-_" * 10 + "xyz"
ENTRY = f"id: a, sha256: '{HASH}'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file: "),
        ("keys: {", "not YAML"),
        ("\xff", "not YAML"),
        ("[]", "file: "),
        ("keys: [{id: a}]", "keys.0.sha256"),
        (f"keys: [{{{ENTRY}}}]\nmore: 1", "more"),
        (f"keys: [{{{ENTRY}, rate: 1}}]", "keys.0.rate"),
        (f"keys: [{{{ENTRY}, requests_per_minute: '600'}}]", "requests_per_minute"),
        (f"keys: [{{{ENTRY}, requests_per_minute: 0}}]", "requests_per_minute"),
        (f"keys: [{{{ENTRY}, requests_per_minute: .inf}}]", "requests_per_minute"),
        (f"keys: [{{{ENTRY}, requests_per_minute: 9, burst: true}}]", "burst"),
        (f"keys: [{{{ENTRY}, burst: 5}}]", "burst without requests_per_minute"),
        (f"keys: [{{{ENTRY}, expires: soon}}]", "expires"),
        (f"keys: [{{{ENTRY}, expires: 2027-01-01 10:30:00}}]", "expires"),
        (f"keys: [{{{ENTRY}, sliders: [smile@2]}}]", "no version"),
        (f"keys: [{{{ENTRY}, sliders: age}}]", "sliders"),
        (f"keys: [{{id: A b, sha256: '{HASH}'}}]", "expected 1-64 of a-z"),
        (f"keys: [{{id: a, sha256: '{HASH.upper()}'}}]", "sha256"),
        (f"keys: [{{{ENTRY}}}, {{id: a, sha256: '{'1' * 64}'}}]", "id a more than once"),
        (f"keys: [{{{ENTRY}}}, {{id: b, sha256: '{HASH}'}}]", f"sha256 {HASH} more than once"),
    ],
)
def test_wrong_files_are_explained(text: str, message: str) -> None:
    with pytest.raises(KeysError, match=r"^keys\.yaml: got ") as caught:
        parse_keys(text.encode("latin-1"), "keys.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (f"id: a, sha256: {SECRET}", "sha256"),
        (f"id: {SECRET}, sha256: '{HASH}'", "id"),
        (f"{ENTRY}, sliders: [{SECRET}]", "sliders"),
        (f"{ENTRY}, {SECRET}: 1", "bsr_..."),
    ],
)
def test_a_key_that_got_into_its_file_is_not_repeated(entry: str, field: str) -> None:
    with pytest.raises(KeysError) as caught:
        parse_keys(f"keys: [{{{entry}}}]".encode(), "f")
    assert f"keys.0.{field}" in str(caught.value) and SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("globs", "slider", "expected"),
    [
        (["*"], "age", True),
        (["smile-*"], "smile-wide", True),
        (["smile-*"], "smile", False),
        (["age", "smile"], "smile@3", True),
        (["age"], "aged", False),
        (["age"], "AGE", False),
        ([], "age", False),
    ],
)
def test_sliders_of_a_key(globs: list[str], slider: str, expected: bool) -> None:
    assert Key(id="a", sliders=globs).allows(slider) is expected


# --- who asks ---------------------------------------------------------------------------------
def test_a_key_is_recognized(tmp_path: Path) -> None:
    uri = str(tmp_path / "keys.yaml")
    first, second = add_key(uri, "first"), add_key(uri, "second")
    ring = KeyRing.load(uri)
    assert authenticated(ring, f"Bearer {first}") == "first"
    assert authenticated(ring, f"bearer   {second} ") == "second"


def test_refusals_look_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = str(tmp_path / "keys.yaml")
    good, expired = add_key(uri, "good"), add_key(uri, "old", expires=date(2020, 1, 1))
    ring = KeyRing.load(uri)
    headers = [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {good}",
        good,
        f"Bearer {good}x",
        f"Bearer {good[:-1]}",
        f"Bearer {expired}",
        "Bearer \xe9\udcff",
        f"Bearer x {good}",
    ]
    problems = [refused(ring, header) for header in headers]
    assert {problem.status for problem in problems} == {401}
    assert len({str(problem.body("r")) for problem in problems}) == 1
    assert all(problem.headers == {"WWW-Authenticate": "Bearer"} for problem in problems)
    assert good not in caplog.text and expired not in caplog.text


def test_the_day_of_expiry(tmp_path: Path) -> None:
    uri = str(tmp_path / "keys.yaml")
    secret = add_key(uri, "a", expires=date(2027, 1, 1))
    last = KeyRing(uri, today=lambda: date(2026, 12, 31))
    assert authenticated(last, f"Bearer {secret}") == "a"
    refused(KeyRing(uri, today=lambda: date(2027, 1, 1)), f"Bearer {secret}")


def test_no_file_is_an_open_server() -> None:
    ring = KeyRing.load(None)
    assert authenticated(ring, None) == authenticated(ring, "Bearer x") == "anonymous"
    assert ANONYMOUS.allows("anything")
    for _ in range(1000):
        Limiter().take(ANONYMOUS)


def test_a_missing_or_wrong_file_does_not_open_the_server(tmp_path: Path) -> None:
    with pytest.raises(MissingKeyError):
        KeyRing.load(str(tmp_path / "keys.yaml"))
    (tmp_path / "keys.yaml").write_text("keys: nothing")
    with pytest.raises(KeysError):
        KeyRing.load(str(tmp_path / "keys.yaml"))


def test_keys_come_and_go_without_a_restart(tmp_path: Path) -> None:
    uri, clock = str(tmp_path / "keys.yaml"), Clock()
    old = add_key(uri, "old")
    ring = KeyRing(uri, clock=clock)
    (tmp_path / "keys.yaml").unlink()
    new = add_key(uri, "new")
    clock.now_s += 29
    assert authenticated(ring, f"Bearer {old}") == "old"
    refused(ring, f"Bearer {new}")
    clock.now_s += 1
    refused(ring, f"Bearer {old}")  # this very request: a revoked key is not let in once more
    assert authenticated(ring, f"Bearer {new}") == "new"


@pytest.mark.parametrize("damage", ["gone", "wrong", "not YAML"])
def test_known_keys_go_on_while_the_file_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    file, clock = tmp_path / "keys.yaml", Clock()
    secret = add_key(str(file), "a")
    text = file.read_text()
    ring = KeyRing(str(file), clock=clock)
    if damage == "gone":
        file.unlink()
    else:
        file.write_text({"wrong": "keys: 1", "not YAML": "{"}[damage])
    clock.now_s += 31
    assert authenticated(ring, f"Bearer {secret}") == "a"
    assert caplog.text.count("those known last stay valid") == 1
    assert authenticated(ring, f"Bearer {secret}") == "a"
    assert caplog.text.count("those known last stay valid") == 1  # not with every request
    file.write_text(text.replace("id: a", "id: renamed"))
    clock.now_s += 31
    assert authenticated(ring, f"Bearer {secret}") == "renamed"
    assert secret not in caplog.text


def test_a_slow_store_holds_up_nobody_for_long(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    secret = add_key(str(file), "a")
    text = file.read_text()

    async def main() -> tuple[float, float, str]:
        clock = Clock()
        ring = KeyRing(str(file), clock=clock)
        file.unlink()
        os.mkfifo(file)  # a read waits until someone writes
        clock.now_s += 31
        start_s = time.monotonic()
        both = await asyncio.gather(*(ring.authenticate(f"Bearer {secret}") for _ in range(2)))
        waited_s = time.monotonic() - start_s
        assert [key.id for key in both] == ["a", "a"]
        clock.now_s += 2
        start_s = time.monotonic()
        await ring.authenticate(f"Bearer {secret}")
        again_s = time.monotonic() - start_s
        file.write_text(text.replace("id: a", "id: renamed"))  # lets the read end
        async with asyncio.timeout(5):
            while (key := await ring.authenticate(f"Bearer {secret}")).id == "a":
                await asyncio.sleep(0.01)
        return waited_s, again_s, key.id

    waited_s, again_s, name = asyncio.run(main())
    assert again_s < 1.9 < waited_s < 20
    assert name == "renamed"


# --- how often --------------------------------------------------------------------------------
def too_often(limiter: Limiter, key: Key, cost: float = 1) -> Problem:
    with pytest.raises(Problem) as caught:
        limiter.take(key, cost)
    assert (caught.value.status, caught.value.kind) == (429, "rate-limited")
    return caught.value


def test_a_burst_then_the_rate() -> None:
    clock, key = Clock(), Key(id="a", requests_per_minute=6, burst=3)
    limiter = Limiter(clock)
    for _ in range(3):
        limiter.take(key)
    problem = too_often(limiter, key)
    assert problem.headers == {"Retry-After": "10"}
    assert problem.members == {"limit": 6, "remaining": 0}
    clock.now_s += 4
    assert too_often(limiter, key).headers == {"Retry-After": "6"}
    clock.now_s += 6
    limiter.take(key)
    too_often(limiter, key)
    clock.now_s += 1e6  # fills up to the burst and no further
    for _ in range(3):
        limiter.take(key)
    too_often(limiter, key)


def test_keys_do_not_share_their_rate() -> None:
    limiter = Limiter(Clock())
    one, other = (Key(id=name, requests_per_minute=1, burst=1) for name in ("one", "other"))
    limiter.take(one)
    limiter.take(other)
    too_often(limiter, one)


def test_what_costs_more_than_a_burst_is_paid_off_afterwards() -> None:
    clock, key = Clock(), Key(id="a", requests_per_minute=60, burst=4)
    limiter = Limiter(clock)
    limiter.take(key, 10)
    assert too_often(limiter, key).headers == {"Retry-After": "7"}
    assert too_often(limiter, key, 100).headers == {"Retry-After": "10"}
    clock.now_s += 10
    limiter.take(key, 100)


def test_a_refused_request_counts_nothing() -> None:
    clock, key = Clock(), Key(id="a", requests_per_minute=60, burst=4)
    limiter = Limiter(clock)
    limiter.take(key, 2)
    assert too_often(limiter, key, 3).members["remaining"] == 2
    limiter.take(key, 2)


@pytest.mark.parametrize("seed", range(40))
def test_rates_hold_and_waiting_as_told_is_enough(seed: int) -> None:
    draw = random.Random(seed)
    rate, burst = draw.choice([0.7, 7, 77, 100_000]), draw.randint(1, 30)
    clock, key = Clock(), Key(id="a", requests_per_minute=rate, burst=burst)
    limiter, passed, start_s = Limiter(clock), 0, clock.now_s
    for _ in range(300):
        cost = draw.randint(1, burst)
        try:
            limiter.take(key, cost)
        except Problem as problem:
            wait_s = int(problem.headers["Retry-After"])
            assert wait_s >= 1
            if wait_s > 1:
                clock.now_s += wait_s - 1
                too_often(limiter, key, cost)
                clock.now_s += 1
            else:
                clock.now_s += 1
            limiter.take(key, cost)
        passed += cost
        assert passed <= burst + rate / 60 * (clock.now_s - start_s) + 1
        clock.now_s += draw.choice([0, 0, draw.expovariate(rate / 60)])


def test_memory_is_bounded() -> None:
    limiter = Limiter(Clock(), max_buckets=10)
    keys = [Key(id=f"k{i}", requests_per_minute=1, burst=1) for i in range(1000)]
    for key in keys:
        limiter.take(key)
    for key in keys[-10:]:
        too_often(limiter, key)
    limiter.take(keys[-11])  # as if it had never come before


# --- new keys ---------------------------------------------------------------------------------
def test_a_new_key_is_256_random_bits() -> None:
    secret, entry = new_key("team-a", requests_per_minute=600, burst=5)
    assert secret.startswith("bsr_")
    assert len(base64.urlsafe_b64decode(secret.removeprefix("bsr_") + "=")) == 32
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert entry == {"id": "team-a", "sha256": digest, "requests_per_minute": 600, "burst": 5}
    assert new_key("team-a")[0] != new_key("team-a")[0]


@pytest.mark.parametrize(
    ("id", "settings"),
    [("Team A", {}), ("a", {"rate": 5}), ("a", {"burst": 5}), ("a", {"sliders": ["@"]})],
)
def test_wrong_settings_make_no_key(tmp_path: Path, id: str, settings: dict) -> None:
    with pytest.raises(KeysError, match=f"^key '{id}': "):
        add_key(str(tmp_path / "keys.yaml"), id, **settings)
    assert not list(tmp_path.iterdir())


FORMS = {
    "block": "# ours\nkeys:\n- id: a\n  sha256: '{hash}'  # Ada\n",
    "indented": "# ours\nkeys:\n  - id: a  # Ada\n    sha256: '{hash}'",
    "flow": "keys: [{{id: a, sha256: '{hash}'}}]",
    "none yet": "keys: []\n",
    "empty": "",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_added_to_any_form(tmp_path: Path, form: str) -> None:
    file = tmp_path / "keys.yaml"
    before = FORMS[form].format(hash=HASH)
    file.write_text(before)
    secret = add_key(str(file), "new", expires=date(2999, 1, 1), sliders=["age"])
    kept = ["a"] if "id: a" in before else []
    assert [key.id for key in parse_keys(file.read_bytes(), "f").keys] == [*kept, "new"]
    assert authenticated(KeyRing.load(str(file)), f"Bearer {secret}") == "new"
    if form in ("block", "indented"):
        assert file.read_text().startswith(before)  # comments too
    assert [path.name for path in tmp_path.iterdir()] == ["keys.yaml"]


def test_an_id_is_given_once(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    add_key(str(file), "a")
    before = file.read_bytes()
    with pytest.raises(KeysError, match="got id 'a', which has a key"):
        add_key(str(file), "a")
    assert file.read_bytes() == before


def test_a_wrong_file_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("keys: [{id: a}]")
    with pytest.raises(KeysError, match="sha256"):
        add_key(str(file), "b")
    assert file.read_text() == "keys: [{id: a}]"
    assert [path.name for path in tmp_path.iterdir()] == ["keys.yaml"]  # no lock is left


def add_at_once(uri: str) -> None:
    names = [f"team-{i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        secrets = list(pool.map(lambda name: add_key(uri, name), names))
    ring = KeyRing.load(uri)
    assert [authenticated(ring, f"Bearer {secret}") for secret in secrets] == names


def test_keys_added_at_once_all_get_in(tmp_path: Path) -> None:
    add_at_once(str(tmp_path / "keys.yaml"))


def test_keys_live_on_object_stores(bucket: Store) -> None:
    add_at_once(f"{bucket.uri}/keys.yaml")
    assert [entry.key for entry in bucket.list()] == ["keys.yaml"]


def test_a_lock_left_behind_is_explained(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("keys.yaml.lock", b"")
    explained = pytest.raises(KeysError, match=r"keys\.yaml\.lock: got a lock.*Delete it")
    with explained, _turn(store, "keys.yaml", patience_s=0.1):
        pass
    assert store.exists("keys.yaml.lock")
