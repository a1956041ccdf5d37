"""Passes standard error of a process through, and says in one line that its run has lost a process.

`ncsn_jax.hosts` starts this file as a process of its own and gives it standard error of the one that
computes. When another process of the run is gone, JAX's runtime ends this one by an abort, from a thread
and with a dump of its stack; no code of the process itself can run then. What is left is to write what it
means. It imports nothing but the standard library, and ends with the process that it serves.
"""

import os
import re
import signal
import sys

# What the runtime says, and goes on saying, when it has lost a process.
_FATAL = re.compile(
    rb"^[EF]\d{4} .*(Use error polling to propagate|Polled an error from coordination service|"
    rb"Terminating process because the JAX distributed service)",
    re.MULTILINE,
)
_DEAD = re.compile(rb"stopped sending heartbeats\):\s*([\d, ]+)")
_LEADER = b"Failed to send RPC to coordination service"


def explain(message: bytes) -> str:
    """Returns the line that stands for the runtime's last message."""
    if found := _DEAD.search(message):
        what = f"process {found[1].decode().strip()} of this run has ended or stopped answering"
    elif _LEADER in message:
        what = "process 0 of this run has ended or cannot be reached"
    else:
        what = "another process of this run has ended or cannot be reached"
    return f"error: {what}; the same command on all hosts continues from the last checkpoint"


def main() -> None:
    """Copies standard input to standard error until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pending, last = b"", b""
    while chunk := os.read(0, 65536):
        if last:
            last += chunk
            continue
        pending += chunk
        if found := _FATAL.search(pending):
            pending, last = pending[: found.start()], pending[found.start() :]
        # Whole lines at once, as more than the beginning is needed to tell what a line is.
        end = max(pending.rfind(b"\n"), pending.rfind(b"\r")) + 1
        os.write(2, pending[:end])
        pending = pending[end:]
    os.write(2, pending)
    if last:
        os.write(2, explain(last).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
