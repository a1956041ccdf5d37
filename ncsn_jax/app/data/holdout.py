"""Chooses which examples of a dataset without a test split are held out for one."""


def is_held_out(digest: bytes, fraction: float) -> bool:
    """Returns whether an example belongs to the test split, by its content alone.

    Args:
      digest: a hash of the content, 8 bytes or more, such as SHA-256.
      fraction: the share of examples to hold out, in [0, 1).
    """
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
