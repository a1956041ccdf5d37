"""Tests the operators and measurements of `--mode=restore`, and every refusal."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import digits_vp
from ncsn_jax import inverse, sampling, sde
from ncsn_jax._random import Stream
from ncsn_jax.app import build, restoration, samplers, schema
from ncsn_jax.errors import UserError
from tests.recording import draw
from tests.running import load_config, load_diffusion_config

IMAGES = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype(np.float32)


def make(**fields):
    """Returns a configuration of coloured images."""
    named = {n if "." in n else f"restore.{n}": value for n, value in fields.items()}
    return load_config(**{"data.channels": 3} | named)


def by_hand(operator, x, masks):
    """Returns A x in float64."""
    x = x.astype(float)
    if operator == "downsample":
        return x.reshape(-1, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    if operator == "grey":
        return x.mean(axis=-1, keepdims=True)
    if operator == "mask":
        return np.where(masks[..., None], x, 0)
    if operator == "fourier":
        found = np.fft.fft2(x, axes=(1, 2), norm="ortho")
        found = np.where(masks[..., None], found, 0)
        return np.stack([found.real, found.imag], axis=-1)
    weights = np.exp(-0.5 * (np.arange(-3, 4) / 1.0) ** 2)
    weights /= weights.sum()
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    rows = sum(w * padded[:, i : i + 8] for i, w in enumerate(weights))
    return sum(w * rows[:, :, i : i + 8] for i, w in enumerate(weights))


@pytest.mark.parametrize("operator", restoration.OPERATORS)
def test_measurements_are_of_images_in_their_range_with_the_noise_of_their_index(operator):
    quiet = make(operator=operator, noise=0.0)
    exact = restoration.measure(quiet, IMAGES)
    np.testing.assert_allclose(exact.y, by_hand(operator, IMAGES, exact.masks), atol=1e-6)
    loud = make(operator=operator, noise=0.1)
    noisy = restoration.measure(loud, IMAGES)
    shown = (
        True if exact.masks is None else exact.masks.reshape(3, 8, 8, *(1,) * (exact.y.ndim - 3))
    )
    observed = np.broadcast_to(shown, exact.y.shape)
    np.testing.assert_array_equal(exact.observed, observed)
    z = (noisy.y - exact.y)[observed] / 0.1
    assert abs(np.mean(z**2) - 1) < 5 * np.sqrt(2 / z.size) and not noisy.y[~observed].any()
    fewer = restoration.measure(loud, IMAGES[:2])
    np.testing.assert_array_equal(fewer.y, noisy.y[:2])
    same = restoration.measure(loud, IMAGES[[0, 0]])
    assert np.mean(same.y[0] == same.y[1]) < 1 - 0.9 * observed.mean()
    loud.seed = 5
    assert np.mean(restoration.measure(loud, IMAGES).y == noisy.y) < 1 - 0.9 * observed.mean()

    # Another machine rounds otherwise, and continues.
    assert noisy._replace(y=exact.y).settings(IMAGES) == noisy.settings(IMAGES)
    assert noisy.settings(IMAGES) != noisy.settings(IMAGES + 1)

    # The truth is a sample of the exact posterior: its residual is the noise.
    chi_square = noisy.chi_square(IMAGES[:, None])
    assert chi_square.shape == (3, 1)
    np.testing.assert_allclose(np.mean(chi_square), np.mean(z**2), rtol=0.02)
    twice = np.stack([IMAGES, IMAGES + 1], axis=1)
    both = noisy.chi_square(twice)
    apart = noisy.chi_square(twice[:, 1:])
    np.testing.assert_allclose(both, np.concatenate([chi_square, apart], axis=1), rtol=1e-4)


@pytest.mark.parametrize("operator", restoration.OPERATORS)
def test_measurements_are_converted_to_the_range_of_the_sde(operator):
    """A (2 x - 1) is 2 y - A 1; the score in [-1, 1] is half of that in [0, 1]."""
    config = load_diffusion_config(digits_vp, **{"sampling.num_steps": 30})
    config.data.channels, config.restore.operator, config.restore.noise = 3, operator, 0.0
    assert config.data.centered
    measured = restoration.measure(config, IMAGES)
    config.restore.noise = 0.1
    known = (*measured.known, "classes")
    made, y, noise = restoration.condition(config, measured.operator_of, known)
    np.testing.assert_allclose(made.apply(2 * IMAGES - 1), y, atol=2e-6)
    assert noise == 0.2

    def centred(x, sigma):
        return -x / (0.5 + sigma[:, None, None, None] ** 2)

    def unit(x, sigma):
        return 2 * centred(2 * x - 1, 2 * sigma)

    x, sigma = IMAGES[::-1] + 0.1, jnp.asarray([0.02, 0.3, 2.0])
    found = []
    for score_fn, x_, s, of in ((centred, 2 * x - 1, 2 * sigma, 1), (unit, x, sigma, 2)):
        config.data.centered = of == 1
        config.restore.method = "pigdm"
        given, _ = samplers._posterior_score_fns(
            config, measured.operator_of, lambda *_, f=score_fn: (f, None), None, measured.known
        )
        found.append(np.asarray(given(x_, s)) * (2 / of))
    np.testing.assert_allclose(
        *found, rtol=2e-3, atol=2e-3 * np.abs(found[0]).max(axis=(1, 2, 3)).min()
    )


STD = 0.6


def closed_form(x, sigma, y, noise):
    """Returns the score of data N(0, STD^2) given the means of their 2 x 2 blocks."""
    shrink = STD**2 / (STD**2 + sigma**2)
    variance = noise**2 + shrink * sigma**2 / 4
    means = x.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    weighted = (y - shrink * means) / variance
    return -x / (STD**2 + sigma**2) + shrink * np.kron(weighted, np.ones((1, 2, 2, 1))) / 4


@pytest.mark.parametrize("method", schema.METHODS)
def test_every_sampler_has_the_score_given_the_measurements(method, record, monkeypatch):
    """The stand-ins for the samplers return the score at their start."""
    config = load_diffusion_config(**{"sampling.method": method, "restore.noise": 0.1})
    process = build.make_sde(config)

    def score(x, sigma):
        return -x / (STD**2 + sigma**2)[:, None, None, None]

    pair = score, sde.from_sigma_score(process, score)
    monkeypatch.setattr(build, "make_score_fn", lambda config, params: pair)
    by_time = method in ("predictor_corrector", "probability_flow")
    at = jnp.full(1 if method == "probability_flow" else 2, 0.25)
    info = sampling.DPMSolverInfo if method == "dpm_solver" else sampling.SamplerInfo

    def stand_in(score_fn, x, **_):
        made = score_fn(x, at)
        if method == "annealed_langevin":
            return made
        return made, info(*[jnp.zeros(len(x), jnp.int32)] * len(info._fields))

    record.watch(sampling, method, stand_in)
    y = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 4, 4, 1)), jnp.float32)
    x, found = draw(config, Stream.RESTORATION, y)
    x, found = (a[0] if isinstance(a, tuple) else a for a in (x, found))
    sigma = float(process.std(at)[0]) if by_time else 0.25
    expected = closed_form(np.asarray(x, float), sigma, np.asarray(y, float), 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("operator", "method"),
    list(zip(restoration.OPERATORS, (*inverse.METHODS, "mmps"), strict=True)),
)
def test_the_fields_are_the_arguments_of_the_posterior(operator, method, record):
    """The tiny network runs under every method in the tests of the mode."""
    config = load_diffusion_config(
        digits_vp, **{"sampling.num_steps": 30, "sampling.method": "heun"}
    )
    config.restore.update(operator=operator, method=method, noise=0.2)
    measured = restoration.measure(config, IMAGES[:2, ..., :1])
    record.watch(inverse, "posterior_score", lambda score_fn, **_: score_fn)
    draw(config, Stream.RESTORATION, *measured.known)
    (call,) = record.calls["posterior_score"]
    assert (call["method"], call["noise"], call["data_std"]) == (method, 0.4, 1.0)
    expected = restoration.condition(config, measured.operator_of, measured.known)
    np.testing.assert_array_equal(call["y"], expected[1])
    x = IMAGES[1:, ..., :1]
    np.testing.assert_array_equal(call["operator"].apply(x), expected[0].apply(x))


def kernel(**fields):
    """Returns the kernel of 'blur' for images of 8 x 8."""
    return restoration._kernel(make(operator="blur", **fields))


def test_a_normal_kernel_has_six_standard_deviations_or_fits_the_image():
    at = np.arange(-3, 4)
    expected = np.exp(-0.5 * (at[:, None] ** 2 + at**2))
    np.testing.assert_allclose(kernel(kernel="1.0"), expected / expected.sum(), rtol=1e-5)
    assert kernel(kernel="0.5").shape == (5, 5) and kernel(kernel="10").shape == (15, 15)
    unit = kernel(kernel="0.01")
    assert unit[1, 1] == unit.sum() == 1


def test_a_kernel_of_a_file_must_fit(tmp_path):
    path = str(tmp_path / "kernel.npy")
    np.save(path, np.arange(3.0)[None])
    np.testing.assert_array_equal(kernel(kernel=path), [[0, 1, 2]])
    for saved, message in (
        (np.ones((2, 3)), r"kernel='.*' has shape \(2, 3\), but must be \[K, L\] with odd sides"),
        (np.ones(3), r"has shape \(3,\), but must be \[K, L\]"),
        (
            np.ones((17, 1)),
            r"has shape \(17, 1\), but must be at most \[15, 15\] for images of 8 x",
        ),
        (np.full((1, 1), np.nan), "must hold finite numbers"),
        (np.full((1, 1), "a"), "must hold finite numbers"),
    ):
        np.save(path, saved)
        with pytest.raises(UserError, match=message):
            kernel(kernel=path)
    (tmp_path / "kernel.npy").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"restore.kernel='.*' cannot be read as an array"):
        kernel(kernel=path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 3.0}, "factor=3.0 must be an integer that divides the images' sides, 8 and 8"),
        (
            {"factor": 2.5, "data.image_size": 20},
            "factor=2.5 must be an integer that divides the images' sides, 20 and 20",
        ),
        (
            {"operator": "blur", "kernel": "x"},
            "kernel='x' must be a number of pixels from 0.01 to 1000, or FILE.npy",
        ),
        ({"operator": "blur", "kernel": "nan"}, "kernel='nan' must be a number of pixels"),
        ({"operator": "blur", "kernel": "0"}, "kernel='0' must be a number of pixels"),
        (
            {"operator": "fourier", "mask": "left"},
            "mask='left' must be 'random' or FILE.npy for operator 'fourier'",
        ),
        (
            {"operator": "mask", "measurements": "y.npy"},
            "mask='random' must be a file for config.restore.measurements",
        ),
        (
            {"operator": "mask", "measurements": "y.npy", "mask": "box"},
            "mask='box' must be a file for config.restore.measurements",
        ),
        (
            {"measurements": "y.npy", "images": "x.npy"},
            "images='x.npy' must be '' for config.restore.measurements",
        ),
        (
            {"method": "dps", "noise": 0.0},
            "noise=0 must be above 0 for config.restore.method='dps'",
        ),
    ],
)
def test_what_cannot_be_restored_is_refused(fields, message):
    with pytest.raises(UserError, match=f"config.restore.{message}"):
        samplers.check(make(**fields), Stream.RESTORATION)
    schema.check(make(**fields))  # a run may be trained


def test_masks_of_pixels_are_those_of_inpainting_or_of_a_file(tmp_path):
    white = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    picture, path = str(tmp_path / "mask.png"), str(tmp_path / "mask.npy")
    Image.fromarray(white).save(picture)
    np.save(path, white >= 100)
    left = np.broadcast_to(np.arange(8) < 4, (8, 8))
    for name, expected in (("left", left), (picture, white >= 128), (path, white >= 100)):
        found = restoration.measure(make(operator="mask", mask=name), IMAGES)
        np.testing.assert_array_equal(found.masks, [expected] * 3)
    np.save(path, np.zeros((8, 8), bool))
    for operator, name in (("mask", path), ("fourier", path)):
        with pytest.raises(UserError, match="mask='.*' must measure something of every image"):
            restoration.measure(make(operator=operator, mask=name), IMAGES)
    message = (
        "config.restore.mask='no.png' must be 'random', 'left', 'box', FILE.npy or an image file"
    )
    with pytest.raises(UserError, match=message):
        restoration.measure(make(operator="mask", mask="no.png"), IMAGES)


@pytest.mark.parametrize("operator", restoration.OPERATORS)
def test_measurements_of_a_file_are_those_that_were_saved(operator, tmp_path, caplog):
    """The file of a restoration, with its random masks, gives the same measurements."""
    config = make(operator=operator, factor=2.0)
    measured = restoration.measure(config, IMAGES)
    path = str(tmp_path / "restored.npz")
    y = np.array(measured.y, float)
    if measured.masks is not None:
        assert not measured.observed.all()
        y[~measured.observed] = np.nan
    np.savez(path, measurements=y, **({} if measured.masks is None else {"masks": measured.masks}))
    config.restore.update(measurements=f"{path}:measurements", mask=f"{path}:masks")
    samplers.check(config, Stream.RESTORATION)
    found = restoration.load(config)
    for one, two in zip(found.known, measured.known, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not caplog.messages
    config.restore.num_images = 2
    assert len(restoration.load(config).y) == 2
    (message,) = caplog.messages
    assert message.endswith("holds more than config.restore.num_images=2")
    if operator == "fourier":
        np.save(tmp_path / "complex.npy", y[..., 0] + 1j * y[..., 1])
        config.restore.measurements = str(tmp_path / "complex.npy")
        np.testing.assert_array_equal(restoration.load(config).y, measured.y[:2])


@pytest.mark.parametrize(("operator", "most"), [("downsample", 1), ("blur", 1), ("fourier", 8)])
def test_measurements_in_other_units_are_named(operator, most, tmp_path, caplog):
    path = str(tmp_path / "y.npz")
    np.savez(
        path, y=255 * restoration.measure(make(operator=operator), IMAGES).y, m=np.ones((8, 8))
    )
    restoration.load(make(operator=operator, measurements=f"{path}:y", mask=f"{path}:m"))
    (message,) = caplog.messages
    assert message.endswith(f"but those of images in [0, 1] are at most {most}")


@pytest.mark.parametrize(
    ("operator", "y", "message"),
    [
        (
            "grey",
            np.ones((2, 8, 8, 3)),
            r"has shape \(2, 8, 8, 3\), but must be \[N, 8, 8, 1\] for",
        ),
        ("downsample", np.ones((0, 4, 4, 3)), r"must be \[N, 4, 4, 3\] .* and not empty"),
        ("mask", np.ones(()), r"has shape \(\), but must be \[N, 8, 8, 3\]"),
        ("fourier", np.ones((2, 8, 8, 3)), r"must be \[N, 8, 8, 3, 2\] for .*operator='fourier'"),
        ("grey", np.ones((2, 8, 8, 1), np.uint8), "has type uint8, but must be floating point, of"),
        ("grey", np.ones((2, 8, 8, 1), complex), "has type complex128, but must be floating"),
        ("grey", np.full((2, 8, 8, 1), 1e200), "holds a non-finite value in measurement 0"),
        ("mask", np.stack([np.ones((8, 8, 3)), np.full((8, 8, 3), np.nan)]), "in measurement 1"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(operator, y, message, tmp_path):
    path, mask = (str(tmp_path / f"{name}.npy") for name in ("y", "mask"))
    np.save(path, y)
    np.save(mask, np.eye(8))
    config = make(operator=operator, measurements=path, mask=mask)
    with pytest.raises(UserError, match=message):
        restoration.load(config)


def test_measurements_that_are_not_an_array_are_refused(tmp_path):
    for name, message in (
        ("y.png", "must be FILE.npy"),
        ("no.npy", "cannot be read: No such file"),
    ):
        config = make(measurements=name)
        with pytest.raises(UserError, match=f"config.restore.measurements='{name}' {message}"):
            restoration.load(config)
