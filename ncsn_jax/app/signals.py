"""What SIGTERM and Ctrl-C do: end the process at once, or after the step and a save where work would be lost.

A machine that is taken away sends SIGTERM and leaves half a minute. Python runs signal handlers in the main
thread, between two of its instructions, so that one long compilation could use that time up. Here the
signal's number goes through a pipe to a thread that is always ready. Outside `deferred` the thread ends the
process. Inside, it notes the signal, and the training loop looks for it after each step. A second Ctrl-C
always ends it.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

# The exit status by signal. 75 is EX_TEMPFAIL: nothing is wrong, start it again.
STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

_lock = threading.Lock()
_deferred = False
_requested: int | None = None
_goodbye = "interrupted"


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
def deferred() -> Iterator[None]:
    """Inside the block a signal only sets `requested`; a second Ctrl-C still ends the process.

    So does the end of the block, if a signal came and the block raised nothing.
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
        _end(_requested)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside the block, within `deferred`, a signal ends the process at once, as does an earlier one."""
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
    """Ends a run that has saved its state because of a signal, by SystemExit."""
    say(f"stopped by {_NAMES[number]}: {_goodbye}")
    sys.exit(STATUS[number])


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
            defer = _deferred and not number == _requested == signal.SIGINT
            if defer:
                _requested = _requested or number
        if defer:
            say(f"{_NAMES[number]}: saving after this step")
        else:
            _end(number)


def _end(number: int) -> None:
    """Ends the process; a log in object storage gets a moment to be written."""
    say(f"{_NAMES[number]}: {_goodbye}")
    last = threading.Thread(target=logging.shutdown, daemon=True)
    last.start()
    last.join(3.0)
    os._exit(STATUS[number])
