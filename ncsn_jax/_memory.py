"""Memory that the process has freed and the C library keeps, given back to the operating system."""

import contextlib
import ctypes


def release() -> None:
    """Gives free memory back, where the C library is glibc; elsewhere nothing happens.

    What tracing and compiling a network takes, some hundreds of megabytes in many small pieces, would stay
    with the process otherwise, beside what computing needs.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
