"""Tests what a feed prepares in advance and what it counts as waiting, with events instead of time."""

import threading

import pytest

from ncsn_jax.app import feed
from ncsn_jax.errors import UserError


def test_batches_come_prepared_and_in_order():
    with feed.Feed((i for i in (1, 2, 3)), lambda batch: 10 * batch) as batches:
        assert [batches.take() for _ in range(5)] == [10, 20, 30, None, None]


def test_the_next_batch_is_made_while_the_current_one_is_used():
    made = [threading.Event() for _ in range(3)]
    with feed.Feed((i for i in range(3)), lambda i: made[i].set() or i) as batches:
        assert made[0].wait(60)  # before any request
        for i in range(2):
            assert batches.take() == i
            assert made[i + 1].wait(60)


@pytest.mark.parametrize(("computes_until", "waited"), [(None, 4.0), (3.0, 1.0), (4.0, 0.0)])
def test_waiting_counts_only_idle_time(computes_until, waited, monkeypatch):
    """The batch is ready after four seconds of a clock that the computation also advances."""
    now, computed = [0.0], threading.Event()

    def batches():
        if computes_until is None:
            assert asked.wait(60)
        else:
            assert computed.wait(60)
        if computes_until != 4.0:
            assert asked.wait(60)
        now[0] = 4.0
        yield "a batch"

    def block_until_ready(computing):
        now[0] = computing
        computed.set()
        if computing == 4.0:
            made.result(60)

    asked = threading.Event()

    def perf_counter():
        asked.set()  # It waits from here on.
        return found.pop(0) if (found := [now[0]]) else None

    monkeypatch.setattr(feed.time, "perf_counter", perf_counter)
    monkeypatch.setattr(feed.jax, "block_until_ready", block_until_ready)
    with feed.Feed(batches(), lambda batch: batch) as taken:
        made = taken._next
        assert taken.take(computes_until) == "a batch"
        assert taken.waited == waited


def test_a_ready_batch_adds_no_waiting_time():
    ready = threading.Event()
    with feed.Feed((i for i in (1,)), lambda batch: batch) as batches:
        batches._next.add_done_callback(lambda _: ready.set())
        assert ready.wait(60)
        assert batches.take("not looked at") == 1
        assert batches.waited == 0.0


@pytest.mark.parametrize("where", ["batches", "prepare"])
def test_an_error_is_raised_when_the_batch_is_taken(where):
    def fail(batch=None):
        raise UserError("images cannot be read")

    made = (fail() if i and where == "batches" else i for i in range(2))
    prepare = lambda i: fail() if i and where == "prepare" else i
    with feed.Feed(made, prepare) as batches:
        assert batches.take() == 0
        with pytest.raises(UserError, match="images cannot be read"):
            batches.take()


def test_the_threads_and_the_batches_end_with_the_context():
    closed, made_by = [], []

    def endless():
        made_by.append(threading.current_thread())
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    with pytest.raises(ZeroDivisionError), feed.Feed(endless(), lambda batch: batch) as batches:
        batches.take()
        assert made_by[0].is_alive() and made_by[0] is not threading.current_thread()
        raise ZeroDivisionError
    assert closed == [True] and not made_by[0].is_alive()
