"""Tests each rule between fields: the last value that it allows and the first that it refuses."""

import pytest

from ncsn_jax.app import schema
from ncsn_jax.errors import UserError
from tests.running import load_config, load_diffusion_config

SDE = {"training.sde": "ve"}
VP = {"training.sde": "vp"}
SUBVP = {"training.sde": "subvp"}
LARGE = {"data.image_size": 4096, "sampling.num_samples": 1, "sampling.batch_size": 1} | {
    "sampling.preview_samples": 1,
    "classifier.batch_size": 1,
}
EDM = {"training.sde": "edm", "data.centered": True}
CORRECTED = {"sampling.method": "predictor_corrector", "sampling.corrector": "langevin"}
PREDICTED = {"sampling.method": "predictor_corrector", "sampling.predictor": "euler_maruyama"}
CALLS_OF_THREE = {"training.num_steps": 6, "training.checkpoint_every": 6} | {
    "training.log_every": 6,
    "training.sample_every": 6,
    "training.steps_per_call": 3,
}
# The overrides (on an SDE if stated), a field, an allowed value, a refused value, and text of the message.
OBJECTIVE = [
    ({"training.loss": "sm"}, "training.num_projections", 1, 2, "1 for .*loss='sm'"),
    ({"training.loss": "sm"}, "data.image_size", 32, 34, "training.loss='sm' must be 'dsm' or"),
    ({"data.image_size": 20, "data.channels": 3}, "training.loss", "ssm", "sm", "'dsm' or 'ssm'"),
    ({}, "training.sde", "none", "ve", "'none' for config.model.name='ncsn'"),
    (SDE, "training.sde", "subvp", "none", "'ve' or 'vp' or 'subvp' or 'edm' for"),
    (EDM, "data.centered", True, False, "True for config.training.sde='edm'"),
    (EDM, "training.continuous", True, False, "True for .*'edm', which has no discrete chain"),
    (EDM, "training.likelihood_weighting", False, True, "False for config.training.sde='edm'"),
    (EDM, "model.beta_max", 0.1, 0.09, "at least config.model.beta_min=0.1"),
    (EDM, "training.augment", 1.0, 1.1, "from 0 to 1"),
    ({}, "training.augment", 0.0, 0.1, "0 for config.model.name='ncsn'"),
    (SDE | {"training.augment": 0.1}, "data.random_flip", False, True, "False for .*augment=0.1"),
    ({}, "data.centered", False, True, "False for 'ncsn'"),
    ({}, "training.continuous", False, True, "False for config.training.sde='none'"),
    (SUBVP, "training.continuous", True, False, "True for .*'subvp', which has no discrete chain"),
    (
        *(SDE | {"training.continuous": False}, "training.likelihood_weighting"),
        *(False, True, "False for config.training.continuous=False"),
    ),
    (SDE, "training.loss", "dsm", "ssm", "'dsm' for config.training.sde='ve'"),
    (SDE, "training.anneal_power", 2.0, 1.9, "2 for config.training.sde='ve'"),
    (
        VP | {"model.sigma_begin": 0.2},
        "model.beta_max",
        0.1,
        0.09,
        "at least config.model.beta_min=0.1",
    ),
    (SUBVP, "model.beta_max", 1000.0, 1000.1, "at most 1000"),
    (
        *(VP | {"training.continuous": False}, "model.num_levels"),
        *(21, 20, "at least 21, above config.model.beta_max=20.0"),
    ),
]
NETWORK = [
    ({"model.name": "ncsnv2"}, "model.normalization", "instance++", "instance", "for .*'ncsnv2'"),
    (
        *({"model.name": "ncsn_simplified"}, "model.normalization"),
        *("instance", "instance++", "'instance' for config.model.name='ncsn_simplified'"),
    ),
    ({}, "data.image_size", 8, 6, "a multiple of 2 and at least 8 for config.model.name='ncsn'"),
    ({}, "data.image_size", 10, 11, "a multiple of 2 and at least 8"),
    ({"model.name": "ncsnv2_deeper"}, "data.image_size", 12, 10, "a multiple of 4 and at least 8"),
    ({"model.name": "ncsnv2_deepest"}, "data.image_size", 24, 20, "a multiple of 8 and at least 8"),
    (
        SDE | {"ncsnpp.ch_mult": (1, 2, 2)},
        "data.image_size",
        12,
        10,
        "a multiple of 4 and at least 8",
    ),
    (SDE, "model.features", 4, 2, "2 channels do not"),
    (SDE, "optim.weight_decay", 0.0, 0.1, "0 for a network with Fourier features"),
    (VP, "optim.weight_decay", 0.1, -1.0, "from 0 to"),
    (SDE, "model.features", 32, 33, "33 channels do not"),
]
STEPS = [
    ({"training.checkpoint_every": 20}, "training.keep_every", 0, 30, "checkpoint_every=20"),
    ({"training.checkpoint_every": 20}, "training.keep_every", 40, 10, "0 or a multiple of"),
    *(
        (CALLS_OF_THREE, f"training.{name}", 12, 11, "a multiple of .*steps_per_call=3")
        for name in ("num_steps", "checkpoint_every", "log_every", "sample_every")
    ),
    (CALLS_OF_THREE, "evaluation.every", 12, 11, "a multiple of .*steps_per_call=3"),
]
EVALUATION = [
    ({"evaluation.every": 1}, "training.keep_best", True, 1, "True or False"),
    ({}, "training.keep_best", False, True, "False unless config.evaluation.every is above 0"),
    *(
        ({"data.image_size": size, "evaluation.features": name}, "evaluation.every", *rest)
        for size, name, *rest in (
            (66, "inception", 0, 5, "0 for images of 4356 numbers, unless .*features='classifier'"),
            (66, "pixels", 0, 5, "pixels are compared up to 4096"),
            (66, "classifier", 5, -1, "0 or more"),
            (64, "pixels", 5, -1, "0 or more"),
        )
    ),
]
SCHEDULE_FREE = {"optim.name": "schedule_free", "model.ema_decay": 0.0}
AVERAGES = [
    ({"model.ema_halflife": 9}, "model.ema_decay", 0.0, 0.9, "0 for config.model.ema_halflife=9"),
    (
        {"model.ema_halflife": 9, "model.ema_decay": 0.0, "model.ema_rampup": 0.1},
        *("model.ema_halflife", 1, 0, "config.model.ema_rampup=0.1 must be 0 unless"),
    ),
    (
        {"model.ema_power": (0.05, 0.1)},
        "training.keep_every",
        500,
        0,
        "above 0 for .*its snapshots",
    ),
    (SCHEDULE_FREE, "model.ema_decay", 0.0, 0.9, "0 for config.optim.name='schedule_free'"),
    (SCHEDULE_FREE, "model.ema_halflife", 0, 9, "0 for config.optim.name='schedule_free'"),
    (
        SCHEDULE_FREE | {"training.keep_every": 500},
        *("model.ema_power", (), (0.05, 0.1), r"\(\) for config.optim.name='schedule_free'"),
    ),
    (SCHEDULE_FREE, "optim.schedule", "constant", "rsqrt", "'constant' for .*its own decay"),
    (SCHEDULE_FREE, "optim.beta1", 0.1, 0.0, "above 0 for config.optim.name='schedule_free'"),
    ({"training.keep_every": 500}, "model.ema_power", (0.05, 0.1), (0.1, 0.05), "two widths"),
]
MEMORY = [  # on eight devices; 2**34 numbers are 1024 images of 4096 x 4096
    ({}, "training.batch_size", 24, 20, "a multiple of the number of devices, 8$"),
    (
        *({"training.microbatches": 3}, "training.batch_size"),
        *(48, 40, "a multiple of the number of devices, 8, times config.training.microbatches=3"),
    ),
    (LARGE, "training.batch_size", 1024, 1032, "smaller: 1032 images of 16777216 numbers"),
    (
        *(LARGE | {"training.steps_per_call": 10}, "training.batch_size"),
        *(96, 104, "smaller: 1040 images of 16777216 numbers"),
    ),
    *(
        (LARGE, field, 1024, 1025, "smaller: 1025 images of 16777216 numbers")
        for field in (
            *("sampling.num_samples", "sampling.batch_size", "sampling.preview_samples"),
            "classifier.batch_size",
        )
    ),
]
LADDER = [
    ({}, "sampling.steps_per_level", 5_000_000, 5_000_001, "at most 5000000 with .*levels=2"),
    ({}, "model.sigma_begin", 0.0401, 0.04, "must satisfy .* sigma_begin > sigma_end > 0"),
    # The weights are 1024^12.80 and 25^27.56 where they reach 3.4e38.
    ({"model.sigma_begin": 1024.0}, "training.anneal_power", 14.79, 14.81, "a number for"),
    ({}, "training.anneal_power", -25.5, -25.6, "a number for which the weights"),
]
SAMPLER = [
    (SDE | CORRECTED, "sampling.snr", 0.01, 0.0, "above 0 for corrector 'langevin'"),
    (SUBVP | PREDICTED, "sampling.corrector", "none", "langevin", "config.sampling: corrector"),
    (
        SUBVP | PREDICTED,
        "sampling.predictor",
        "probability_flow",
        "ancestral",
        "config.sampling: predictor",
    ),
    (VP | PREDICTED, "sampling.num_steps", 1, 0, "from 1 to 10000000"),
    (
        *(VP | PREDICTED | CORRECTED | {"sampling.snr": 0.1}, "sampling.num_steps"),
        *(21, 20, "at least 21 for the discrete chain of 'vp' with config.model.beta_max=20.0"),
    ),
    (
        *(VP | {"sampling.method": "predictor_corrector"}, "sampling.num_steps"),
        *(21, 20, "at least 21 for the discrete chain of 'vp' with config.model.beta_max=20.0"),
    ),
    (
        SUBVP | {"sampling.method": "predictor_corrector"},
        "sampling.num_steps",
        1,
        0,
        "from 1 to 10000000",
    ),
    ({"sampling.method": "heun"}, "sampling.num_steps", 2, 1, "for 'heun'"),
    *(  # sqrt(exp(10.05) - 1) = 152.17
        (given | {"sampling.method": method}, "model.sigma_begin", 152.1, 152.3, "at most 152.2, ")
        for given in (VP, SUBVP)
        for method in ("annealed_langevin", "heun")
    ),
    (VP | {"sampling.method": "probability_flow"}, "model.sigma_begin", 200.0, 0.001, "sigma_end"),
    (SDE, "model.sigma_begin", 200.0, 0.001, "sigma_begin > sigma_end"),
]


@pytest.mark.parametrize(
    ("given", "field", "allowed", "refused", "words"),
    OBJECTIVE + NETWORK + STEPS + EVALUATION + AVERAGES + MEMORY + LADDER + SAMPLER,
)
def test_a_rule_allows_its_last_value_and_refuses_the_next(given, field, allowed, refused, words):
    load = load_diffusion_config if "training.sde" in given else load_config
    if given.get("model.name") == "ncsn_simplified":
        given = given | {"model.normalization": "instance"}
    config = load()
    with config.ignore_type():
        config.update_from_flattened_dict(given | {field: allowed})
        schema.check(config)
        config.update_from_flattened_dict({field: refused})
        with pytest.raises(UserError, match=words):
            schema.check(config)
