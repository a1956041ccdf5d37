"""Provides runs with a checkpoint of random parameters, and what the library computes with their network."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import digits_vp
from ncsn_jax import images, models, sde
from ncsn_jax._random import Stream, example_keys, stream_key
from ncsn_jax.app import build, checkpoints, pictures, run_flows, run_samplers, storage, workdirs
from ncsn_jax.app.modes import shared
from ncsn_jax.errors import UserError
from tests import tiny

SEED, STEP, SHAPE = 7, 4, (8, 8, 1)

SMALL = {
    "seed": SEED,
    "training.batch_size": 8,
    "sampling.num_samples": 5,
    "sampling.batch_size": 3,  # not a divisor of the samples and not a multiple of the devices
    "sampling.rtol": 1e-3,
    "sampling.atol": 1e-3,
}
DIFFUSION = {
    "model.features": 4,
    "model.num_levels": 6,
    "model.beta_max": 15.0,
    "ncsnpp.ch_mult": (1,),
    "ncsnpp.attn_resolutions": (),
    "sampling.num_steps": 5,
}


def vp_config(**changes):
    """Returns the configuration of a network conditioned on time, with the VP SDE and images in [-1, 1]."""
    config = digits_vp.get_config()
    config.update_from_flattened_dict(SMALL | DIFFUSION | changes)
    return config


def ladder_config(**changes):
    """Returns the configuration of a network conditioned on the level, without an SDE, on [0, 1]."""
    config = tiny.get_config()
    config.update_from_flattened_dict(SMALL | {"model.num_levels": 3} | changes)
    return config


def write_run(config, workdir: str, scale: float = 1.0) -> None:
    """Writes a run of one checkpoint, whose EMA is `scale` times its parameters and some noise."""
    state = build.make_init(config)(jax.random.key(1))
    rng = np.random.default_rng(1)
    ema = jax.tree.map(
        lambda a: np.float32(scale * a + 0.03 * rng.standard_normal(a.shape)), state.ema_params
    )
    workdirs.make(workdir)
    workdirs.write_config(config, workdir)
    workdirs.claim_images(build.load_images(config), workdir)
    with checkpoints.Checkpoints(workdir) as store:
        step = np.asarray(STEP, np.int32)
        store.save(STEP, jax.tree.map(np.asarray, state._replace(ema_params=ema, step=step)))
        store.wait()


@pytest.fixture(scope="module")
def small_network():
    """Replaces NCSN++ by TinyDiffusion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.MODELS, "ncsnpp", tiny.TinyDiffusion)
        yield


def run_fixture(make_config, scale=1.0):
    """Returns a fixture of the work directory of such a run."""

    @pytest.fixture(scope="module")
    def run(small_network, tmp_path_factory):
        workdir = str(tmp_path_factory.mktemp("run") / "run")
        write_run(make_config(), workdir, scale)
        return workdir

    return run


vp_run = run_fixture(vp_config)
ladder_run = run_fixture(ladder_config, scale=0.3)  # keeps the samples in [0, 1]


def library(config, workdir, **given):
    """Returns the SDE, and the score functions of sigma and of time, of the checkpoint's EMA.

    `given` is what else the network is given of each example.
    """
    params = jax.tree.map(jnp.asarray, workdirs.load(config, workdir)[1].ema_params)
    model, options = build.make_model(config), config.model
    if config.training.sde == "none":
        process = sde.VE(options.sigma_end, options.sigma_begin)
        sigma_score_fn = models.score_fn(model, params, build.make_sigmas(config))
        return process, sigma_score_fn, sde.from_sigma_score(process, sigma_score_fn)
    process = {"vp": sde.VP, "subvp": sde.SubVP}[config.training.sde](0.1, 15.0)
    time_score_fn = models.time_score_fn(model, params, process, **given)
    return process, sde.to_sigma_score(process, time_score_fn), time_score_fn


def keys(stream, indices):
    """Returns the keys of each sample's start and of its steps."""
    return example_keys(stream_key(SEED, stream), jnp.asarray(indices, jnp.uint32), 2)


def normal(start_keys, shape=SHAPE):
    """Returns standard normal starts `[B, ...]`."""
    return jax.vmap(lambda k: jax.random.normal(k, (np.prod(shape),)).reshape(shape))(start_keys)


def as_bytes(config, x):
    return pictures.to_uint8(images.uncenter(np.asarray(x), config.data.centered))


def assert_alike(found, expected):
    """Asserts equality to one grey level, because rounding differs, on images that are not black or white."""
    assert found.dtype == expected.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.mean((expected > 0) & (expected < 255)) > 0.1


def read(workdir, *path):
    """Returns the arrays of a file."""
    with np.load("/".join([workdir, *path])) as file:
        return {name: file[name] for name in file.files}


class Gaussian(NamedTuple):
    """Data N(0, 0.6^2) in [-1, 1]: its SDE, and its score of the time."""

    process: sde.SDE
    score: Any

    STD = 0.6

    def std(self, t):
        """The standard deviation of x_t."""
        return float(jnp.hypot(self.process.alpha(t) * self.STD, self.process.std(t)))


@pytest.fixture
def gaussian(monkeypatch):
    """Replaces the network's score by the score of such data."""
    process = sde.VP(0.1, 15.0)

    def score(x, sigma):
        return -x / (Gaussian.STD**2 + sigma**2)[:, None, None, None]

    time_score_fn = sde.from_sigma_score(process, score)
    monkeypatch.setattr(build, "make_score_fn", lambda config, params: (score, time_score_fn))
    return Gaussian(process, time_score_fn)


class Chains:
    """Replaces `run_samplers.Chains`: sample i is `drawn(i)`, and calls are recorded.

    `calls` holds the arguments of each run by name, with the task and the classifier of its chains.
    """

    num_steps, evaluations, classes, value_range = 5, 9, None, ()
    calls: list[dict] = []  # noqa: RUF012
    shape = SHAPE

    def __init__(self, config, task=Stream.SAMPLES, classifier=None):
        self.made_of = {"seed": config.seed, "task": task, "classifier": classifier}

    def run(self, params, indices, size, *known, num_frames=0, advanced=lambda steps: None):
        told = {
            "params": jax.tree.map(np.array, params),
            "indices": list(indices),
            "size": size,
            "known": known,
        }
        self.calls.append(self.made_of | told | {"num_frames": num_frames})
        advanced(self.num_steps)
        frames = [[drawn(i, self.shape, f) for i in indices] for f in range(1, num_frames + 1)]
        images = np.stack([drawn(i, self.shape) for i in indices])
        return run_samplers.Samples(images, np.asarray(frames), np.asarray(indices) + 7)


def drawn(index, shape=SHAPE, frame=0):
    """Returns the image of `Chains` with this index, uint8 `[H, W, C]`, or an earlier frame of it."""
    return np.random.default_rng([index, frame]).integers(0, 256, shape, np.uint8)


@pytest.fixture
def chains(monkeypatch):
    """Replaces the samplers by `Chains`; returns its calls."""
    monkeypatch.setattr(run_samplers, "Chains", Chains)
    monkeypatch.setattr(Chains, "calls", [])
    return Chains.calls


def assert_shows(picture, expected, min_side=400):
    """Asserts that a picture, a path or an array, shows these tiles `[rows, columns, H, W, C]` on grey."""
    expected = np.asarray(expected)
    rows, columns, height, width, channels = expected.shape
    canvas = np.pad(expected, [(0, 0), (0, 0), (1, 0), (1, 0), (0, 0)], constant_values=128)
    canvas = canvas.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), channels)
    canvas = np.pad(canvas, [(0, 1), (0, 1), (0, 0)], constant_values=128)
    factor = -(-min_side // min(canvas.shape[:2]))
    if isinstance(picture, str):
        with Image.open(picture) as image:
            picture = np.asarray(image)
    enlarged = np.kron(canvas, np.ones((factor, factor, 1), np.uint8))
    np.testing.assert_array_equal(np.atleast_3d(picture), enlarged)


def rows_of(images, columns):
    """Returns images row by row, `[rows, columns, ...]`; missing ones are grey like the background."""
    missing = np.full((-len(images) % columns, *images[0].shape), 128, np.uint8)
    return np.concatenate([np.stack(images), missing]).reshape(-1, columns, *images[0].shape)


def settings(directory):
    """Returns the content of its `settings.json`."""
    return storage.read_json(f"{directory}/settings.json")


def assert_others_are_refused(mode, config, workdir, others):
    """Asserts that `mode` refuses to add results if one of these fields has a different value.

    Args:
      mode: of `run_lib`.
      config: with which `mode` was run.
      workdir: of the run.
      others: from a field to another value of it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "load", lambda c, w: shared.Loaded(c, w, STEP, {}))
        for field, value in others.items():
            other = config.copy_and_resolve_references()
            other.update_from_flattened_dict({field: value})
            with pytest.raises(
                UserError, match=rf"with other settings: .*\b{re.escape(field)} is "
            ):
                mode(other, workdir)


def assert_ema(params, config, workdir):
    """Asserts that parameters are the EMA of the checkpoint, on every device."""
    ema = workdirs.load(config, workdir)[1].ema_params
    every = (jax.device_count(),)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.broadcast_to(b, every + b.shape)),
        params,
        ema,
    )


class Flow:
    """Replaces `run_flows.on_devices`; records the calls with their arguments by name.

    The bits of image i are 1 + i^2 / 2, with 10 + 4 i evaluations; latents are half their images.
    """

    calls: list[dict] = []  # noqa: RUF012

    def __init__(self, config, function):
        self.name = function.__name__

    def __call__(self, params, array, size, indices=None):
        told = {"params": params, "array": array, "size": size, "indices": indices}
        self.calls.append({"name": self.name} | told)
        if self.name == "bits_per_dim":
            i = np.asarray(indices)
            return 1 + i**2 / np.float32(2), 10 + 4 * i
        return array * {"encode": 0.5, "decode": 2.0}[self.name], np.zeros(len(array))


@pytest.fixture
def flows(monkeypatch):
    """Replaces the flows by `Flow`; returns its calls."""
    monkeypatch.setattr(run_flows, "on_devices", Flow)
    monkeypatch.setattr(Flow, "calls", [])
    return Flow.calls
