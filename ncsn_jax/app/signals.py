"""Handles SIGTERM and Ctrl-C: they end the process at once, or after a step and a save if work would be lost.

A preempted machine sends SIGTERM and leaves half a minute. Python runs signal handlers in the main
thread, between two of its instructions, so one long compilation could use up that time. Here the signal's
number goes through a pipe to a thread that is always ready. Outside `deferred` the thread ends the process.
Inside, it notes the signal, and the training loop checks for it after each step. A second Ctrl-C always ends
the process. A notebook does not call `install`; there `deferred` also defers Ctrl-C (the stop button), and
raises KeyboardInterrupt where a process would end.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

# The exit status by signal. 75 is EX_TEMPFAIL: nothing is wrong, start it again.
STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

_lock = threading.RLock()  # a handler may run inside the blocks it guards
_deferred = False
_requested: int | None = None
_goodbye: str | None = None  # None: not installed
_last_saved: Callable[[], str] | None = None


def install(goodbye: str) -> None:
    """Handles SIGTERM and Ctrl-C from now on. Call it once, in the main thread.

    Args:
      goodbye: the message when a signal ends the process.
    """
    global _goodbye
    _goodbye = goodbye
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in STATUS:
        signal.signal(number, lambda *_: None)


@contextlib.contextmanager
def deferred(last_saved: Callable[[], str] | None = None) -> Iterator[None]:
    """Defers signals: inside the block they only set `requested`; a second Ctrl-C still ends the process.

    So does the end of the block, if a signal came and the block raised nothing.

    Args:
      last_saved: says what is saved, for the message at a second Ctrl-C. It must only read variables, because
        no signal is handled meanwhile.
    """
    global _deferred, _requested, _last_saved
    with _lock:
        _deferred, _requested, _last_saved = True, None, last_saved
    in_notebook = _goodbye is None and threading.current_thread() is threading.main_thread()
    before = (
        signal.signal(signal.SIGINT, lambda number, _: _receive(number)) if in_notebook else None
    )
    try:
        yield
    finally:
        with _lock:
            _deferred = False
        if in_notebook:
            signal.signal(signal.SIGINT, before)
    if _requested is not None:
        _end(_requested)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Lets a signal, or an earlier one, end the process at once; a block inside `deferred`."""
    global _deferred
    with _lock:
        _deferred = False
    if _requested is not None:
        _end(_requested)
    try:
        yield
    finally:
        with _lock:
            _deferred = True


def requested() -> int | None:
    """Returns the signal that came inside `deferred`, or None."""
    return _requested


def stop(number: int) -> NoReturn:
    """Ends a run that saved its state on a signal, by SystemExit or KeyboardInterrupt."""
    global _requested
    if _goodbye is None:
        _requested = None
        raise KeyboardInterrupt("the state is saved; train again to continue")
    say(f"stopped by {_NAMES[number]}: {_goodbye}")
    sys.exit(STATUS[number])


def say(line: str) -> None:
    """Writes a line to standard error from any thread, even if nothing reads it any more."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def _watch(pipe: int) -> None:
    while data := os.read(pipe, 1):
        number = data[0]
        if number not in STATUS:
            continue
        _receive(number)


def _receive(number: int) -> None:
    global _requested
    with _lock:
        again = number == _requested == signal.SIGINT
        defer = _deferred and not again
        if defer:
            _requested = _requested or number
    if defer:
        more = "; press again to stop at once" if number == signal.SIGINT else ""
        say(f"{_NAMES[number]}: saving after this step{more}")
        return
    if again and _last_saved:
        say(f"this step is not saved; {_last_saved()}")
    _end(number)


def _end(number: int) -> None:
    """Ends the process, after a moment to write a log in object storage."""
    if _goodbye is None:
        raise KeyboardInterrupt
    say(f"{_NAMES[number]}: {_goodbye}")
    last = threading.Thread(target=logging.shutdown, daemon=True)
    last.start()
    last.join(3.0)
    os._exit(STATUS[number])
