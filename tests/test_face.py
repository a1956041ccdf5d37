"""The package's public face: names, lazy imports, `help` and signatures."""

import importlib
import inspect
import pydoc
import subprocess
import sys
import tomllib

import pytest

import ncsn_jax
from tests.test_wings import PACKAGE

MODULES = [name for name in ncsn_jax.__all__ if name not in ("__version__", "load_run")]


def test_modules_load_on_first_use():
    program = """
import sys, ncsn_jax
assert not {"jax", "flax", "numpy"} & set(sys.modules)
assert dir(ncsn_jax) == ncsn_jax.__all__
assert callable(ncsn_jax.sampling.heun) and "flax" not in sys.modules
from ncsn_jax import sigmas
assert sigmas is ncsn_jax.sigmas
assert not any(name.startswith("ncsn_jax.app") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE.parent)
    with pytest.raises(AttributeError, match="module 'ncsn_jax' has no attribute 'samplers'"):
        _ = ncsn_jax.samplers


@pytest.mark.parametrize("name", MODULES)
def test_modules_list_exactly_their_own_public_names(name):
    module = importlib.import_module(f"ncsn_jax.{name}")
    assert dir(module) == sorted(module.__all__)
    for public in module.__all__:
        value = getattr(module, public)
        assert not public.startswith("_") and not inspect.ismodule(value)
        assert inspect.getdoc(value) or not inspect.isroutine(value)
    # The list is complete: it has every function and class of the module.
    own = {n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
    assert {n for n in own if not n.startswith("_")} <= set(module.__all__)


def test_help_lists_the_public_names():
    text = pydoc.plain(pydoc.render_doc(ncsn_jax))
    assert all(f"`{name}`" in text for name in [*MODULES, "load_run"])


def test_signatures_name_the_type_of_the_score_function():
    sampling, losses = ncsn_jax.sampling, ncsn_jax.losses
    for function in (sampling.heun, sampling.guided, losses.score_matching):
        assert "score_fn: 'ScoreFn'" in str(inspect.signature(function))
    for function in (sampling.predictor_corrector, ncsn_jax.likelihood.log_prob):
        assert "score_fn: 'TimeScoreFn'" in str(inspect.signature(function))


def test_package_ships_py_typed():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["ncsn_jax"] == ["py.typed"]
    assert (PACKAGE / "py.typed").exists()
