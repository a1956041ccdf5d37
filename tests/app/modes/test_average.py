"""Tests `--mode=average`: averages of other widths against those kept directly."""

import jax
import numpy as np
import optax
import pytest

import ncsn_jax
import run_lib
from ncsn_jax import averages
from ncsn_jax.app import build, checkpoints, run_config, storage, workdirs
from ncsn_jax.app.modes import average
from ncsn_jax.errors import UserError
from tests import tiny

STEPS, EVERY = 100, 5


def make_config():
    config = tiny.get_config()
    config.model.ema_power = (0.05, 0.1)
    config.training.update(checkpoint_every=EVERY, keep_every=EVERY)
    config.sampling.num_samples = 1
    return config


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Returns a run whose parameters drift, the last ones, and the directly kept averages by width."""
    workdir, config = str(tmp_path_factory.mktemp("kept") / "run"), make_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.MODELS, "tiny", tiny.Tiny)
        state = jax.device_get(build.make_init(config)(jax.random.key(0)))
    gammas = {w: averages.gamma_of_width(w) for w in (0.05, 0.1, 0.07, 0.13, 0.15)}
    direct, update = dict.fromkeys(gammas, state.params), jax.jit(averages.update)
    workdirs.make(workdir)
    workdirs.write_config(config, workdir)
    workdirs.claim_images(build.load_images(config), workdir)
    with checkpoints.Checkpoints(workdir, 1, EVERY) as store:
        for step in range(1, STEPS + 1):
            params = jax.tree.map(lambda a, s=step: a * np.float32(s**0.5), state.params)
            direct = {w: update(direct[w], params, step, gammas[w]) for w in direct}
            if step % EVERY == 0:
                made = state._replace(params=params, averages=(direct[0.05], direct[0.1]))
                store.save(step, jax.device_get(made._replace(step=np.asarray(step, np.int32))))
    return workdir, params, direct


def distance(a, b):
    return optax.tree.norm(jax.tree.map(np.subtract, a, b))


def test_averages_of_other_widths_are_runs_that_every_mode_takes(kept, closed_logs, monkeypatch):
    workdir, params, direct = kept
    config, digests = make_config(), set()
    for config.average.width in (0.05, 0.07, 0.13, 0.15):
        made = run_lib.average(config, workdir)
        assert made == f"{workdir}/averages/step_{STEPS}_width_{config.average.width}"
        run, expected = ncsn_jax.load_run(made), direct[config.average.width]
        assert (run.step, run.config.average.width) == (STEPS, config.average.width)
        assert distance(run.params, expected) < 1e-3 * distance(expected, params)
        digests.add(workdirs.digest(run.config))
    assert len(digests) == 4  # they are no seeds of one configuration
    run_lib.sample(run_config.get_config(made), made)
    assert storage.exists(f"{made}/samples/step_{STEPS}/samples.npz")
    # Nothing is made twice.
    monkeypatch.setattr(checkpoints.Checkpoints, "save", None)
    assert run_lib.average(config, workdir) == made


def test_a_width_that_the_snapshots_cannot_give_is_named(kept, closed_logs, capsys):
    config = make_config()
    config.sampling.step, config.training.keep_every = 45, 20
    config.average.width = 0.02
    made = run_lib.average(config, kept[0])
    output = capsys.readouterr().out
    assert ncsn_jax.load_run(made).step == 45 and made.endswith("step_45_width_0.02")
    assert "width 0.02 of step 45 from 3 snapshots" in output
    assert "choose a width nearer to config.model.ema_power=(0.05, 0.1)" in output


def test_a_run_without_averages_is_refused(kept, closed_logs):
    made = run_lib.average(make_config(), kept[0])
    with pytest.raises(UserError, match=r"model.ema_power=\(\) must be two widths for --mode="):
        run_lib.average(run_config.get_config(made), made)


def test_an_average_of_a_run_with_a_half_life_has_no_other_average(kept, tmp_path):
    workdir, params, _ = kept
    config, made = make_config(), str(tmp_path / "average")
    config.model.update(ema_decay=0.0, ema_halflife=50, ema_rampup=0.1)
    average._write(config, workdir, made, STEPS, params)
    jax.tree.map(np.testing.assert_array_equal, ncsn_jax.load_run(made).params, params)
