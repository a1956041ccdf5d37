"""What SIGTERM and Ctrl-C do: at once where nothing would be lost, after the step and a save elsewhere.

A machine that is taken away sends SIGTERM and leaves half a minute. Python runs its own handlers in the
main thread and only between two of its instructions, so that one long compilation or computation would
use the time up. Here the signal's number goes through a pipe to a thread that is always ready. Outside
`deferred` it ends the process; inside, it only leaves a note, which the training loop looks at after every
step. A second Ctrl-C ends it in any case. Hidden here are the pipe, the thread and the exit statuses.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

# By the signal: what the process ends with. 75 is EX_TEMPFAIL: nothing is wrong, start it again.
STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

_lock = threading.Lock()
_deferred = False
_requested: int | None = None
_goodbye = "interrupted"


class Stopped(Exception):
    """A run that has saved its state because of a signal and is to end.

    Attributes:
      status: what the process is to end with.
      alone: whether the other processes of the run do not know of it.
    """

    def __init__(self, number: int, *, alone: bool):
        super().__init__(f"stopped by {_NAMES[number]}")
        self.status = STATUS[number]
        self.alone = alone


def install(goodbye: str) -> None:
    """Takes SIGTERM and Ctrl-C over. Call it once, in the main thread.

    Args:
      goodbye: what to say when a signal ends the process at once.
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
def deferred() -> Iterator[None]:
    """Inside it a signal only sets `requested`; a second Ctrl-C still ends the process.

    Raises:
      Stopped: at its end, if a signal came that nobody has acted upon.
    """
    global _deferred, _requested
    with _lock:
        _deferred, _requested = True, None
    try:
        yield
    finally:
        with _lock:
            _deferred = False
    if _requested is not None:
        raise Stopped(_requested, alone=True)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside it, within `deferred`, a signal ends the process at once after all, one that came before too."""
    global _deferred
    with _lock:
        _deferred = False
        waiting = _requested
    if waiting is not None:
        _leave(waiting)
    try:
        yield
    finally:
        with _lock:
            _deferred = True


def requested() -> int | None:
    """Returns the signal that came inside `deferred`, or None."""
    return _requested


def say(line: str) -> None:
    """Writes a line to standard error, from any thread, even where nobody reads it any more."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def _watch(pipe: int) -> None:
    global _requested
    while data := os.read(pipe, 1):
        number = data[0]
        if number not in STATUS:
            continue
        with _lock:
            again = number == _requested == signal.SIGINT
            waits = _deferred and not again
            if waits:
                _requested = _requested or number
        if waits:
            say(f"{_NAMES[number]}: saving after this step")
        else:
            _leave(number)


def _leave(number: int) -> None:
    """Ends the process; a log in object storage gets a moment to be written."""
    say(f"{_NAMES[number]}: {_goodbye}")
    last = threading.Thread(target=logging.shutdown, daemon=True)
    last.start()
    last.join(3.0)
    os._exit(STATUS[number])
