"""Tests which configurations are allowed and which are refused."""

import importlib

import ml_collections
import pytest

from configs import default
from ncsn_jax.app import reference, schema
from ncsn_jax.errors import UserError
from tests.running import ROOT, load_config, load_diffusion_config

PAGE = ROOT / "docs" / "configuration.md"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training.batch_size": 12},
            "config.training.batch_size=12 must be a multiple of the number of devices, 8",
        ),
        (
            {"model.sigma_begin": 0.01},
            "sigma_begin > sigma_end > 0, got sigma_begin=0.01",
        ),
        ({"model.num_levels": 1}, "config.model.num_levels=1 must be from 2 to 100000"),
        ({"model.ema_decay": 1.0}, r"config.model.ema_decay=1.0 must be in \[0, 1\)"),
        ({"model.name": "resnet"}, "config.model.name='resnet' must be 'ncsn' or 'ncsnv2'"),
        ({"training.loss": "mse"}, "config.training.loss='mse' must be 'dsm'"),
        ({"optim.learning_rate": float("nan")}, "config.optim.learning_rate=nan must be positive"),
        ({"training.steps_per_call": 7}, "must be a multiple of config.training.steps_per_call=7"),
        ({"sampling.name": "../x"}, "config.sampling.name='../x' must be at most 200 letters"),
        ({"sampling.clip": (1.0, 0.0)}, r"config.sampling.clip=\[1.0, 0.0\] must be"),
        ({"data.image_size": 9}, "config.data.image_size=9 must be a multiple of 2 and at least 8"),
        (
            {"training.loss": "sm", "data.image_size": 34},
            "config.training.loss='sm' must be 'dsm' or 'ssm' for images of more than 1024 elements",
        ),
        (
            {"training.num_projections": 5},
            "config.training.num_projections=5 must be 1 for config.training.loss='dsm'",
        ),
        (
            {"training.microbatches": 3},
            "training.batch_size=8 must be a multiple of the number of devices, 8, times config.training",
        ),
        ({"training.microbatches": 0}, "config.training.microbatches=0 must be at least 1"),
        ({"training.skip_nonfinite": -1}, "config.training.skip_nonfinite=-1 must be 0 or more"),
        ({"training.dtype": "float16"}, "training.dtype='float16' must be 'float32' or 'bfloat16'"),
        ({"sampling.dtype": "float64"}, "sampling.dtype='float64' must be 'float32' or 'bfloat16'"),
        (
            {"training.num_projections": 0},
            "config.training.num_projections=0 must be from 1 to 1000",
        ),
        (
            {"training.anneal_power": float("nan")},
            "config.training.anneal_power=nan must be a number for",
        ),
        (
            {"model.normalization": "batch"},
            "config.model.normalization='batch' must be 'instance\\+\\+' or 'instance'$",
        ),
        (
            {"ncsnpp.resblock_type": "resnet"},
            "config.ncsnpp.resblock_type='resnet' must be 'biggan' or 'ddpm'$",
        ),
        (
            {"ncsnpp.progressive": "input_skip"},
            "config.ncsnpp.progressive='input_skip' must be 'none' or 'output_skip'$",
        ),
        (
            {"ncsnpp.progressive_input": "output_skip"},
            "progressive_input='output_skip' must be 'residual' or 'input_skip' or 'none'$",
        ),
        (
            {"sampling.predictor": "euler"},
            "config.sampling.predictor='euler' must be 'euler_maruyama' or 'reverse_diffusion' or "
            "'ancestral' or 'probability_flow' or 'none'$",
        ),
        (
            {"sampling.corrector": "mala"},
            "sampling.corrector='mala' must be 'langevin' or 'annealed_langevin' or 'none'$",
        ),
        (
            {"model.normalization": "instance", "model.name": "ncsnv2"},
            "config.model.normalization='instance' must be 'instance\\+\\+' for config.model.name='ncsnv2'",
        ),
        ({"inpainting.scheme": "v3"}, "config.inpainting.scheme='v3' must be 'paper' or 'ncsn' or"),
        ({"inpainting.num_images": 0}, "config.inpainting.num_images=0 must be at least 1"),
        (
            {"data.image_size": 2**20},
            "config.data.image_size=1048576 must be one or two integers from 1 to 4096",
        ),
        ({"model.features": 10**9}, "config.model.features=1000000000 must be from 2 to 1024"),
        (
            {"training.num_steps": 10**5000},
            "config.training.num_steps=<int> must be at most 2147483647",
        ),
        ({"sampling.num_samples": 10**9}, "config.sampling.num_samples=1000000000 must be smaller"),
        (
            {"sampling.steps_per_level": 10**8},
            "config.sampling.steps_per_level=100000000 must be at most 5000000 with",
        ),
        ({"sampling.epsilon": 1e-60}, "config.sampling.epsilon=1e-60 must be positive, from"),
        ({"optim.beta1": 1 - 1e-12}, "config.optim.beta1=0.999.* must be in .* as a float32"),
        (
            {"training.anneal_power": 100.0},
            "config.training.anneal_power=100.0 must be a number for",
        ),
        ({"sampling.clip": ("a", "b")}, "config.sampling.clip=.* must be"),
        ({"sampling.name": "x" * 201}, "config.sampling.name='xxx.* must be at most 200 letters"),
        ({"model.sigma_begin": 1e300}, "config.model: .* got sigma_begin=1e[+]300"),
        ({"sampling.method": "hmc"}, "config.sampling.method='hmc' must be 'annealed_langevin'"),
    ],
)
def test_invalid_values_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        schema.check(load_config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training.sde": "none"},
            "training.sde='none' must be 've' or 'vp' or 'subvp' or 'edm' for .*'ncsnpp'",
        ),
        ({"model.name": "ncsn"}, "training.sde='ve' must be 'none' for config.model.name='ncsn'"),
        (
            {"training.sde": "subvp", "training.continuous": False},
            "training.continuous=False must be True for config.training.sde='subvp'",
        ),
        (
            {"training.continuous": False, "training.likelihood_weighting": True},
            "training.likelihood_weighting=True must be False for config.training.continuous=False",
        ),
        (
            {"training.loss": "ssm"},
            "training.loss='ssm' must be 'dsm' for config.training.sde='ve'",
        ),
        (
            {"training.sde": "vp", "training.continuous": False, "model.num_levels": 15},
            "model.num_levels=15 must be at least 21",
        ),
        (
            {"training.sde": "vp", "model.beta_min": 3.0, "model.beta_max": 2.0},
            "model.beta_max=2.0 must be at least config.model.beta_min=3.0",
        ),
        (
            {
                "training.sde": "subvp",
                "sampling.method": "predictor_corrector",
                "sampling.predictor": "ancestral",
            },
            "predictor 'ancestral' is not available for sub-VP",
        ),
        (
            {
                "training.sde": "subvp",
                "sampling.method": "predictor_corrector",
                "sampling.corrector": "langevin",
                "sampling.snr": 0.1,
            },
            "corrector 'langevin' is not available for sub-VP",
        ),
        (
            {"sampling.method": "predictor_corrector", "sampling.corrector": "langevin"},
            "sampling.snr=0.0 must be above 0 for corrector 'langevin'",
        ),
        (
            {"training.sde": "vp", "model.sigma_begin": 500.0},
            "model.sigma_begin=500.0 must be at most 15",
        ),
        ({"ncsnpp.fir": True}, "config.ncsnpp: .* must be one of"),
        ({"model.features": 9}, "model.features=9 must be a number whose .*: 9 channels do not"),
        ({"sampling.rho": 0.5}, "sampling.rho=0.5 must be from 1 to 100"),
        (
            {
                "training.sde": "vp",
                "sampling.method": "predictor_corrector",
                "sampling.predictor": "euler_maruyama",
                "sampling.corrector": "langevin",
                "sampling.snr": 0.1,
            },
            "sampling.num_steps=3 must be at least 21",
        ),
        ({"ncsnpp.ch_mult": ()}, "ncsnpp.ch_mult=.* must be one to twelve integers"),
        ({"sampling.method": "plms"}, "sampling.method='plms' must be 'annealed_langevin' or"),
        ({"sampling.end": 0.0}, "sampling.end=0.0 must be from 1e-7"),
    ],
)
def test_impossible_combinations_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        schema.check(load_diffusion_config(**changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.data.__delattr__("image_size"), "config.data.image_size is missing"),
        (lambda c: c.__setattr__("data", 5), "config.data.dataset is missing"),
        (lambda c: c.optim.__setattr__("beta3", 1), "config.optim.beta3 is not a field"),
        (lambda c: c.__setattr__("seed", "0"), "config.seed='0' must be an integer"),
        (lambda c: c.__setattr__("seed", True), "config.seed=True must be an integer"),
        (lambda c: c.model.__setattr__("sigma_end", None), "sigma_end=None must be a number"),
        (lambda c: c.data.__setattr__("data_dir", 5), "config.data.data_dir=5 must be a string"),
        (lambda c: c.sampling.__setattr__("gif", "no"), "gif='no' must be True or False"),
        (lambda c: c.__setattr__("itself", c), "--config: RecursionError: "),
    ],
)
def test_malformed_configurations_are_refused(change, message):
    config = load_config()
    with config.unlocked(), config.ignore_type():
        change(config)
    with pytest.raises(UserError, match=message) as caught:
        schema.check(config)
    assert str(caught.value).isprintable()


def config_files():
    return sorted(p for p in (ROOT / "configs").rglob("*.py") if p.stem != "published")


@pytest.mark.parametrize("path", config_files(), ids=lambda p: p.stem)
def test_every_configuration_sets_every_field_and_passes(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    config = importlib.import_module(name).get_config()
    assert isinstance(config, ml_collections.ConfigDict)
    assert schema.flatten(config).keys() == schema.flatten(default.get_config()).keys()
    schema.check(config)


def test_the_reference_page_shows_the_table():
    """Run `python -m tests.app.test_schema` to update the page."""
    assert PAGE.read_text() == reference.reference(default.get_config())


def test_the_meaning_of_every_field_is_a_sentence():
    for name, field in schema.FIELDS.items():
        assert field.meaning.endswith(".") and len(field.meaning) > 5, name


if __name__ == "__main__":
    PAGE.write_text(reference.reference(default.get_config()))
