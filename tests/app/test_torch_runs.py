"""Tests work directories made from the authors' files, and their export."""

import copy
import json
import pickle
import re

import jax
import numpy as np
import optax
import pytest

from configs import digits_classes, digits_edm, mnist, ncsnv2_cifar10, simplified_celeba
from configs.score_sde import ve_cifar10_ncsnpp_continuous
from ncsn_jax import convert
from ncsn_jax.app import build, torch_files, torch_runs
from ncsn_jax.app import workdirs as work_directories
from ncsn_jax.errors import UserError
from tests.app.test_torch_files import NCSNPP, PP, V1, V2, Harmful
from tests.models.comparison import assert_close, compiled_quickly, nhwc


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


@pytest.mark.parametrize(("path", "make"), [(V1, v1_config), (V2, v2_config)])
def test_importing_keeps_everything_in_the_file(golden, path, make, tmp_path):
    pytest.importorskip("torch")
    config, workdir = make(), str(tmp_path / "run")
    message = torch_runs.import_checkpoint(config, str(path), workdir)
    assert str(path) in message and "note" not in message
    step, state = work_directories.load(config, workdir)
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
    with pytest.raises(UserError, match="already holds a run"):
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
        for name, average in (found.ema or {}).items():
            np.testing.assert_array_equal(arrays[f"ema/{name}"], average)
    with pytest.raises(UserError, match=r"weights.npz' already exists"):
        torch_runs.export(config, workdir, str(target))


def test_an_ncsnpp_file_survives_import_and_export(tmp_path):
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
    # The file has the learning rate of step 4002 of a warm-up of 5000; this configuration has no warm-up.
    message = torch_runs.import_checkpoint(config, str(PP), str(tmp_path / "run"))
    assert "with learning_rate 0.00016008; training" in message and message.count("note") == 1
    found = torch_files.read(str(PP))
    step, state = work_directories.load(config, str(tmp_path / "run"))
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
    config.optim.learning_rate, config.optim.warmup_steps = 0.00032016, 4
    message = torch_runs.import_checkpoint(config, str(PP), str(tmp_path / "other"))
    assert (
        "learning_rate" not in message
    )  # half of it, because the third warm-up step has the rate 2 / 4
    assert "its moving average has decay 0.999; training would continue with" in message
    assert "a different noise ladder from config.model: sigmas has shape [1000]" in message


def test_files_that_do_not_match_are_reported_on_one_line(tmp_path, monkeypatch):
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
            refused(v2_config(), "is damaged or not a PyTorch file")
    path.write_text("hello")
    refused(v2_config(), "is damaged or not a PyTorch file")
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
    refused(v2_config(), "an optimizer for 152 parameters and a network with 153")
    saved(lambda c: c[0].update(extra=torch.zeros(2, 5)))
    refused(v2_config(), r"extra with shape \[2, 5\] is not a parameter of NCSNv2")
    saved(lambda c: c[0].update({conv: torch.zeros(3, 3, 5, 5)}))
    refused(v2_config(), r"res2.0.conv1.weight has shape \[3, 3, 5, 5\], expected \[3, 3, 3, 3\]")
    saved(lambda c: c[4].pop("end_conv.bias"))
    refused(v2_config(), "its moving average .* end_conv.bias is missing")
    saved(lambda c: c[1].clear())
    refused(v2_config(), r"an optimizer that is not Adam")
    saved(lambda c: c.__setitem__(3, -1))
    refused(v2_config(), r"its step is -1, expected an integer from 0 to 2\*\*31 - 1")
    saved(lambda c: c.__setitem__(3, 2**40))
    refused(v2_config(), r"its step is 1099511627776, expected an integer")
    for field, value in (("betas", 0.9), ("betas", ()), ("lr", None), ("eps", torch.ones(2))):
        saved(lambda c, field=field, value=value: c[1]["param_groups"][0].update({field: value}))
        refused(v2_config(), r"an optimizer that is not Adam")
    saved(lambda c: c[1]["param_groups"][0].update(amsgrad=True))
    refused(v2_config(), "an optimizer with amsgrad")
    saved(lambda c: c[1]["state"][0].update(step=float("inf")))
    refused(v2_config(), r"Adam's step of begin_conv.weight is inf, expected an integer")
    saved(lambda c: c[0].update(notes="text"))
    refused(v2_config(), "entry 'notes' of its state dict is str, expected a dense tensor")
    saved(lambda c: c[0].update({conv: torch.zeros(3, 3, 3, 3, dtype=torch.bfloat16)}))
    refused(v2_config(), "is a tensor of torch.strided torch.bfloat16, expected a dense tensor")
    torch.save([1, 2, 3], path)
    refused(v2_config(), r"a list of 3 elements, expected a state dict, ")
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
    refused(v1_config(), r"do not match config.model.name='ncsn' with features=3, num_levels=10")
    path.write_bytes(V1.read_bytes())
    refused(v1_config(**{"training.steps_per_call": 2}), "is at step 3, which must be a multiple")
    refused(v1_config(**{"model.ema_decay": 0.9}), "holds no moving average .* must be 0")
    refused(v1_config(**{"optim.name": "muon"}), "optim.name='muon' must be 'adam' and")


def test_a_bare_state_dict_starts_at_step_zero(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save(torch.load(V1, weights_only=True)[0], path)
    workdir = str(tmp_path / "run")
    message = torch_runs.import_checkpoint(v1_config(), str(path), workdir)
    assert "holds no optimizer" in message
    step, state = work_directories.load(v1_config(), workdir)
    assert step == 0 and not any(
        a.any() for a in jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))
    )


def test_a_different_learning_rate_is_noted(tmp_path):
    pytest.importorskip("torch")
    config = v1_config(**{"optim.learning_rate": 1e-4})
    message = torch_runs.import_checkpoint(config, str(V1), str(tmp_path / "run"))
    assert "trained with learning_rate 0.001; training would continue with" in message
    assert json.loads((tmp_path / "run/config.json").read_text())["optim.learning_rate"] == 1e-4


def test_each_different_adam_setting_is_noted_with_both_values(tmp_path):
    torch = pytest.importorskip("torch")
    content = torch.load(V1, weights_only=True)
    there = {"lr": 0.3, "betas": (0.1, 0.2), "eps": 0.4, "weight_decay": 0.5}
    content[1]["param_groups"][0].update(there)
    path = tmp_path / "file.pth"
    torch.save(content, path)
    here = dict(learning_rate=0.6, beta1=0.7, beta2=0.8, eps=0.9, weight_decay=0.11)
    config = v1_config(**{f"optim.{name}": value for name, value in here.items()})
    first, *notes = torch_runs.import_checkpoint(config, str(path), str(tmp_path / "run")).split(
        "\n"
    )
    state = work_directories.load(config, str(tmp_path / "run"))[1]
    count = sum(a.size for a in jax.tree.leaves(state.params))
    assert first == f"{path}: step 3, {count} parameters, now in {tmp_path / 'run'}"
    values = zip(here.items(), (0.3, 0.1, 0.2, 0.4, 0.5), strict=True)
    assert notes == [
        f"note: it was trained with {name} {value}; training would continue with config.optim.{name}={ours}"
        for (name, ours), value in values
    ]
    message = torch_runs.export(config, str(tmp_path / "run"), str(tmp_path / "weights.npz"))
    assert message == f"{tmp_path / 'weights.npz'}: step 3, {count} parameters"


def test_importing_leaves_an_existing_run_unchanged(tmp_path):
    pytest.importorskip("torch")
    config, workdir = v1_config(), tmp_path / "run"
    workdir.mkdir()
    work_directories.write_config(config, str(workdir))
    with pytest.raises(UserError, match="already holds a run; choose another"):
        torch_runs.import_checkpoint(config, str(V1), str(workdir))
    config.seed = 3
    with pytest.raises(UserError, match="seed is 0 there and 3 here"):
        torch_runs.import_checkpoint(config, str(V1), str(workdir))
    with (
        work_directories.lock(str(tmp_path)),
        pytest.raises(UserError, match="another process is training"),
    ):
        torch_runs.import_checkpoint(config, str(V1), str(tmp_path))
    assert not (workdir / "checkpoints").exists()


def test_a_simplified_network_is_exported_with_its_original_names(golden, tmp_path):
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


def test_a_failed_import_can_be_repeated(tmp_path, monkeypatch):
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
    with pytest.raises(UserError, match="holds checkpoints but no config.json"):
        torch_runs.import_checkpoint(config, str(V1), str(tmp_path / "other"))
    assert (tmp_path / "other" / "checkpoints").read_text() == "mine"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            digits_edm.get_config(),
            "training.sde='edm' must be another one: the authors' code has no such",
        ),
        (digits_classes.get_config(), "data.labels=True must be False"),
    ],
)
def test_networks_that_the_authors_code_lacks_are_neither_read_nor_written(config, words, tmp_path):
    for convert_one in (torch_runs.import_checkpoint, torch_runs.export):
        with pytest.raises(UserError, match=words):
            convert_one(config, *[str(tmp_path / "weights.npz")] * 2)
