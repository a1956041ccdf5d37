"""Reads the checkpoint files of the authors' PyTorch scripts as arrays.

It reads both formats that torch has written and every layout that the scripts saved. Files number Adam's
moments, and a moving average without names; they get the names of their parameters. `weights_only=True`
refuses a file that would execute code. No other module imports torch, and this one does only to read a file.
"""

import os
import re
import struct
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ncsn_jax.errors import UserError

_LAYOUTS = (
    "a state dict, [model, adam] of ncsn, [model, adam, epoch, step, ema] of ncsnv2, a dict with "
    "'model_state' of the simplified NCSN, or {optimizer, model, ema, step} of score_sde_pytorch"
)
_BUFFERS = ("sigmas",)

# The only untrained parameters are the Fourier frequencies of NCSN++: Adam numbers them but keeps no state,
# and the moving average omits them.
_FROZEN = ("all_modules.0.W",)

# Before this version of torch a crafted file could execute code, or write to memory, even with
# weights_only=True (CVE-2025-32434, CVE-2026-24747).
_SAFE_TORCH = (2, 10)

# A step counter becomes an int32.
_MAX_STEP = 2**31 - 1

# The numpy scalars that are read, with their `struct` formats. Files need nothing else of numpy: NCSN++'s
# hold the learning rate as such a scalar, because the warm-up computes it with numpy.
_SCALARS = {"f8": "<d", "f4": "<f", "i8": "<q"}


class TorchCheckpoint(NamedTuple):
    """The contents of a file; its state dicts map names without 'module.' to arrays in PyTorch's layout.

    Attributes:
      model: the network's state dict.
      optimizer: the optimizer's state dict as torch has it, for `read_adam`, or None.
      step: the number of optimizer steps, or None if the file lacks it.
      ema: the EMA's state dict, or None.
      ema_decay: the EMA's decay, or None if the file lacks it.
    """

    model: dict[str, np.ndarray]
    optimizer: Any
    step: int | None
    ema: dict[str, np.ndarray] | None
    ema_decay: float | None = None


class Adam(NamedTuple):
    """The state of Adam.

    Attributes:
      count: the number of its steps.
      first, second: the moments, by parameter name, in PyTorch's layout.
      hyperparameters: by the names of `config.optim`.
    """

    count: int
    first: dict[str, np.ndarray]
    second: dict[str, np.ndarray]
    hyperparameters: dict[str, float]


def read(path: str) -> TorchCheckpoint:
    """Reads a checkpoint of ermongroup/ncsn, ermongroup/ncsnv2, score_sde_pytorch or the simplified NCSN.

    Raises:
      UserError: if the file does not exist, is damaged, would execute code, or holds something else; or
        if torch is missing or too old to read it safely.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own deprecations
        content = _load(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        return _read_score_sde(path, content)
    if isinstance(content, Mapping) and "model_state" in content:
        parts = [content["model_state"], content.get("optimizer_state")]
    else:
        parts = list(content) if isinstance(content, (list, tuple)) else [content]
    if len(parts) not in (1, 2, 4, 5):
        raise UserError(f"{path} holds a list of {len(parts)} elements, expected {_LAYOUTS}")
    average = parts[4] if len(parts) > 4 else None
    if isinstance(average, Mapping) and not average:
        average = None
    return TorchCheckpoint(
        model=_state_dict(path, "state dict", parts[0]),
        optimizer=parts[1] if len(parts) > 1 else None,
        step=_count(path, "step", parts[3]) if len(parts) > 3 else None,
        ema=None if average is None else _state_dict(path, "moving average", average),
    )


def _read_score_sde(path: str, content: Mapping) -> TorchCheckpoint:
    """Reads {optimizer, model, ema, step}, whose EMA lists the trained parameters in order."""
    model = _state_dict(path, "state dict", content["model"])
    average, ema, decay = content.get("ema"), None, None
    if average is not None:
        shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
        trained = [name for name in model if name not in _BUFFERS + _FROZEN]
        if not isinstance(shadow, list) or len(shadow) != len(trained):
            is_list = isinstance(shadow, list)
            found = f"a list of {len(shadow)}" if is_list else type(shadow).__name__
            raise UserError(
                f"{path}: 'shadow_params' of its moving average is {found}, expected a list of "
                f"{len(trained)} tensors, one for each parameter that is trained"
            )
        decay = average.get("decay")
        if isinstance(decay, bool) or not isinstance(decay, float | int) or not 0 <= decay < 1:
            raise UserError(f"{path}: 'decay' of its moving average must be in [0, 1)")
        ema = _state_dict(path, "moving average", dict(zip(trained, shadow, strict=True)))
        ema |= {name: model[name] for name in _FROZEN if name in model}
    return TorchCheckpoint(
        model=model,
        optimizer=content.get("optimizer"),
        step=None if content.get("step") is None else _count(path, "step", content["step"]),
        ema=ema,
        ema_decay=None if decay is None else float(decay),
    )


def read_adam(path: str, found: TorchCheckpoint) -> Adam:
    """Reads the optimizer of a checkpoint whose network is known to be valid.

    The moments are numbered by position or, in old files, by `id`; the parameters are in the order of the
    network's state dict. A parameter without moments never had a gradient, so its moments are zero.

    Raises:
      UserError: if it is not Adam, or belongs to another network.
    """
    names = [name for name in found.model if name not in _BUFFERS]
    first, second, count = {}, {}, 0
    try:
        (group,) = map(_mapping, _mapping(found.optimizer)["param_groups"])
        numbers, states = list(group["params"]), dict(found.optimizer["state"])
        beta1, beta2 = group["betas"]
        hyperparameters = {"learning_rate": group["lr"], "beta1": beta1, "beta2": beta2}
        hyperparameters |= {name: group[name] for name in ("eps", "weight_decay")}
        hyperparameters = {name: float(value) for name, value in hyperparameters.items()}
        if group.get("amsgrad"):
            raise UserError(f"{path} holds an optimizer with amsgrad, which is not supported")
        if len(numbers) != len(names):
            raise UserError(
                f"{path} holds an optimizer for {len(numbers)} parameters and a network with {len(names)}"
            )
        for name, number in zip(names, numbers, strict=True):
            state = states.get(number)
            if state is None:
                first[name] = second[name] = np.zeros_like(found.model[name])
                continue
            state = _mapping(state)
            count = max(count, _count(path, f"Adam's step of {name}", float(state["step"])))
            first[name], second[name] = _array(state["exp_avg"]), _array(state["exp_avg_sq"])
    except UserError:
        raise
    # Anything but Adam's state can raise any exception.
    except Exception as error:
        raise UserError(
            f"{path} holds an optimizer that is not Adam ({type(error).__name__}: {error})"
        ) from None
    return Adam(count, first, second, hyperparameters)


def _mapping(found: Any) -> Mapping:
    """Returns `found` if it is a mapping; a tensor would take a string as an index and warn."""
    if not isinstance(found, Mapping):
        raise TypeError(f"got {type(found).__name__} instead of a dict")
    return found


class _Dtype:
    """Replaces `numpy.dtype` while a file is read; accepts any arguments, which `_scalar` checks."""

    __slots__ = ("kind", "state")

    def __init__(self, kind=None, align=None, copy=None):
        self.kind, self.state = kind, None

    def __setstate__(self, state):
        self.state = state


def _scalar(dtype=None, data=None) -> float | int:
    """Replaces numpy's scalars while a file is read, and returns plain numbers."""
    # numpy's state of a little-endian scalar, which has neither fields nor its own sizes.
    plain = (3, "<", None, None, None, -1, -1, 0)
    kind = getattr(dtype, "kind", None)
    known = isinstance(dtype, _Dtype) and isinstance(kind, str) and kind in _SCALARS
    if not (known and isinstance(dtype.state, tuple) and dtype.state == plain):
        raise UserError(
            "it holds a numpy value that is not a little-endian float64, float32 or int64"
        )
    if not isinstance(data, bytes) or len(data) != struct.calcsize(_SCALARS[kind]):
        raise UserError(
            f"it holds a numpy scalar of type {kind} whose data are not {kind[1]} bytes"
        )
    return struct.unpack(_SCALARS[kind], data)[0]


# The names that numpy's old and new versions write. Reading never calls numpy itself.
_STAND_INS = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_Dtype, "numpy.dtype"),
]


def _load(path: str) -> Any:
    if not os.path.isfile(path):
        found = "is a directory" if os.path.isdir(path) else "does not exist"
        raise UserError(f"{path} {found}, expected a .pth file")
    try:
        import torch
    except ImportError as error:
        found = "is missing" if isinstance(error, ModuleNotFoundError) else f"fails: {error}"
        raise UserError(
            f"{path} can only be read with torch, which {found}: pip install 'torch>=2.10'"
        ) from None
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < _SAFE_TORCH:
        raise UserError(
            f"{path} cannot be read safely with torch {torch.__version__}, which may execute code "
            "in the file: pip install 'torch>=2.10'"
        )
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from None
    # Truncated and foreign files can raise any exception.
    except Exception as error:
        if forbidden := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} is refused: loading it would call {forbidden[1]}; only tensors and plain "
                "values are read, because anything else may execute code"
            ) from None
        raise UserError(f"{path} cannot be read: it is damaged or not a PyTorch file") from None


def _state_dict(path: str, what: str, found: Any) -> dict[str, np.ndarray]:
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path} holds {type(found).__name__} as its {what}, expected {_LAYOUTS}")
    arrays = {}
    for name, value in found.items():
        array, plain = _array(value), str(name).removeprefix("module.")
        if array is None:
            raise UserError(
                f"{path}: entry {name!r} of its {what} is {_describe(value)}, expected a dense tensor "
                f"of a type that numpy has; the file should be {_LAYOUTS}"
            )
        if plain in arrays:
            raise UserError(f"{path}: its {what} holds {plain} both with and without 'module.'")
        arrays[plain] = array
    return arrays


def _describe(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"a tensor of {value.layout} {dtype}"


def _array(value: Any) -> np.ndarray | None:
    """Returns a dense tensor as an array, or None for anything else."""
    try:
        return value.detach().numpy()
    except (AttributeError, TypeError, RuntimeError):
        return None


def _count(path: str, what: str, found: Any) -> int:
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    if not (is_number and 0 <= found <= _MAX_STEP and found == int(found)):
        raise UserError(f"{path}: its {what} is {found!r}, expected an integer from 0 to 2**31 - 1")
    return int(found)
