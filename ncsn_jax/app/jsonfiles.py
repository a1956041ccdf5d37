"""JSON files of a work directory, which anybody may have changed: an object of fields, or one clear line."""

import json

from ncsn_jax.app import storage
from ncsn_jax.errors import UserError


def read(path: str) -> dict | None:
    """Returns the object in a JSON file, or None if there is no such file.

    Raises:
      UserError: if there is something else.
    """
    try:
        # Opening a pipe would wait, and a device has no end.
        if storage.exists(path) and not storage.is_file(path):
            raise UserError(f"{path} cannot be read: it is no file")
        found = json.loads(storage.read(path).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read: it holds no object of fields")
    return found
