"""The worked examples of docs/extending.md, run as they stand there."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ncsn_jax import sampling
from ncsn_jax._random import Stream
from ncsn_jax.app import build, run_config, samplers, schema
from ncsn_jax.app.data import sources
from tests import tiny
from tests.app.conftest import close_logs
from tests.running import python_of

SAMPLER, TEST_OF_SAMPLER, MAKER, NETWORK, DATASET, CHOICE, MODE = python_of("docs/extending.md")


def names_of(code, **names):
    exec(code, names)
    return names


def test_every_example_has_fewer_than_60_lines():
    for code in (SAMPLER + TEST_OF_SAMPLER + MAKER, NETWORK, DATASET + CHOICE, MODE):
        assert len(code.splitlines()) < 60


def test_the_sampler_has_second_order_and_runs_in_parts(monkeypatch):
    midpoint = names_of(SAMPLER)["midpoint"]
    monkeypatch.setattr(sampling, "midpoint", midpoint, raising=False)
    (test,) = [f for name, f in names_of(TEST_OF_SAMPLER).items() if name.startswith("test_")]
    test()

    for table in (samplers._FIELDS, samplers._MAKERS):
        monkeypatch.setitem(table, "midpoint", None)
    methods = (*schema.METHODS, "midpoint")
    monkeypatch.setitem(samplers._METHODS, Stream.SAMPLES, methods)
    names_of(MAKER, **vars(samplers))
    config = tiny.get_config()
    config.sampling.method, config.sampling.num_steps = "midpoint", 9
    made = samplers.make(config)
    params = build.make_init(config)(jax.random.key(0)).params
    keys = jax.random.split(jax.random.key(1), 4)
    x = made.start(keys)
    whole, _ = made.advance(keys, params, x, (0, 8))
    half, _ = made.advance(keys, params, x, (0, 4))
    in_parts, _ = made.advance(keys, params, half, (4, 8))
    np.testing.assert_allclose(in_parts, whole, rtol=1e-5, atol=1e-6)


def test_the_network_begins_with_a_score_of_zero_and_can_be_trained(monkeypatch):
    monkeypatch.setitem(build.MODELS, "mine", None)
    config = names_of(NETWORK)["get_config"]()
    schema.check(config, num_devices=1)
    state = build.make_init(config)(jax.random.key(0))
    images = jnp.zeros((4, 8, 8, 1))
    score_fn, _ = build.make_score_fn(config, state.params)
    np.testing.assert_array_equal(score_fn(images, jnp.full(4, 0.1)), images)
    batch = np.zeros((1, 4, 8, 8, 1), np.uint8)
    after, metrics = jax.eval_shape(build.make_train_steps(config), state, batch, np.uint32(0))
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics.loss.shape == (1,)


def test_the_dataset_gives_discs_decoded_once_or_streamed():
    names = names_of(DATASET, **vars(sources))
    body = "".join(f"    {line}\n" for line in CHOICE.splitlines())
    exec(f"def load(dataset, image_size, cache_bytes):\n{body}", names)
    cached, streamed = (names["load"]("discs", 16, size) for size in (10**9, 0))
    assert cached.shape == (10_000, 16, 16, 1) and cached.source is None
    assert streamed.source is not None
    np.testing.assert_array_equal(cached[5:20], streamed[5:20])
    area = cached[:1000].mean() / 255
    # The mean of pi r^2 over radii from 0.1 to 0.3.
    assert abs(area / (np.pi * (0.3**3 - 0.1**3) / 0.6) - 1) < 0.1


def test_the_mode_shows_images_with_noise_and_what_the_score_makes_of_them(workdir, monkeypatch):
    """With the score of data that are all 0.25, every denoised pixel is 0.25."""

    def score_fn(x, sigma):
        return (0.25 - x) / sigma[:, None, None, None] ** 2

    monkeypatch.setattr(build, "make_score_fn", lambda config, params: (score_fn, None))
    names_of(MODE)["denoise"](run_config.get_config(str(workdir)), str(workdir))
    close_logs()
    picture = np.asarray(Image.open(workdir / "denoising" / "step_60" / "denoised.png"), float)
    scale = picture.shape[0] // (9 * 8 + 1)  # eight rows of 8 pixels, with lines between
    tiles = picture[::scale, ::scale][1:, 1:].reshape(8, 9, 3, 9)[:, :8, :, :8]
    clean, noisy, denoised = np.moveaxis(tiles, 2, 0)
    assert 1 < abs(noisy - clean).mean() < 255 * 0.04  # sigma is 0.04, and pixels are clipped
    np.testing.assert_allclose(denoised, 64, atol=1)
