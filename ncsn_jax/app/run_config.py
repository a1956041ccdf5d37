"""Reads the configuration of a run from its `config.json`.

`main.py` uses this file as its configuration file if the command names none.
"""

import os

from ml_collections import ConfigDict

from ncsn_jax.app import storage
from ncsn_jax.errors import UserError


def get_config(workdir: str) -> ConfigDict:
    """Returns the configuration of the run in a work directory.

    Raises:
      UserError: if it holds no run.
    """
    workdir = storage.path(workdir)
    storage.check(workdir, "--workdir")
    path = os.path.join(workdir, "config.json")
    found = storage.read_json(path)
    if found is None:
        raise UserError(
            f"{workdir!r} holds no run: config.json is missing; start one with --config=FILE"
        )
    config = ConfigDict()
    try:
        for name, value in found.items():
            section, _, short = name.rpartition(".")
            there = config
            if section:
                there = config[section] = config.get(section, ConfigDict())
            # JSON turns tuples into lists; no field is a list.
            there[short] = tuple(value) if isinstance(value, list) else value
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not a configuration: {error}") from None
    return config.lock()
