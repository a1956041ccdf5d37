"""PyTorch's files and names: the round trip of parameters, and what becomes of a file that does not fit."""

import copy
import json
import pickle
import re
import subprocess
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import mnist, ncsnv2_cifar10, simplified_celeba
from configs.score_sde import ve_cifar10_ncsnpp_continuous
from ncsn_jax import convert, models, training
from ncsn_jax.app import build, torch_files, torch_runs
from ncsn_jax.app import workdirs as work_directories
from ncsn_jax.errors import UserError
from tests.conftest import DATA
from tests.models.comparison import assert_close, compiled_quickly, nhwc, run
from tests.running import ROOT, environment, quickly_compiling

V1 = DATA / "ncsn_checkpoint_v1_legacy.pth"  # torch's old format, optimizer keys by id
V2 = DATA / "ncsnv2_checkpoint.pth"  # the new one, with EMA
PP = DATA / "ncsnpp_checkpoint.pth"  # of score_sde_pytorch: a dict, with an EMA without names
NCSNPP = models.NCSNpp(4, (1, 2), 1, (8,), 16)

NETWORKS = {
    "ncsn_v1_28": lambda g: models.NCSN(8, 10),
    "ncsn_v1_32": lambda g: models.NCSN(8, 10),
    "ncsnv2_32": lambda g: models.NCSNv2(8, g["state/sigmas"]),
    "ncsnv2_deeper_32": lambda g: models.NCSNv2Deeper(4, g["state/sigmas"]),
    "ncsnv2_deepest_32": lambda g: models.NCSNv2Deepest(4, g["state/sigmas"]),
    "ncsn_simple_16": lambda g: models.SimplifiedNCSN(8, g["in/sigmas"]),
}


def v1_config(**changes):
    config = mnist.get_config()
    config.update_from_flattened_dict({"model.features": 3, "training.batch_size": 8} | changes)
    return config


def v2_config(**changes):
    config = ncsnv2_cifar10.get_config()
    config.update_from_flattened_dict(
        {"model.features": 3, "model.num_levels": 20, "training.batch_size": 8} | changes
    )
    return config


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_is_bit_identical(golden, name):
    g = golden(name)
    model = NETWORKS[name](g)
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    back = convert.to_torch(convert.from_torch(state, model), model)
    assert back.keys() == state.keys()
    for key, array in state.items():
        assert back[key].dtype == array.dtype and back[key].flags.c_contiguous
        np.testing.assert_array_equal(back[key], array)


def test_a_ladder_other_than_the_models_is_refused(golden):
    g = golden("ncsnv2_32")
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    with pytest.raises(ValueError, match=r"sigmas has shape \[\d+\], expected \[7\]"):
        convert.from_torch(state, models.NCSNv2(8, np.ones(7, np.float32)))
    with pytest.raises(ValueError, match=r"sigmas\[0\] is .*, expected .*\(both of shape"):
        convert.from_torch(state, models.NCSNv2(8, 2 * g["state/sigmas"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update({"end_conv.bias": np.ones(3, complex)}),
            "is of type complex128, expected",
        ),
        (
            lambda s: s.update({"end_conv.bias": np.full(3, 0.1)}),
            "values that are no finite float32",
        ),
        (lambda s: s.update({"end_conv.bias": np.full(3, np.nan)}), "values that are no finite"),
        (
            lambda s: s.update({"begin_conv.weight": np.ones(3)}),
            r"has shape \[3\], expected \[8, 3",
        ),
        (lambda s: s.update({"module.end_conv.bias": np.ones(3)}), "there twice, with 'module.'"),
    ],
)
def test_values_that_would_not_be_the_same_are_refused(golden, change, message):
    g = golden("ncsn_v1_32")
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    change(state)
    with pytest.raises(ValueError, match=message):
        convert.from_torch(state, models.NCSN(8, 10))


def test_parameters_of_another_network_are_not_written(golden):
    g = golden("ncsn_v1_32")
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    params = convert.from_torch(state, models.NCSN(8, 10))
    other = models.SimplifiedNCSN(8, np.ones(10, np.float32))
    with pytest.raises(ValueError, match="normalizer/embedding|SimplifiedNCSN expects"):
        convert.to_torch(params, other)
    with pytest.raises(ValueError, match=r"NCSN expects"):
        convert.to_torch(params["params"], models.NCSN(8, 10))
    with pytest.raises(ValueError, match="model must be a network of ncsn_jax.models, got Dense"):
        convert.to_torch(params, nn.Dense(3))
    with pytest.raises(ValueError, match="state_dict must map names to arrays, got list"):
        convert.from_torch([state], models.NCSN(8, 10))


def test_plain_normalization_has_the_originals_names_and_a_table_of_two_thirds():
    model = models.NCSN(4, 10, "instance")
    image, level = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, int)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, level)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), shapes)
    state = convert.to_torch(params, model)
    assert state["normalizer.embed.weight"].shape == (10, 8)
    assert (
        state.keys()
        == convert.to_torch(
            jax.tree.map(
                lambda shape: np.zeros(shape.shape, np.float32),
                traverse_util.unflatten_dict(convert.parameter_shapes(models.NCSN(4, 10), 1)),
            ),
            models.NCSN(4, 10),
        ).keys()
    )
    back = convert.from_torch(state, model)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    # Levels have tables of their own.
    levels = np.array([0, 9], np.int32)
    first, last = run(model.apply, params, np.full((2, 8, 8, 1), 0.3, np.float32), levels)
    assert not np.allclose(first, last)


def test_optimizer_steps_are_those_that_led_to_the_authors_file(golden):
    """Three steps of the original script from its initial weights, with its batches and noise."""
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


@pytest.mark.parametrize(("path", "make"), [(V1, v1_config), (V2, v2_config)])
def test_a_work_directory_holds_all_of_the_file(golden, path, make, tmp_path):
    pytest.importorskip("torch")
    config, workdir = make(), str(tmp_path / "run")
    message = torch_runs.import_checkpoint(config, str(path), workdir)
    assert str(path) in message and "note" not in message
    step, state = work_directories.load_newest(config, workdir)
    found = torch_files.read(str(path))
    model = build.make_model(config)
    version = "v1" if path == V1 else "v2"
    assert (step, int(state.step)) == ((3, 3) if version == "v1" else (5000, 5000))
    assert int(optax.tree.get(state.opt_state, "count")) == 3
    g = golden("checkpoints_io")
    x, y = nhwc(g[f"in/{version}/x"]), g[f"in/{version}/y"]
    trees = {"score": (state.params, found.model)}
    if version == "v2":
        trees["score_ema"] = (state.ema_params, found.ema)
    network = compiled_quickly(model.apply, state.params, x, y)
    for name, (params, arrays) in trees.items():
        assert_close(network(params, x, y), nhwc(g[f"out/{version}/{name}"]))
        back = convert.to_torch(params, model)
        assert all(np.array_equal(back[key], value) for key, value in arrays.items())
    adam = torch_files.read_adam(str(path), found)
    for name, moments in (("mu", adam.first), ("nu", adam.second)):
        back = convert.to_torch(optax.tree.get(state.opt_state, name), model)
        assert all(np.array_equal(back[key], value) for key, value in moments.items())
    with pytest.raises(UserError, match="holds a run already"):
        torch_runs.import_checkpoint(config, str(path), workdir)

    target = tmp_path / "weights.npz"
    torch_runs.export(config, workdir, str(target))
    with np.load(target) as arrays:
        names = {f"model/module.{name}" for name in found.model}
        names |= {f"ema/{name}" for name in found.ema or {}}
        assert set(arrays.files) == names
        np.testing.assert_array_equal(
            arrays["model/module.end_conv.weight"], found.model["end_conv.weight"]
        )
    with pytest.raises(UserError, match=r"weights.npz' is there already"):
        torch_runs.export(config, workdir, str(target))


def test_a_file_of_score_sde_is_read_whole(golden):
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
    # Number 0 is that of the frequencies, which are not trained.
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


def test_a_work_directory_of_ncsnpp_and_back(tmp_path):
    pytest.importorskip("torch")
    config = ve_cifar10_ncsnpp_continuous.get_config()
    config.update_from_flattened_dict(
        {
            "data.image_size": 16,
            "model.features": 4,
            "ncsnpp.ch_mult": (1, 2),
            "ncsnpp.num_res_blocks": 1,
            "ncsnpp.attn_resolutions": (8,),
            "optim.warmup_steps": 0,
        }
    )
    # The rate of the file is that of step 4002 of a warm-up of 5000, of which there is none here.
    message = torch_runs.import_checkpoint(config, str(PP), str(tmp_path / "run"))
    assert "with learning_rate 0.00016008; training" in message and message.count("note") == 1
    found = torch_files.read(str(PP))
    step, state = work_directories.load_newest(config, str(tmp_path / "run"))
    adam = torch_files.read_adam(str(PP), found)
    trees = {"mu": adam.first, "nu": adam.second, "ema": found.ema}
    for name, arrays in trees.items():
        tree = state.ema_params if name == "ema" else optax.tree.get(state.opt_state, name)
        back = convert.to_torch(tree, NCSNPP)
        assert all(np.array_equal(back[key], array) for key, array in arrays.items()), name
    assert step == 3 and int(optax.tree.get(state.opt_state, "count")) == 3

    torch_runs.export(config, str(tmp_path / "run"), str(tmp_path / "weights.npz"))
    with np.load(tmp_path / "weights.npz") as arrays:
        assert set(arrays.files) == {f"model/module.{name}" for name in found.model} | {
            f"ema/{name}" for name in found.ema
        }
        ladder = arrays["model/module.sigmas"]
        np.testing.assert_allclose(ladder, found.model["sigmas"], rtol=1e-6)

    config.update_from_flattened_dict({"model.ema_decay": 0.99, "model.num_levels": 500})
    config.optim.learning_rate, config.optim.warmup_steps = 0.00016008, 2
    message = "\n".join(convert._make_state(config, str(PP), found)[1])
    assert "learning_rate" not in message  # reached after two of the three steps
    assert "its moving average was of decay 0.999; training would go on with" in message
    assert "with another ladder than config.model describes: sigmas has shape [1000]" in message


def test_the_documented_commands_convert_and_sample(tmp_path):
    pytest.importorskip("torch")
    workdir = tmp_path / "run"
    shared = ["--config=configs/mnist.py", "--config.model.features=3", f"--workdir={workdir}"]
    shared += ["--config.data.dataset=digits", "--config.data.image_size=8"]
    shared += ["--config.sampling.steps_per_level=1", "--config.sampling.num_samples=2"]
    shared += ["--config.sampling.batch_size=2"]

    def run(*command):
        result = subprocess.run(
            [sys.executable, *command, *shared],
            cwd=ROOT,
            env=quickly_compiling(1),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr

    run("-m", "ncsn_jax.convert", str(V1))
    run("main.py", "--mode=sample")
    assert np.load(workdir / "samples/step_3/samples.npz")["samples"].shape == (2, 8, 8, 1)


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
        (np.float16(1), "is no little-endian float64, float32 or int64"),
        (np.complex128(1), "is no little-endian"),
        (np.datetime64(1, "s"), "is no little-endian"),
        (Rebuilt(NUMPY_SCALAR, np.dtype(">f8"), b"12345678"), "is no little-endian"),
        (Rebuilt(NUMPY_SCALAR, np.dtype([("a", "<f8")]), b"12345678"), "is no little-endian"),
        (Rebuilt(NUMPY_SCALAR, np.dtype(object), b"12345678"), "is no little-endian"),
        (Rebuilt(NUMPY_SCALAR, "f8", b"12345678"), "is no little-endian"),
        (Rebuilt(NUMPY_SCALAR, np.dtype("<f8"), b"1234567"), "whose data are not 8 bytes"),
        (Rebuilt(NUMPY_SCALAR, np.dtype("<f8"), "12345678"), "whose data are not 8 bytes"),
        (Rebuilt(NUMPY_SCALAR, np.dtype("<f8")), "whose data are not 8 bytes"),
        (Rebuilt(NUMPY_SCALAR), "is no little-endian"),
        (np.ones(1), r"would call numpy\._core\.multiarray\._reconstruct"),
        (Harmful(), r"would call \w+\.system"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_numpy_is_read_as_plain_numbers_or_refused(value, expected, options, tmp_path):
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


def test_numpy_of_before_its_second_version_is_read(tmp_path):
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
        (lambda c: c["ema"]["shadow_params"].pop(), "is 155, expected a list of 156 tensors"),
        (lambda c: c["ema"].pop("shadow_params"), "is NoneType, expected a list of 156 tensors"),
        (lambda c: c.update(ema=3), "is NoneType, expected a list of 156 tensors"),
        (lambda c: c["ema"].update(decay="x"), r"'decay' of its moving average must be in \[0, 1"),
        (lambda c: c["ema"].update(decay=float("nan")), r"'decay' .* must be in \[0, 1"),
        (
            lambda c: c["ema"]["shadow_params"].__setitem__(0, 1),
            "'all_modules.1.weight' of its mov",
        ),
        (lambda c: c.update(step=-1), "its step is -1, expected a whole number"),
        (lambda c: c.update(model={}), "holds dict as its state dict, expected a state dict, "),
        (lambda c: c.update(model={"a": 1}), "entry 'a' of its state dict is int"),
    ],
)
def test_a_file_of_score_sde_that_is_not_sound_is_one_line(change, message, tmp_path):
    torch = pytest.importorskip("torch")
    content = torch.load(PP, weights_only=False)
    change(content)
    path = str(tmp_path / "file.pth")
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        torch_files.read(path)


def test_files_that_do_not_fit_are_one_line(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    content = torch.load(V2, weights_only=True)
    path = tmp_path / "file.pth"

    def refused(config, message):
        with pytest.raises(UserError) as error:
            torch_runs.import_checkpoint(config, str(path), str(tmp_path / "run"))
        text = str(error.value)
        assert re.search(message, text) and "\n" not in text and "file.pth" in text, text
        assert not (tmp_path / "run").exists()

    def saved(change, **options):
        changed = copy.deepcopy(content)
        change(changed)
        torch.save(changed, path, **options)

    refused(v2_config(), "does not exist")
    for data in (V1.read_bytes(), V2.read_bytes()):
        for length in (0, 1, 100, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:length])
            refused(v2_config(), "is damaged or no PyTorch file")
    path.write_text("hello")
    refused(v2_config(), "is damaged or no PyTorch file")
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save([{"a": Harmful()}], path, **options)
        refused(v2_config(), r"is refused: loading it would call \w+\.system; only tensors")
    path.write_bytes(pickle.dumps(Harmful()))
    refused(v2_config(), "refused|damaged")
    assert not (tmp_path / "harmed").exists()

    conv = "module.res2.0.conv1.weight"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        saved(lambda c: c[0].pop(conv), **options)
        refused(v2_config(), r"res2.0.conv1.weight is missing; NCSNv2 expects shape \[3, 3, 3, 3\]")
    saved(lambda c: c[1]["param_groups"][0]["params"].pop())
    refused(v2_config(), "an optimizer of 152 parameters for a network of 153")
    saved(lambda c: c[0].update(extra=torch.zeros(2, 5)))
    refused(v2_config(), r"extra with shape \[2, 5\] belongs to no parameter of NCSNv2")
    saved(lambda c: c[0].update({conv: torch.zeros(3, 3, 5, 5)}))
    refused(v2_config(), r"res2.0.conv1.weight has shape \[3, 3, 5, 5\], expected \[3, 3, 3, 3\]")
    saved(lambda c: c[4].pop("end_conv.bias"))
    refused(v2_config(), "its moving average, .* end_conv.bias is missing")
    saved(lambda c: c[1].clear())
    refused(v2_config(), r"an optimizer that is not Adam")
    saved(lambda c: c.__setitem__(3, -1))
    refused(v2_config(), r"its step is -1, expected a whole number from 0 to 2\*\*31 - 1")
    saved(lambda c: c.__setitem__(3, 2**40))
    refused(v2_config(), r"its step is 1099511627776, expected a whole number")
    for field, value in (("betas", 0.9), ("betas", ()), ("lr", None), ("eps", torch.ones(2))):
        saved(lambda c, field=field, value=value: c[1]["param_groups"][0].update({field: value}))
        refused(v2_config(), r"an optimizer that is not Adam")
    saved(lambda c: c[1]["param_groups"][0].update(amsgrad=True))
    refused(v2_config(), "an optimizer with amsgrad")
    saved(lambda c: c[1]["state"][0].update(step=float("inf")))
    refused(v2_config(), r"Adam's step of begin_conv.weight is inf, expected a whole number")
    saved(lambda c: c[0].update(notes="text"))
    refused(v2_config(), "entry 'notes' of its state dict is str, expected a dense tensor")
    saved(lambda c: c[0].update({conv: torch.zeros(3, 3, 3, 3, dtype=torch.bfloat16)}))
    refused(v2_config(), "is a tensor of torch.strided torch.bfloat16, expected a dense tensor")
    torch.save([1, 2, 3], path)
    refused(v2_config(), r"a list of 3, expected a state dict, ")
    torch.save([1], path)
    refused(v2_config(), r"holds int as its state dict, expected")

    path.write_bytes(V2.read_bytes())
    refused(v2_config(**{"model.ema_decay": 0.0}), "holds a moving average .* must be above 0")
    refused(v2_config(**{"model.num_levels": 10}), r"sigmas has shape \[20\], expected \[10\]")
    refused(v2_config(**{"model.sigma_begin": 40.0}), r"sigmas\[0\] is 50, expected 40")
    refused(v2_config(**{"data.channels": 1}), r"has shape \[3, 3, 3, 3\], expected \[3, 1, 3, 3\]")
    refused(v2_config(**{"model.features": 4}), r"has shape \[3\], expected \[4\]")
    refused(
        v2_config(**{"model.name": "ncsnv2_deeper"}), r"expected shape|expects shape|expected \["
    )
    refused(v1_config(), r"does not fit config.model.name='ncsn' with features=3, num_levels=10")
    path.write_bytes(V1.read_bytes())
    refused(v1_config(**{"training.steps_per_call": 2}), "is of step 3, which must be a multiple")
    refused(v1_config(**{"model.ema_decay": 0.9}), "holds no moving average .* must be 0")


def test_a_bare_state_dict_starts_at_step_zero(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save(torch.load(V1, weights_only=True)[0], path)
    workdir = str(tmp_path / "run")
    message = torch_runs.import_checkpoint(v1_config(), str(path), workdir)
    assert "holds no optimizer" in message
    step, state = work_directories.load_newest(v1_config(), workdir)
    assert step == 0 and not any(
        a.any() for a in jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))
    )


def test_another_learning_rate_is_said(tmp_path):
    pytest.importorskip("torch")
    config = v1_config(**{"optim.learning_rate": 1e-4})
    message = torch_runs.import_checkpoint(config, str(V1), str(tmp_path / "run"))
    assert "trained with learning_rate 0.001; training would go on with" in message
    assert json.loads((tmp_path / "run/config.json").read_text())["optim.learning_rate"] == 1e-4


def test_without_torch_the_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UserError, match="can be read with torch only, which is missing: pip install"
    ):
        torch_files.read(str(V1))


def test_a_torch_that_does_not_keep_its_promise_is_not_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.9.1+cpu"))
    with pytest.raises(
        UserError, match=r"is not read with torch 2.9.1\+cpu, which may execute code"
    ):
        torch_files.read(str(V1))


def test_a_file_of_the_simplified_network_and_back(golden, tmp_path):
    torch = pytest.importorskip("torch")
    g = golden("ncsn_simple_16")
    state = {
        k.removeprefix("state/"): torch.from_numpy(v) for k, v in g.items() if k[:5] == "state"
    }
    path = tmp_path / "file.pth"
    torch.save({"epoch": 3, "model_state": state, "cfg": {"model": {"nf": 8}}}, path)
    config = simplified_celeba.get_config()
    config.model.features = 8
    torch_runs.import_checkpoint(config, str(path), str(tmp_path / "run"))
    target = tmp_path / "weights.npz"
    torch_runs.export(config, str(tmp_path / "run"), str(target))
    with np.load(target) as arrays:
        assert set(arrays.files) == {f"model/{name}" for name in state}
        for name, value in state.items():
            np.testing.assert_array_equal(arrays[f"model/{name}"], value.numpy())


def test_a_failed_conversion_leaves_nothing_that_is_in_the_way(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    config, workdir = v1_config(), str(tmp_path / "run")

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(work_directories, "write_config", fail)
        torch_runs.import_checkpoint(config, str(V1), workdir)
    torch_runs.import_checkpoint(config, str(V1), workdir)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match="holds a run already"):
        torch_runs.import_checkpoint(config, str(V1), str(tmp_path / "other"))
    assert (tmp_path / "other" / "checkpoints").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the file to convert is required"),
        (["a.pth", "--export=b.npz"], "--export and the file 'a.pth' exclude each other"),
        (["a.pth", "b.pth"], "unexpected argument 'b.pth'"),
        (["a.pth"], "a.pth does not exist"),
        (["--export=b.txt"], "must end in .npz"),
        (["--export=b.npz"], "holds no run: train first"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, tmp_path):
    command = [sys.executable, "-m", "ncsn_jax.convert", "--config=configs/mnist.py"]
    command += [f"--workdir={tmp_path}", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=60
    )
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize(
    ("change", "channels", "message"),
    [
        (lambda s: s.update({5: np.ones(3)}), None, "names must be strings, got 5"),
        (lambda s: None, 2.5, "channels must be from 1 to 1000, got 2.5"),
        (lambda s: None, -1, "channels must be from 1 to 1000, got -1"),
    ],
)
def test_names_and_channels_that_are_none_are_refused(golden, change, channels, message):
    g = golden("ncsn_v1_32")
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    change(state)
    with pytest.raises(ValueError, match=message):
        convert.from_torch(state, models.NCSN(8, 10), channels)


@pytest.mark.parametrize(
    "change",
    [
        lambda torch, c: c.__setitem__(1, torch.ones(3)),
        lambda torch, c: c[1].update(param_groups=[torch.ones(3)]),
        lambda torch, c: c[1]["state"].update({0: torch.ones(3)}),
        lambda torch, c: c[1]["param_groups"][0].update(lr=10**400),
    ],
)
def test_an_optimizer_of_other_things_is_one_line(change, tmp_path):
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
