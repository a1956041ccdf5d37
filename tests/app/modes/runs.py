"""Runs with a checkpoint of random parameters, and what the library makes of their network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_vp
from ncsn_jax import images, models, sde
from ncsn_jax._random import example_keys, stream_key
from ncsn_jax.app import build, checkpoints, pictures, workdirs
from tests import tiny

SEED, STEP, SHAPE = 7, 4, (8, 8, 1)

SMALL = {
    "seed": SEED,
    "training.batch_size": 8,
    "sampling.num_samples": 5,
    "sampling.batch_size": 3,  # neither a divisor of the samples nor a multiple of the devices
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
    """A network of the time under the VP SDE, on images in [-1, 1]."""
    config = digits_vp.get_config()
    config.update_from_flattened_dict(SMALL | DIFFUSION | changes)
    return config


def ladder_config(**changes):
    """A network of a level's index, without an SDE, on images in [0, 1]."""
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
    """TinyDiffusion in the place of NCSN++."""
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
ladder_run = run_fixture(ladder_config, scale=0.3)  # so that the samples do not leave [0, 1]


def library(config, workdir):
    """Returns the SDE, and the score functions of sigma and of time, of the checkpoint's EMA."""
    params = jax.tree.map(jnp.asarray, workdirs.load_newest(config, workdir)[1].ema_params)
    model, options = build.make_model(config), config.model
    if config.training.sde == "none":
        process = sde.VE(options.sigma_end, options.sigma_begin)
        sigma_score_fn = models.score_fn(model, params, build.make_sigmas(config))
        return process, sigma_score_fn, sde.from_sigma_score(process, sigma_score_fn)
    process = {"vp": sde.VP, "subvp": sde.SubVP}[config.training.sde](0.1, 15.0)
    time_score_fn = models.time_score_fn(model, params, process)
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
    """To one grey level, where rounding differs, on images that are neither black nor white."""
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
    """Puts the score of such data in the place of the network's."""
    process = sde.VP(0.1, 15.0)

    def score(x, sigma):
        return -x / (Gaussian.STD**2 + sigma**2)[:, None, None, None]

    time_score_fn = sde.from_sigma_score(process, score)
    monkeypatch.setattr(build, "make_score_fn", lambda config, params: (score, time_score_fn))
    return Gaussian(process, time_score_fn)
