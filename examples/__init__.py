"""Scripts that draw the figures of the NCSN paper, and others, in minutes on a CPU.

Run each from the top directory, for example `python -m examples.figure3`. It writes a PNG file.
"""

import argparse
import os
import sys

from ncsn_jax.errors import one_line


def output_path(description: str, default: str) -> str:
    """Returns the command line's path of the PNG file to write, which must not exist yet."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("path", nargs="?", default=default, help=f"PNG file to write ({default})")
    path = parser.parse_args().path
    if not path.endswith(".png") or not os.path.isdir(os.path.dirname(path) or "."):
        sys.exit(one_line(f"error: {path!r} must end in .png and be in an existing directory"))
    if os.path.lexists(path):
        sys.exit(one_line(f"error: {path!r} already exists; choose another name"))
    return path
