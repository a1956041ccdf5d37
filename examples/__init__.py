"""The figures of the NCSN paper, and others, as scripts that run in minutes on a CPU.

Each is run from the top directory, as in `python -m examples.figure3`, and writes a PNG file.
"""

import argparse
import os
import sys

from ncsn_jax.errors import one_line


def output_path(description: str, default: str) -> str:
    """Returns the path of the PNG file to write, from the command line; it must not be there yet."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("path", nargs="?", default=default, help=f"PNG file to write ({default})")
    path = parser.parse_args().path
    if not path.endswith(".png") or not os.path.isdir(os.path.dirname(path) or "."):
        sys.exit(one_line(f"error: {path!r} must end in .png and lie in a directory that is there"))
    if os.path.lexists(path):
        sys.exit(one_line(f"error: {path!r} is there already; choose another name"))
    return path
