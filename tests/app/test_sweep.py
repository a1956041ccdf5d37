import pytest

from ncsn_jax.app import sweep
from ncsn_jax.errors import UserError
from tests.app.modes import runs


def expand(text, **changes):
    return sweep.expand(runs.ladder_config(**{"evaluation.sweep": text} | changes))


def test_a_sweep_names_every_combination():
    text = "sampling.method=heun sampling.num_steps=3,5 sampling.churn=0,0.5 sampling.step=2,4"
    found = expand(text, **{"sampling.name": "mine"})
    chosen = [(c.sampling.num_steps, c.sampling.churn, c.sampling.step) for c in found]
    assert chosen == [(n, churn, step) for n in (3, 5) for churn in (0, 0.5) for step in (2, 4)]
    assert found[0].sampling.name == found[1].sampling.name
    assert found[2].sampling.name == "mine_method=heun_num_steps=3_churn=0.5"
    (one,) = expand("")
    assert one.sampling.name == "" and one.sampling.method == "annealed_langevin"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampling.churn=0,10", "churn has no effect .*'annealed_langevin'; .*epsilon"),
        ("sampling.num_samples=3,4", "num_samples has no effect"),
        ("seed=1,2", "seed has no effect"),
        ("sampling.epsilon=1e-4,0", "config.sampling.epsilon=0.0 must be"),
        ("sampling.epsilon=fast", "config.sampling.epsilon='fast' must be a number"),
        ("epsilon=1e-4", "epsilon=1e-4 must be a field and its value"),
        ("sampling.churn=1 sampling.churn=2", "names sampling.churn twice"),
        ("sampling.epsilon", "sampling.epsilon= must be a field and its value"),
        ("sampling.method=heun sampling.num_steps=3, 5", "num_steps= must be a field"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        expand(text)
