"""The checkpoint files of the authors' PyTorch scripts as arrays.

Hides the two formats that torch has written, the layout of the lists that the scripts saved, and the
numbering of Adam's moments. A file is read with `weights_only=True`: one that would execute code is
refused. The only module that imports torch, and only when a file is read.
"""

import os
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ncsn_jax.errors import UserError

_LAYOUT = (
    "a state dict, or a list that begins with one: [model, adam] of ncsn or "
    "[model, adam, epoch, step, ema] of ncsnv2"
)
_BUFFERS = ("sigmas",)


class TorchCheckpoint(NamedTuple):
    """What a file holds; the state dicts map names without 'module.' to arrays in PyTorch's layout.

    Attributes:
      model: the network's state dict.
      step: the number of optimizer steps; that of Adam where the file has no other, else 0.
      adam: (count, first moments, second moments) with the moments under the parameters' names, or
        None.
      hyperparameters: Adam's 'lr', 'betas', 'eps' and 'weight_decay'; empty without Adam.
      ema: the state dict of the exponential moving average, or None.
    """

    model: dict[str, np.ndarray]
    step: int
    adam: tuple[int, dict[str, np.ndarray], dict[str, np.ndarray]] | None
    hyperparameters: dict[str, Any]
    ema: dict[str, np.ndarray] | None


def read(path: str) -> TorchCheckpoint:
    """Reads a checkpoint of ermongroup/ncsn or ermongroup/ncsnv2.

    Raises:
      UserError: if the file is not there, is damaged, would execute code, or holds something else; or
        if torch is not installed.
    """
    content = _load(path)
    parts = list(content) if isinstance(content, (list, tuple)) else [content]
    if len(parts) not in (1, 2, 4, 5):
        raise UserError(f"{path} holds a list of {len(parts)}, expected {_LAYOUT}")
    model = _state_dict(path, "its state dict", parts[0])
    step, adam, hyperparameters = 0, None, {}
    if len(parts) > 1 and parts[1] is not None:
        names = [name for name in model if name not in _BUFFERS]
        adam, hyperparameters = _adam(path, parts[1], model, names)
        step = adam[0]
    if len(parts) > 3:
        step = parts[3]
        if not isinstance(step, int) or step < 0:
            raise UserError(f"{path} holds the step {step!r}, expected a whole number >= 0")
    ema = _state_dict(path, "its moving average", parts[4]) if len(parts) > 4 else None
    return TorchCheckpoint(model, step, adam, hyperparameters, ema)


def _load(path: str) -> Any:
    if not os.path.isfile(path):
        found = "is a directory" if os.path.isdir(path) else "does not exist"
        raise UserError(f"{path} {found}, expected a .pth file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own deprecations
            import torch

            return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise UserError(f"{path} can be read with torch only: pip install torch") from None
    # Truncated and foreign files raise all kinds of exceptions.
    except Exception as error:
        if forbidden := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} is refused: loading it would execute code ({forbidden[1]}); only tensors and "
                "plain values are read"
            ) from None
        raise UserError(
            f"{path} cannot be read: it is damaged or no PyTorch file ({type(error).__name__})"
        ) from None


def _state_dict(path: str, what: str, found: Any) -> dict[str, np.ndarray]:
    if isinstance(found, Mapping) and found:
        arrays = {str(name).removeprefix("module."): _array(value) for name, value in found.items()}
        if all(array is not None for array in arrays.values()):
            return arrays
    raise UserError(f"{path} holds {type(found).__name__} as {what}, expected {_LAYOUT}")


def _array(value: Any) -> np.ndarray | None:
    """Returns a dense tensor as an array, and None for anything else."""
    try:
        return value.detach().numpy()
    except (AttributeError, TypeError, RuntimeError):
        return None


def _adam(path: str, found: Any, model: Mapping[str, np.ndarray], names: list[str]):
    """Returns ((count, first, second moments), hyperparameters) of Adam's state dict.

    The moments are numbered by position or, in old files, by `id`; the order of the parameters is that
    of the network's state dict. A parameter without moments never had a gradient: its are zero.
    """
    try:
        (group,) = found["param_groups"]
        numbers, states = group["params"], found["state"]
        if len(numbers) != len(names):
            raise UserError(
                f"{path} holds an optimizer of {len(numbers)} parameters for a network of {len(names)}"
            )
        moments = ({}, {})
        count = 0
        for name, number in zip(names, numbers, strict=True):
            state = states.get(number)
            if state is None:
                for moment in moments:
                    moment[name] = np.zeros_like(model[name])
                continue
            count = max(count, int(state["step"]))
            for moment, key in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
                moment[name] = _array(state[key])
        hyperparameters = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} holds an optimizer that is not Adam ({type(error).__name__}: {error})"
        ) from None
    return (count, *moments), hyperparameters
