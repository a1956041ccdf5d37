"""Makes PyTorch checkpoint files in both formats, and the state dicts in them."""

import io
import pathlib
import pickle
import warnings

import numpy as np

from tests.hostile import HUGE, NUMBERS, STRINGS, Harmful, alter, any_value, entry, mutate, place

DATA = pathlib.Path(__file__).parent.parent / "data"


def _content(rng):
    """Returns the content of a small file of the authors' scripts, with some changes."""
    import torch

    arrays = {"module.a.weight": torch.ones(3, 2), "module.a.bias": torch.zeros(3)}
    states = {i: {"step": 3, "exp_avg": v, "exp_avg_sq": v} for i, v in enumerate(arrays.values())}
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    group |= {"amsgrad": False, "params": [0, 1]}
    content = [arrays, {"state": states, "param_groups": [group]}, 2, 5000, dict(arrays)]
    average = {"decay": 0.999, "num_updates": 3, "shadow_params": list(arrays.values())}
    score_sde = {"model": arrays, "optimizer": content[1], "step": 3, "ema": average}
    numbers = [np.float64(1e-3), np.float32(0.5), np.int64(3), np.float16(1), np.dtype("<f8")]
    ones = torch.ones(3)
    # fmt: off
    values = [
        None, True, [], {}, (), {"a": 1}, [arrays] * 3, {("a", 1): ones}, {5: ones, "5": ones},
        torch.ones(3, 2), torch.ones(2, 2, dtype=torch.bfloat16), ones.to_sparse(), ones.to(torch.complex64),
        ones * float("nan"), torch.zeros(0), torch.zeros(()), torch.ones(2, 3).T,
        torch.ones(1).expand(1000, 1000), torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8),
        torch.empty(3, device="meta"), torch.nn.Parameter(ones),
    ]
    # fmt: on

    def value():
        return rng.choice([rng.choice(NUMBERS + HUGE), rng.choice(STRINGS), *values, *numbers])

    simplified = {"model_state": arrays, "optimizer_state": content[1], "epoch": 3}
    changed = rng.choice([content, content, score_sde])
    for _ in range(rng.choice([0, 1, 1, 2])):
        alter(rng, changed, value)
    nested = []
    for _ in range(rng.choice([10, 300])):
        nested = [nested]
    itself = []
    itself += [itself, itself]
    # fmt: off
    return rng.choice([changed] * 5 + [
        content[: rng.randrange(6)], value(), nested, itself, [Harmful()], {"model_state": Harmful()},
        simplified, {"model": arrays, "optimizer": Harmful()},
    ])
    # fmt: on


def _save(rng) -> bytes:
    import torch

    if rng.random() < 0.05:
        return pickle.dumps(Harmful())
    if rng.random() < 0.1:
        name = rng.choice(["ncsn_checkpoint_v1_legacy", "ncsnv2_checkpoint", "ncsnpp_checkpoint"])
        data = (DATA / f"{name}.pth").read_bytes()
    else:
        buffer, new = io.BytesIO(), rng.random() < 0.5
        content = _content(rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.save(content, buffer, _use_new_zipfile_serialization=new)
        except Exception:  # several kinds, for what cannot be saved
            buffer.write(b"the rest is missing")
        data = buffer.getvalue()
    return mutate(rng, data) if rng.random() < 0.5 else data


@entry(6, "torch", "ncsn_jax.app.torch_files")
def make_torch_file(case):
    """Checkpoint files of PyTorch, in both formats."""
    from ncsn_jax.app import torch_files

    path = case.path(case.rng.choice(["c.pth", "\udcff.pth", "new\nline.pth", "c"]))
    place(case.rng, path, lambda: _save(case.rng))

    def call():
        found = torch_files.read(path)
        if found.optimizer is not None:
            torch_files.read_adam(path, found)

    return call, path


@entry(0.9, "ncsn_jax.convert", kind="library")
def make_state_dict(case):
    """State dicts of a different network, or of no network."""
    from flax import traverse_util

    from ncsn_jax import convert, models

    rng = case.rng
    good = models.NCSN(2, 3)
    shapes = convert.parameter_shapes(good, 3)
    zeros = {path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()}
    state = convert.to_torch(traverse_util.unflatten_dict(zeros), good)
    if rng.random() < 0.2:
        state = dict(rng.sample(list(state.items()), 3))
    simple = models.SimplifiedNCSN(2, np.ones(3, np.float32))
    model = rng.choice([good] * 12 + [simple] * 3 + [None, 5, models.NCSN])
    shapes = [(3,), (), (0, 3, 3, 3), (2, 0, 3, 3), (2, 10**6, 1, 1)]
    values = [np.zeros(shape, np.float32) for shape in shapes] + [np.array(["x", "y"]), {}]
    values += [np.full((2, 3, 3, 3), *x) for x in ((np.nan,), (0.1,), (0, object), (0, "S2"))]
    for _ in range(rng.choice([0, 1, 1, 3])):
        alter(rng, state, lambda: rng.choice([any_value(rng), *values]))
    if rng.random() < 0.2:
        state[rng.choice(["module.begin_conv.weight", "sigmas"])] = values[0]
    if rng.random() < 0.1:
        state = any_value(rng)
    channels = rng.choice([None, None, None, 1, 3, 0, -1, 2.5, "x", 10**9])
    return lambda: convert.to_torch(convert.from_torch(state, model, channels), model), None
