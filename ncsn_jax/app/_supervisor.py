"""Runs one process of a run on several hosts, and says in one line that it has lost another one.

When another process of the run is gone, JAX's runtime ends this one by an abort, from a thread and with a
dump of its stack; no code of the process itself can run then. So the command that was started runs itself
once more, as a child, and only watches: it passes output through, signals on and the exit status back, and
turns the runtime's last words into one line. It imports nothing but the standard library.
"""

import os
import re
import signal
import subprocess
import sys
import threading

# Tells the child that it is one: the process that watches it.
_VARIABLE = "NCSN_JAX_SUPERVISOR"

# What the runtime says, and goes on saying, when it has lost a process; or the network library of CPUs, which
# may still find half of a message from it.
_FATAL = re.compile(
    rb"^[EF]\d{4} .*(?:Use error polling to propagate|Polled an error from coordination service|"
    rb"Terminating process because the JAX distributed service)|"
    rb"^terminate called after throwing an instance of 'gloo::",
    re.MULTILINE,
)
_DEAD = re.compile(rb"stopped sending heartbeats\):\s*([\d, ]+)")
_WHAT = re.compile(rb"what\(\): *([^\n]{1,200})")
_LEADER = b"Failed to send RPC to coordination service"

# What the network library of CPUs says when all is well.
_CHATTER = b"[Gloo] Rank "


def explain(message: bytes) -> str:
    """Returns the line that stands for the runtime's last words."""
    if found := _DEAD.search(message):
        what = f"process {found[1].decode().strip()} of this run has ended or stopped answering"
    elif _LEADER in message:
        what = "process 0 of this run has ended or cannot be reached"
    else:
        what = "another process of this run has ended or cannot be reached"
        if found := _WHAT.search(message):
            what += f" ({found[1].decode(errors='replace').strip()})"
    return f"error: {what}; the same command on all hosts continues from the last checkpoint"


def relay(reading: int, writing: int) -> bytes:
    """Copies one file descriptor to another, and returns the runtime's last words, if there are any."""
    pending, last = b"", b""
    while chunk := os.read(reading, 65536):
        if last:
            last += chunk
            continue
        pending += chunk
        if found := _FATAL.search(pending):
            pending, last = pending[: found.start()], pending[found.start() :]
        # Whole lines only, as more than the beginning is needed to tell what a line is.
        end = max(pending.rfind(b"\n"), pending.rfind(b"\r")) + 1
        lines = pending[:end].splitlines(keepends=True)
        _write(writing, b"".join(line for line in lines if not line.startswith(_CHATTER)))
        pending = pending[end:]
    _write(writing, pending)
    return last


def supervise() -> None:
    """Returns in the child; in the process that calls it first, runs the child and ends as it does."""
    parent = os.environ.pop(_VARIABLE, None)
    if parent is not None:
        _end_with(int(parent))
        return
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {_VARIABLE: str(os.getpid())},
        stdout=out_end,
        stderr=err_end,
        start_new_session=True,  # or a terminal's Ctrl-C would come twice
    )
    os.close(out_end)
    os.close(err_end)
    copier = threading.Thread(target=relay, args=(out, 1))
    copier.start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: child.send_signal(number))
    last = relay(err, 2)
    copier.join()
    status = child.wait()
    if last:
        _write(2, explain(last).encode() + b"\n")
        status = 1
    os._exit(status if status >= 0 else 128 - status)


def _end_with(parent: int) -> None:
    """Lets the kernel end this process when the one that watches it has ended, where it can."""
    import ctypes
    import resource

    # A lost process of a run aborts the others; that is no reason for files of their memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _write(descriptor: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:  # Whoever listened may be gone.
        pass
