"""Requests that are asked twice and computed once."""

import asyncio
import random
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bs_ray.serve.http.idempotency import Replies
from bs_ray.serve.http.problems import Problem


class Clock:
    """A clock that a test moves."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class EditContext:
    """Computes when let; counts how often it was begun."""

    def __init__(self, reply: bytes = b"reply") -> None:
        self.reply, self.begun, self.let = reply, 0, asyncio.Event()
        self.errors: list[Exception] = []
        """Raised by the first computations, in order."""

    async def __call__(self) -> bytes:
        self.begun += 1
        await self.let.wait()
        if self.errors:
            raise self.errors.pop(0)
        return self.reply


def done(reply: bytes = b"reply") -> EditContext:
    work = EditContext(reply)
    work.let.set()
    return work


def replies(**limits: Any) -> Replies[bytes]:
    return Replies(size_of=len, **limits)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(main())


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def assert_nothing_left(kept: Replies[bytes], key: str = "k") -> None:
    """The key is free for another request."""
    assert await kept.once("a", key, "another digest", done(b"another")) == (b"another", False)


async def reused(kept: Replies[bytes], key: str, digest: str) -> Problem:
    with pytest.raises(Problem) as caught:
        await kept.once("a", key, digest, done())
    assert (caught.value.status, caught.value.kind) == (422, "idempotency-key-reused")
    return caught.value


def test_a_repeat_gets_the_same_reply() -> None:
    async def main() -> None:
        kept, work = replies(), done()
        first, replayed = await kept.once("a", "k", "d", work)
        again, again_replayed = await kept.once("a", "k", "d", done(b"another"))
        assert again is first and (replayed, again_replayed) == (False, True)
        assert work.begun == 1

    run(main)


def test_owners_and_keys_are_apart() -> None:
    async def main() -> None:
        kept = replies()
        for owner, key in (("a", "k"), ("b", "k"), ("a", "l")):
            name = f"{owner}{key}".encode()
            assert await kept.once(owner, key, "d" + owner, done(name)) == (name, False)
        assert await kept.once("b", "k", "db", done()) == (b"bk", True)

    run(main)


def test_a_key_stands_for_one_request() -> None:
    async def main() -> None:
        kept, work = replies(), EditContext()
        first = asyncio.create_task(kept.once("a", "k", "d", work))
        await settle()
        await reused(kept, "k", "other")  # while the first is running
        work.let.set()
        await first
        await reused(kept, "k", "other")  # and later
        assert await kept.once("a", "k", "d", done()) == (b"reply", True)

    run(main)


@pytest.mark.parametrize("key", ["", "k" * 256, "two words", "tab\t", "é", "line\n", "\x7f"])
def test_malformed_keys(key: str) -> None:
    async def main() -> None:
        kept, work = replies(), done()
        with pytest.raises(Problem) as caught:
            await kept.once("a", key, "d", work)
        assert (caught.value.status, caught.value.kind) == (400, "malformed-idempotency-key")
        assert work.begun == 0

    run(main)


def test_the_longest_key() -> None:
    async def main() -> None:
        assert await replies().once("a", "!~" * 127 + "k", "d", done()) == (b"reply", False)

    run(main)


def test_repeats_wait_for_the_running_one() -> None:
    async def main() -> None:
        kept, work = replies(), EditContext()
        tasks = [asyncio.create_task(kept.once("a", "k", "d", work)) for _ in range(20)]
        await settle()
        assert work.begun == 1
        work.let.set()
        results = await asyncio.gather(*tasks)
        assert results == [(b"reply", False)] + [(b"reply", True)] * 19
        assert work.begun == 1

    run(main)


def test_the_next_takes_over_from_a_cancelled_one() -> None:
    async def main() -> None:
        kept, work = replies(), EditContext()
        tasks = [asyncio.create_task(kept.once("a", "k", "d", work)) for _ in range(3)]
        await settle()
        tasks[0].cancel()
        await settle()
        assert work.begun == 2
        work.let.set()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert await tasks[1] == (b"reply", False)
        assert await tasks[2] == (b"reply", True)

    run(main)


def test_cancelled_waiters_leave_the_others_alone() -> None:
    async def main() -> None:
        kept, work = replies(), EditContext()
        tasks = [asyncio.create_task(kept.once("a", "k", "d", work)) for _ in range(4)]
        await settle()
        tasks[1].cancel()
        await settle()
        tasks[0].cancel()
        tasks[2].cancel()  # just as it would have been its turn
        await settle()
        assert work.begun == 2 and not tasks[3].done()
        work.let.set()
        assert await tasks[3] == (b"reply", False)
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [True, True, True, False]

    run(main)


def test_all_cancelled_leaves_nothing() -> None:
    async def main() -> None:
        kept, work = replies(), EditContext()
        tasks = [asyncio.create_task(kept.once("a", "k", "d", work)) for _ in range(5)]
        await settle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await assert_nothing_left(kept)

    run(main)


def test_errors_are_not_remembered() -> None:
    async def main() -> None:
        kept, work = replies(), done()
        work.errors = [Problem(503, "busy", "later")]
        with pytest.raises(Problem, match="later"):
            await kept.once("a", "k", "d", work)
        assert await kept.once("a", "k", "d", work) == (b"reply", False)
        assert await kept.once("a", "k", "d", work) == (b"reply", True)
        work.errors = [Problem(503, "busy", "later")]
        with pytest.raises(Problem, match="later"):
            await kept.once("a", "other", "d", work)
        await assert_nothing_left(kept, "other")

    run(main)


def test_an_error_is_for_the_one_that_computed() -> None:
    async def main() -> None:
        kept, work = replies(), EditContext()
        work.errors = [RuntimeError("first"), RuntimeError("second")]
        tasks = [asyncio.create_task(kept.once("a", "k", "d", work)) for _ in range(4)]
        await settle()
        work.let.set()
        first, second, *rest = await asyncio.gather(*tasks, return_exceptions=True)
        assert (str(first), str(second)) == ("first", "second")
        assert rest == [(b"reply", False), (b"reply", True)]
        assert work.begun == 3

    run(main)


def test_a_while_and_no_longer() -> None:
    async def main() -> None:
        clock = Clock()
        kept = replies(ttl_s=600, clock=clock)
        await kept.once("a", "k", "d", done())
        clock.now_s += 599
        assert (await kept.once("a", "k", "d", done()))[1]
        clock.now_s += 1
        assert await kept.once("a", "k", "other", done(b"new")) == (b"new", False)

    run(main)


def test_old_replies_go_without_being_asked_for() -> None:
    async def main() -> None:
        class Large:
            """A reply that tells when its memory is free."""

        async def large() -> Large:
            return Large()

        clock = Clock()
        kept = Replies[Large](size_of=lambda reply: 1, clock=clock)
        in_memory = weakref.ref((await kept.once("a", "k", "d", large))[0])
        assert in_memory()
        clock.now_s += 601
        with pytest.raises(Problem):
            await kept.once("a", "", "d", large)
        assert not in_memory()

    run(main)


@pytest.mark.parametrize("limits", [{"max_entries": 3}, {"max_bytes": 30}])
def test_the_oldest_go_first(limits: dict[str, int]) -> None:
    async def main() -> None:
        kept = replies(**limits)
        for i in range(5):
            await kept.once("a", f"k{i}", "d", done(bytes(10)))
        for key in ("k2", "k3", "k4"):
            assert (await kept.once("a", key, "d", done()))[1]
        assert not (await kept.once("a", "k1", "d", done(bytes(10))))[1]
        assert not (await kept.once("a", "k2", "d", done()))[1]  # it has made room for k1

    run(main)


def test_a_reply_too_large_to_keep_is_for_those_who_wait() -> None:
    async def main() -> None:
        kept, work = replies(max_bytes=30), EditContext(bytes(31))
        await kept.once("a", "small", "d", done())
        tasks = [asyncio.create_task(kept.once("a", "k", "d", work)) for _ in range(3)]
        await settle()
        work.let.set()
        results = await asyncio.gather(*tasks)
        assert [replayed for _, replayed in results] == [False, True, True] and work.begun == 1
        assert (await kept.once("a", "small", "d", done()))[1]
        assert not (await kept.once("a", "k", "d", work))[1]
        await assert_nothing_left(kept)

    run(main)


def test_a_crowd_of_cancellations_computes_each_key_once() -> None:
    """Whatever is cancelled when: no key is computed by two at a time, and nothing is left over."""

    async def main(draw: random.Random) -> None:
        kept, busy, finished = replies(), set[str](), list[str]()

        async def compute(key: str) -> bytes:
            assert key not in busy
            busy.add(key)
            try:
                await asyncio.sleep(draw.choice([0, 0.001]))
                if draw.random() < 0.2:
                    raise ValueError
                finished.append(key)
                return key.encode()
            finally:
                busy.remove(key)

        async def ask(key: str) -> None:
            assert (await kept.once("a", key, "d", lambda: compute(key)))[0] == key.encode()

        tasks = [asyncio.create_task(ask(draw.choice("xyz"))) for _ in range(60)]
        for task in draw.sample(tasks, 25):
            await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [r for r in results if isinstance(r, AssertionError)]
        assert sorted(finished) == sorted(set(finished))
        assert len(results) == 60 and any(r is None for r in results)
        for key in set("xyz") - set(finished):
            await assert_nothing_left(kept, key)

    for seed in range(30):
        run(lambda seed=seed: main(random.Random(seed)))  # type: ignore[misc]
