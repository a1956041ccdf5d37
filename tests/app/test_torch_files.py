"""Tests the authors' files in every layout, and damaged, hostile or invalid files."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax import convert, models, training
from ncsn_jax.app import torch_files
from ncsn_jax.errors import UserError
from tests.conftest import DATA
from tests.models.comparison import assert_close, compiled_quickly, nhwc

V1 = DATA / "ncsn_checkpoint_v1_legacy.pth"  # torch's old format, optimizer keys by id
V2 = DATA / "ncsnv2_checkpoint.pth"  # the new one, with EMA
PP = DATA / "ncsnpp_checkpoint.pth"  # from score_sde_pytorch: a dict whose EMA has no names
NCSNPP = models.NCSNpp(4, (1, 2), 1, (8,), 16)


def test_a_score_sde_file_is_read_completely(golden):
    torch = pytest.importorskip("torch")
    content = torch.load(PP, weights_only=False)
    g = golden("ncsnpp_checkpoint_io")
    trained = [
        name.removeprefix("module.") for name in json.loads(str(g["meta"]))["parameter_order"]
    ]
    found = torch_files.read(str(PP))
    adam = torch_files.read_adam(str(PP), found)
    assert (found.step, found.ema_decay, adam.count) == (3, 0.999, 3)
    rate = content["optimizer"]["param_groups"][0]["lr"]
    assert adam.hyperparameters["learning_rate"] == float(rate)
    assert type(found.optimizer["param_groups"][0]["lr"]) is float
    # Number 0 belongs to the frequencies, which are not trained.
    assert len(trained) == len(found.ema) - 1 == len(adam.first) - 1
    for i, name in enumerate(trained):
        moments = content["optimizer"]["state"][i + 1]
        np.testing.assert_array_equal(found.ema[name], content["ema"]["shadow_params"][i])
        np.testing.assert_array_equal(adam.first[name], moments["exp_avg"])
        np.testing.assert_array_equal(adam.second[name], moments["exp_avg_sq"])
    frequencies = "all_modules.0.W"
    np.testing.assert_array_equal(found.ema[frequencies], content["model"][f"module.{frequencies}"])
    assert not adam.first[frequencies].any() and not adam.second[frequencies].any()

    trees = [convert.from_torch(arrays, NCSNPP) for arrays in (found.model, found.ema)]
    arguments = nhwc(g["in/x"]), g["in/t"]
    network = compiled_quickly(NCSNPP.apply, trees[0], *arguments)
    for name, params in zip(("score", "score_ema"), trees, strict=True):
        assert_close(network(params, *arguments), nhwc(g[f"out/{name}"]), 5e-5)
    back = convert.to_torch(trees[0], NCSNPP)
    assert back.keys() == found.model.keys()
    # The ladder of the file is float64.
    np.testing.assert_allclose(back.pop("sigmas"), found.model["sigmas"], rtol=1e-6)
    assert all(np.array_equal(array, found.model[name]) for name, array in back.items())


def test_optimizer_steps_reproduce_the_file_of_the_authors(golden):
    """It runs three steps of the original script from its initial weights, with its batches and noise."""
    pytest.importorskip("torch")
    g = golden("checkpoints_io")
    model, ladder = models.NCSN(3, 10), jnp.asarray(g["in/v1/sigmas"])
    prefix = "in/v1/init_state/"
    initial = {k.removeprefix(prefix): v for k, v in g.items() if k.startswith(prefix)}
    params = convert.from_torch(initial, model)
    optimizer = training.make_optimizer(1e-3)
    opt_state = optimizer.init(params)

    def step(params, opt_state, x, sigma, noise):
        def loss(params):
            score = models.score_fn(model, params, ladder)(
                x + sigma[:, None, None, None] * noise, sigma
            )
            residual = sigma[:, None, None, None] * score + noise
            return 0.5 * jnp.mean(jnp.sum(jnp.square(residual), axis=(1, 2, 3)))

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    compiled = None
    for i in range(3):
        x, noise = (nhwc(g[f"in/v1/{name}_{i}"]) for name in ("x", "noise"))
        batch = x, ladder[g[f"in/v1/labels_{i}"]], noise
        compiled = compiled or compiled_quickly(step, params, opt_state, *batch)
        params, opt_state, value = compiled(params, opt_state, *batch)
        assert float(value) == pytest.approx(float(g["out/v1/losses"][i]), rel=1e-4)

    found = torch_files.read(str(V1))
    expected = convert.from_torch(found.model, model)
    difference = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).ravel(), params, expected)
    difference = np.concatenate(jax.tree.leaves(difference))
    # Where a gradient is zero up to rounding Adam follows its sign: a few weights move the other way.
    assert np.mean(difference < 1e-6) > 0.97 and difference.max() < 3 * 2.01e-3
    adam = torch_files.read_adam(str(V1), found)
    assert adam.count == 3
    for name, moments in (("mu", adam.first), ("nu", adam.second)):
        ours = np.concatenate([a.ravel() for a in jax.tree.leaves(optax.tree.get(opt_state, name))])
        theirs = jax.tree.leaves(convert.from_torch(moments, model))
        theirs = np.concatenate([a.ravel() for a in theirs])
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


class Harmful:
    """Would run a command when unpickled."""

    def __reduce__(self):
        import os

        return os.system, ("touch harmed",)


class Rebuilt:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


NUMPY_SCALAR = np.float64(1).__reduce__()[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(-3), -3),
        (np.float16(1), "is not a little-endian float64, float32 or int64"),
        (np.complex128(1), "is not a little-endian"),
        (np.datetime64(1, "s"), "is not a little-endian"),
        (Rebuilt(NUMPY_SCALAR, np.dtype(">f8"), b"12345678"), "is not a little-endian"),
        (Rebuilt(NUMPY_SCALAR, np.dtype([("a", "<f8")]), b"12345678"), "is not a little-endian"),
        (Rebuilt(NUMPY_SCALAR, np.dtype(object), b"12345678"), "is not a little-endian"),
        (Rebuilt(NUMPY_SCALAR, "f8", b"12345678"), "is not a little-endian"),
        (Rebuilt(NUMPY_SCALAR, np.dtype("<f8"), b"1234567"), "whose data are not 8 bytes"),
        (Rebuilt(NUMPY_SCALAR, np.dtype("<f8"), "12345678"), "whose data are not 8 bytes"),
        (Rebuilt(NUMPY_SCALAR, np.dtype("<f8")), "whose data are not 8 bytes"),
        (Rebuilt(NUMPY_SCALAR), "is not a little-endian"),
        (np.ones(1), r"would call numpy\._core\.multiarray\._reconstruct"),
        (Harmful(), r"would call \w+\.system"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_numpy_scalars_are_read_as_plain_numbers_or_refused(value, expected, options, tmp_path):
    torch = pytest.importorskip("torch")
    path = str(tmp_path / "file.pth")
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": {"a": torch.ones(1)}, "optimizer": {"lr": value}}, path, **options)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=f"file.pth is refused: .*{expected}"):
            torch_files.read(path)
    else:
        found = torch_files.read(path).optimizer["lr"]
        assert found == expected and type(found) is type(expected)
    assert set(torch.serialization.get_safe_globals()) == before


def test_scalars_written_by_numpy_1_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "file.pth"
    content = {"model": {"a": torch.ones(1)}, "step": np.int64(5)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    names = b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"
    data = path.read_bytes()
    assert names[0] in data
    path.write_bytes(data.replace(*names))
    assert torch_files.read(str(path)).step == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["ema"]["shadow_params"].pop(),
            "is a list of 155, expected a list of 156 tensors",
        ),
        (lambda c: c["ema"].pop("shadow_params"), "is NoneType, expected a list of 156 tensors"),
        (lambda c: c.update(ema=3), "is NoneType, expected a list of 156 tensors"),
        (lambda c: c["ema"].update(decay="x"), r"'decay' of its moving average must be in \[0, 1"),
        (lambda c: c["ema"].update(decay=float("nan")), r"'decay' .* must be in \[0, 1"),
        (
            lambda c: c["ema"]["shadow_params"].__setitem__(0, 1),
            "'all_modules.1.weight' of its mov",
        ),
        (lambda c: c.update(step=-1), "its step is -1, expected an integer"),
        (lambda c: c.update(model={}), "holds dict as its state dict, expected a state dict, "),
        (lambda c: c.update(model={"a": 1}), "entry 'a' of its state dict is int"),
    ],
)
def test_an_invalid_score_sde_file_is_reported_on_one_line(change, message, tmp_path):
    torch = pytest.importorskip("torch")
    content = torch.load(PP, weights_only=False)
    change(content)
    path = str(tmp_path / "file.pth")
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        torch_files.read(path)


def test_missing_torch_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UserError, match="can only be read with torch, which is missing: pip install"
    ):
        torch_files.read(str(V1))


def test_an_unsafe_torch_version_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.9.1+cpu"))
    with pytest.raises(
        UserError, match=r"cannot be read safely with torch 2.9.1\+cpu, which may execute code"
    ):
        torch_files.read(str(V1))


@pytest.mark.parametrize(
    "change",
    [
        lambda torch, c: c.__setitem__(1, torch.ones(3)),
        lambda torch, c: c[1].update(param_groups=[torch.ones(3)]),
        lambda torch, c: c[1]["state"].update({0: torch.ones(3)}),
        lambda torch, c: c[1]["param_groups"][0].update(lr=10**400),
    ],
)
def test_an_optimizer_that_is_not_adam_is_refused(change, tmp_path):
    torch = pytest.importorskip("torch")
    content = torch.load(V2, weights_only=True)
    change(torch, content)
    path = str(tmp_path / "file.pth")
    torch.save(content, path)
    with pytest.raises(UserError, match="holds an optimizer that is not Adam"):
        torch_files.read_adam(path, torch_files.read(path))


def test_a_moving_average_that_is_a_tensor_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = str(tmp_path / "file.pth")
    torch.save([{"a": torch.ones(1)}, None, 0, 0, torch.ones(3)], path)
    with pytest.raises(UserError, match="holds Tensor as its moving average"):
        torch_files.read(path)


def test_every_list_layout_and_the_simplified_dict_are_read(tmp_path):
    """Cases: [model, adam], and the same with [epoch, step, ema]; an empty average counts as none."""
    torch = pytest.importorskip("torch")
    path = str(tmp_path / "file.pth")
    model, average = {"module.a": torch.ones(1)}, {"a": torch.zeros(1)}

    def read(content):
        torch.save(content, path)
        found = torch_files.read(path)
        assert found.model["a"] == 1 and list(found.model) == ["a"] and found.ema_decay is None
        return found.optimizer, found.step, found.ema

    assert read(model) == read([model]) == (None, None, None)
    assert read([model, "adam"]) == ("adam", None, None)
    assert read([model, "adam", 7, 8]) == read([model, "adam", 7, 8, {}]) == ("adam", 8, None)
    assert read([model, "adam", 7, 8, None]) == ("adam", 8, None)
    assert read([model, "adam", 7, 8, average]) == ("adam", 8, {"a": np.zeros(1)})
    assert read({"model_state": model}) == (None, None, None)
    assert read({"model_state": model, "optimizer_state": "adam"}) == ("adam", None, None)
    assert read({"model": model}) == (None, None, None)
    ema = {"decay": 0.25, "shadow_params": [torch.zeros(1)]}
    torch.save({"model": model, "optimizer": "adam", "step": 2**31 - 1, "ema": ema}, path)
    found = torch_files.read(path)
    assert (found.optimizer, found.step, found.ema_decay) == ("adam", 2**31 - 1, 0.25)
    torch.save([model, "adam", 7, 2**31], path)
    with pytest.raises(UserError, match="its step is 2147483648, expected an integer from 0"):
        torch_files.read(path)
    torch.save([model, "adam", 7, True], path)
    with pytest.raises(UserError, match="its step is True, expected"):
        torch_files.read(path)


def test_moments_are_matched_by_parameter_number(tmp_path):
    """They follow `params`; a parameter without a state gets zeros, and the largest count holds."""
    torch = pytest.importorskip("torch")
    moments = lambda step, value: {
        "step": torch.tensor(float(step)),
        "exp_avg": torch.full((1,), value),
        "exp_avg_sq": torch.full((1,), 10 * value),
    }
    group = {"params": [70, 30, 50], "lr": 0.1, "betas": (0.2, 0.3), "eps": 0.4}
    group |= {"weight_decay": 0.5, "amsgrad": False}
    adam = {"param_groups": [group], "state": {30: moments(5, 1.0), 50: moments(4, 2.0)}}
    path = str(tmp_path / "file.pth")
    torch.save([{name: torch.ones(1) for name in ("a", "sigmas", "b", "c")}, adam], path)
    found = torch_files.read_adam(path, torch_files.read(path))
    assert found.count == 5
    assert found.first == {"a": 0, "b": 1, "c": 2} and found.second == {"a": 0, "b": 10, "c": 20}
    assert found.hyperparameters == {
        "learning_rate": 0.1,
        "beta1": 0.2,
        "beta2": 0.3,
        "eps": 0.4,
        "weight_decay": 0.5,
    }
