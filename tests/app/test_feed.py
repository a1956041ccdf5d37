"""What a feed makes in advance, and what it counts as waiting; events instead of time."""

import threading
import types

import pytest

from ncsn_jax.app import feed
from ncsn_jax.errors import UserError


def never():
    return False


def test_batches_come_in_order_prepared_and_none_after_the_last():
    with feed.Feed(iter([1, 2, 3]), lambda batch: 10 * batch) as batches:
        assert [batches.take(never) for _ in range(5)] == [10, 20, 30, None, None]


def test_the_next_batch_is_made_while_the_one_before_is_used():
    made = [threading.Event() for _ in range(3)]
    with feed.Feed(iter(range(3)), lambda i: made[i].set() or i) as batches:
        assert made[0].wait(60)  # before any is asked for
        for i in range(2):
            assert batches.take(never) == i
            assert made[i + 1].wait(60)


class Clock:
    """Each look at a batch that is not ready takes a second; the fourth one finds it ready."""

    def __init__(self, patch):
        self.now, self.go = 0.0, threading.Event()
        patch.setattr(feed, "time", types.SimpleNamespace(perf_counter=lambda: self.now))
        wait = lambda futures, timeout: self.look(futures)
        patch.setattr(feed.concurrent.futures, "wait", wait)

    def look(self, futures):
        self.now += 1.0
        if self.now == 4.0:
            self.go.set()
            futures[0].result(60)

    def batches(self):
        assert self.go.wait(60)
        yield "a batch"


@pytest.mark.parametrize(("computes", "waited"), [(4, 0.0), (0, 4.0), (3, 1.0)])
def test_waiting_is_the_time_in_which_nothing_computes(computes, waited, monkeypatch):
    """A call that computes longer than the batch takes hides all of it."""
    clock = Clock(monkeypatch)
    with feed.Feed(clock.batches(), lambda batch: batch) as batches:
        assert batches.take(lambda: clock.now < computes) == "a batch"
        assert batches.waited == waited


def test_a_batch_that_is_ready_is_not_waited_for():
    ready = threading.Event()
    with feed.Feed(iter([1]), lambda batch: batch) as batches:
        batches._next.add_done_callback(lambda _: ready.set())
        assert ready.wait(60)
        assert batches.take(lambda: pytest.fail("asked")) == 1
        assert batches.waited == 0.0


@pytest.mark.parametrize("where", ["batches", "prepare"])
def test_what_goes_wrong_is_raised_where_the_batch_is_taken(where):
    def fail(batch=None):
        raise UserError("images cannot be read")

    made = (fail() if i and where == "batches" else i for i in range(2))
    prepare = lambda i: fail() if i and where == "prepare" else i
    with feed.Feed(made, prepare) as batches:
        assert batches.take(never) == 0
        with pytest.raises(UserError, match="images cannot be read"):
            batches.take(never)


def test_the_thread_and_the_batches_end_with_the_context():
    closed, made_by = [], []

    def endless():
        made_by.append(threading.current_thread())
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    with pytest.raises(ZeroDivisionError), feed.Feed(endless(), lambda batch: batch) as batches:
        batches.take(never)
        assert made_by[0].is_alive() and made_by[0] is not threading.current_thread()
        raise ZeroDivisionError
    assert closed == [True] and not made_by[0].is_alive()
