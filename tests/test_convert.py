"""PyTorch's files and names: the round trip of parameters, and what becomes of a file that does not fit."""

import json
import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import mnist, ncsnv2_cifar10
from ncsn_jax import config as configuration
from ncsn_jax import convert, models, training
from ncsn_jax.convert import files, workdirs
from ncsn_jax.errors import UserError
from tests.conftest import DATA
from tests.models.comparison import assert_close, nhwc
from tests.test_app import ROOT, environment

V1 = DATA / "ncsn_checkpoint_v1_legacy.pth"  # torch's old format, optimizer keys by id
V2 = DATA / "ncsnv2_checkpoint.pth"  # the new one, with EMA

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
    with pytest.raises(ValueError, match=r"sigmas goes from .* is not the ladder of the network"):
        convert.from_torch(state, models.NCSNv2(8, 2 * g["state/sigmas"]))


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

    @jax.jit
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

    for i in range(3):
        batch = (nhwc(g[f"in/v1/{name}_{i}"]) for name in ("x", "noise"))
        x, noise = batch
        params, opt_state, value = step(params, opt_state, x, ladder[g[f"in/v1/labels_{i}"]], noise)
        assert float(value) == pytest.approx(float(g["out/v1/losses"][i]), rel=1e-4)

    found = files.read(str(V1))
    expected = convert.from_torch(found.model, model)
    difference = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).ravel(), params, expected)
    difference = np.concatenate(jax.tree.leaves(difference))
    # Where a gradient is zero up to rounding Adam follows its sign: a few weights move the other way.
    assert np.mean(difference < 1e-6) > 0.97 and difference.max() < 3 * 2.01e-3
    count, first, second = found.adam
    assert count == 3
    for name, moments in (("mu", first), ("nu", second)):
        ours = np.concatenate([a.ravel() for a in jax.tree.leaves(optax.tree.get(opt_state, name))])
        theirs = jax.tree.leaves(convert.from_torch(moments, model))
        theirs = np.concatenate([a.ravel() for a in theirs])
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(("path", "make"), [(V1, v1_config), (V2, v2_config)])
def test_a_work_directory_holds_all_of_the_file(golden, path, make, tmp_path):
    pytest.importorskip("torch")
    config, workdir = make(), str(tmp_path / "run")
    message = workdirs.import_checkpoint(config, str(path), workdir)
    assert str(path) in message and "note" not in message
    step, state = configuration.load_newest(config, workdir)
    found = files.read(str(path))
    model = configuration.make_model(config)
    version = "v1" if path == V1 else "v2"
    assert (step, int(state.step)) == ((3, 3) if version == "v1" else (5000, 5000))
    assert int(optax.tree.get(state.opt_state, "count")) == 3
    g = golden("checkpoints_io")
    x, y = nhwc(g[f"in/{version}/x"]), g[f"in/{version}/y"]
    trees = {"score": (state.params, found.model)}
    if version == "v2":
        trees["score_ema"] = (state.ema_params, found.ema)
    for name, (params, arrays) in trees.items():
        assert_close(model.apply(params, x, y), nhwc(g[f"out/{version}/{name}"]))
        back = convert.to_torch(params, model)
        assert all(np.array_equal(back[key], value) for key, value in arrays.items())
    for name, moments in (("mu", found.adam[1]), ("nu", found.adam[2])):
        back = convert.to_torch(optax.tree.get(state.opt_state, name), model)
        assert all(np.array_equal(back[key], value) for key, value in moments.items())
    with pytest.raises(UserError, match="holds a run already"):
        workdirs.import_checkpoint(config, str(path), workdir)

    target = tmp_path / "weights.npz"
    workdirs.export(config, workdir, str(target))
    with np.load(target) as arrays:
        names = {f"model/module.{name}" for name in found.model}
        names |= {f"ema/{name}" for name in found.ema or {}}
        assert set(arrays.files) == names
        np.testing.assert_array_equal(
            arrays["model/module.end_conv.weight"], found.model["end_conv.weight"]
        )
    with pytest.raises(UserError, match=r"weights.npz' is there already"):
        workdirs.export(config, workdir, str(target))


def test_the_documented_command_samples_and_trains_on(tmp_path):
    pytest.importorskip("torch")
    workdir = tmp_path / "run"
    shared = ["--config=configs/mnist.py", "--config.model.features=3", f"--workdir={workdir}"]
    shared += ["--config.data.dataset=digits", "--config.data.image_size=8"]
    shared += ["--config.sampling.steps_per_level=1", "--config.sampling.num_samples=2"]
    shared += ["--config.sampling.batch_size=2", "--config.training.batch_size=2"]
    training_ = ["--config.training.num_steps=4", "--config.sampling.preview_samples=2"]

    def run(*command, extra=()):
        result = subprocess.run(
            [sys.executable, *command, *shared, *extra],
            cwd=ROOT,
            env=environment(1),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    run("-m", "ncsn_jax.convert", str(V1))
    run("main.py", "--mode=sample")
    assert np.load(workdir / "samples/step_3/samples.npz")["samples"].shape == (2, 8, 8, 1)
    assert "from step 3" in run("main.py", extra=training_)
    assert np.load(workdir / "samples/step_4/samples.npz")["samples"].shape == (2, 8, 8, 1)


class Harmful:
    """Would run a command when unpickled."""

    def __reduce__(self):
        import os

        return os.system, ("touch harmed",)


def test_files_that_do_not_fit_are_one_line(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    content = torch.load(V2, weights_only=True)
    path = tmp_path / "file.pth"

    def refused(config, message):
        with pytest.raises(UserError) as error:
            workdirs.import_checkpoint(config, str(path), str(tmp_path / "run"))
        text = str(error.value)
        assert re.search(message, text) and "\n" not in text and "file.pth" in text, text
        assert not (tmp_path / "run").exists()

    def saved(change, **options):
        changed = [part.copy() if isinstance(part, dict) else part for part in content]
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
        refused(v2_config(), r"is refused: loading it would execute code \(\w+\.system\)")
    path.write_bytes(pickle.dumps(Harmful()))
    refused(v2_config(), "refused|damaged")
    assert not (tmp_path / "harmed").exists()

    conv = "module.res2.0.conv1.weight"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        saved(lambda c: c[0].pop(conv), **options)
        refused(v2_config(), "an optimizer of 153 parameters for a network of 152")
    saved(lambda c: (c[0].pop(conv), c.__delitem__(slice(1, None))))
    refused(v2_config(), r"res2.0.conv1.weight is missing; NCSNv2 expects shape \[3, 3, 3, 3\]")
    saved(lambda c: (c[0].update(extra=torch.zeros(2, 5)), c.__delitem__(slice(1, None))))
    refused(v2_config(), r"extra with shape \[2, 5\] belongs to no parameter of NCSNv2")
    saved(lambda c: c[0].update({conv: torch.zeros(3, 3, 5, 5)}))
    refused(v2_config(), r"res2.0.conv1.weight has shape \[3, 3, 5, 5\], expected \[3, 3, 3, 3\]")
    saved(lambda c: c[4].pop("end_conv.bias"))
    refused(v2_config(), "its moving average, .* end_conv.bias is missing")
    saved(lambda c: c[1].clear())
    refused(v2_config(), r"an optimizer that is not Adam")
    saved(lambda c: c.__setitem__(3, -1))
    refused(v2_config(), r"the step -1, expected a whole number >= 0")
    torch.save([1, 2, 3], path)
    refused(v2_config(), r"a list of 3, expected a state dict, or a list")
    torch.save([1], path)
    refused(v2_config(), r"holds int as its state dict, expected")

    path.write_bytes(V2.read_bytes())
    refused(v2_config(**{"model.ema_decay": 0.0}), "holds a moving average .* must be above 0")
    refused(v2_config(**{"model.num_levels": 10}), r"sigmas has shape \[20\], expected \[10\]")
    refused(v2_config(**{"model.sigma_begin": 40.0}), r"sigmas goes from 50 to 0.01 .* 40 to 0.01")
    refused(v2_config(**{"data.channels": 1}), r"has shape \[3, 3, 3, 3\], expected \[3, 1, 3, 3\]")
    refused(v2_config(**{"model.features": 4}), r"has shape \[3\], expected \[4\]")
    refused(
        v2_config(**{"model.name": "ncsnv2_deeper"}), r"expected shape|expects shape|expected \["
    )
    refused(
        v1_config(**{"data.channels": 3}), r"does not fit config.model.name='ncsn': normalizer|res"
    )
    path.write_bytes(V1.read_bytes())
    refused(v1_config(**{"training.steps_per_call": 2}), "is of step 3, which must be a multiple")
    refused(v1_config(**{"model.ema_decay": 0.9}), "holds no moving average .* must be 0")


def test_a_bare_state_dict_starts_at_step_zero(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save(torch.load(V1, weights_only=True)[0], path)
    workdir = str(tmp_path / "run")
    workdirs.import_checkpoint(v1_config(), str(path), workdir)
    step, state = configuration.load_newest(v1_config(), workdir)
    assert step == 0 and not any(
        a.any() for a in jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))
    )


def test_another_learning_rate_is_said(tmp_path):
    pytest.importorskip("torch")
    config = v1_config(**{"optim.learning_rate": 1e-4})
    message = workdirs.import_checkpoint(config, str(V1), str(tmp_path / "run"))
    assert "trained with learning_rate 0.001; training would go on with" in message
    assert json.loads((tmp_path / "run/config.json").read_text())["optim.learning_rate"] == 1e-4


def test_without_torch_the_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="can be read with torch only: pip install torch"):
        files.read(str(V1))
