"""When Python looks for garbage, and when memory that is free goes back to the operating system."""

import contextlib
import ctypes
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keeps Python from looking for cycles of garbage.

    For what makes very many objects and hardly any garbage, as importing and tracing do: a tenth of their
    time would be spent looking.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def release() -> None:
    """Gives free memory back, where the C library is glibc; elsewhere nothing happens.

    What tracing and compiling a network takes, some hundreds of megabytes in many small pieces, would stay
    with the process otherwise, beside what computing needs.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
