"""Settings of the whole suite, made before jax is imported: eight simulated devices, strict shapes.

Programs run only briefly, so they compile with few optimizations. To test them as users run them:
XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true" python -m pytest. If a flag
appears twice, XLA takes the last value. Processes that tests start inherit the flags, except those that
`test_faults` kills, which have the flags of users.
"""

import gc
import os
import pathlib
from importlib import metadata

# The compiler for TPUs may be installed; nothing here runs on one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=1",
        # XLA's older code generator for CPUs compiles a third faster; only jax 0.10 has both. One LLVM
        # module instead of up to 32, whose threads would have no core, saves another eighth.
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        if metadata.version("jaxlib").startswith("0.10.")
        else "",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_collective_call_terminate_timeout_seconds=30",
    ]
)

import jax
import numpy as np
import pytest
from jax.experimental import io_callback

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects that live on; Python would look through all of them again and again.
gc.set_threshold(100_000)

DATA = pathlib.Path(__file__).parent / "data"


def pytest_collection_finish():
    """Leaves what is imported out of garbage collections."""
    gc.freeze()


@pytest.fixture(scope="session")
def golden():
    """Returns a loader of the original implementations' figures: `golden(name)` is a dict of arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(DATA / f"{name}.npz") as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture
def stored_noise(monkeypatch):
    """Makes `jax.random.normal` return stored arrays, in the order that programs draw them."""

    def use(arrays):
        stored = iter(arrays)

        def normal(key, shape=(), dtype=float):
            def draw():
                return np.asarray(next(stored), dtype).reshape(shape)

            return io_callback(draw, jax.ShapeDtypeStruct(shape, dtype), ordered=True)

        monkeypatch.setattr(jax.random, "normal", normal)

    return use


@pytest.fixture(scope="session", autouse=True)
def cache_directory(tmp_path_factory):
    """Keeps the tests out of the user's caches, and shares compiled programs among their processes.

    This process has read the environment already, so its configuration is updated as well. Many modules run
    the same small networks.
    """
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCSN_JAX_CACHE", str(directory))
        patch.setenv("TFDS_DATA_DIR", str(directory / "tfds"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(directory / "compiled"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.01")
        jax.config.update("jax_compilation_cache_dir", str(directory / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.01)
        yield directory
