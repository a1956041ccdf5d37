"""Describes the machine and its software, and how busy it is, from what the operating system reports."""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
import time

from ncsn_jax.app import cpu


def busy_cores(seconds: float) -> float | None:
    """Waits `seconds` and returns how many cores were busy meanwhile, or None if unknown.

    Time stolen from a virtual machine counts as busy.
    """
    started, before = time.monotonic(), _busy_seconds()
    if before is None:
        return None
    time.sleep(seconds)
    return (_busy_seconds() - before) / (time.monotonic() - started)


def _busy_seconds() -> float | None:
    """Returns the total busy time of all cores since the machine started."""
    try:
        line, _, _ = pathlib.Path("/proc/stat").read_text().partition("\n")
    except OSError:  # only Linux has it
        return None
    user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    """Returns a process's peak resident memory so far, in bytes; 0 except on Linux."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def describe() -> list[str]:
    """Returns lines on the processor, the memory, the system and the versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ", ".join(
        f"{name} {_version(name)}" for name in ("jax", "jaxlib", "flax", "numpy", "torch")
    )
    now = datetime.datetime.now(datetime.UTC)
    return [
        f"{_processor()}, {cpu.cores()} cores, {memory / 2**30:.1f} GiB",
        f"{platform.platform()}, Python {platform.python_version()}",
        packages,
        f"{now:%Y-%m-%d %H:%M} UTC",
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
