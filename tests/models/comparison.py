"""Computes outputs and compares them with the original networks' values."""

import jax
import numpy as np


def compiled_quickly(function, *arguments):
    """Compiles without LLVM's optimizations, which take longer than these programs run."""
    return jax.jit(function).lower(*arguments).compile({"xla_backend_optimization_level": 0})


def run(function, *arguments):
    """Calls a function once, with `compiled_quickly`."""
    return compiled_quickly(function, *arguments)(*arguments)


def part(arrays, prefix):
    """Returns the arrays whose names begin with a prefix, under the rest of the name."""
    return {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}


def nhwc(array):
    return np.asarray(array).transpose(0, 2, 3, 1)


def assert_close(actual, expected, bound=1e-5):
    """Compares per example, relative to that example's largest magnitude (float32 leaves 2e-6)."""
    axes = tuple(range(1, expected.ndim))
    error = np.abs(np.asarray(actual) - expected).max(axis=axes) / np.abs(expected).max(axis=axes)
    assert np.all(error < bound), error
