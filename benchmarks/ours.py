"""The worker of this library: training, evaluation and sampling as the application runs them.

    python -m benchmarks.ours

answers the requests of `benchmarks.workers`. It builds everything from a configuration, as `run_lib` does,
and maps it over the CPU devices with `ncsn_jax.app.devices`. The images are random.
"""

import functools
import importlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workers
from ncsn_jax.app import cpu

# The side of the matrices whose product measures the machine's peak.
_SIDE = 2048


class Ours(workers.Subject):
    """The tasks of a configuration, and its compilation.

    Args:
      config: a module of `configs`.
      overrides: values of its fields, by their dotted names.
      devices: how many CPU devices to use; None for as many as the application takes.
    """

    def __init__(self, config: str, overrides: dict, devices: int | None):
        self._config = importlib.import_module(f"configs.{config}").get_config()
        self._config.update_from_flattened_dict(overrides)
        devices = devices or cpu.devices_for(self._config)
        if devices is not None:  # otherwise `$JAX_NUM_CPU_DEVICES` may have chosen
            jax.config.update("jax_num_cpu_devices", devices)
        super().__init__(
            {
                "train": self._train,
                "evaluate": self._evaluate,
                "evaluations": self._evaluations,
                "sample": self._sample,
                "batch": self._batch,
                "matmul": self._matmul,
            }
        )
        from ncsn_jax.app import build, devices, schema

        self._build, self._devices = build, devices
        schema.check(self._config)
        self._seed = np.uint32(self._config.seed)
        self._init = build.make_init(self._config)
        self._shape = build.image_shape(self._config)
        self._batch_size = self._config.training.batch_size

    def operations(self) -> int:
        """Returns the floating-point operations of a training step."""
        from benchmarks.operations import step_operations

        model = self._build.make_model(self._config)
        shapes = jax.eval_shape(self._init, jax.random.key(0))
        return self._batch_size * step_operations(model, shapes.params, self._shape)

    def compile_seconds(self) -> float:
        """Returns how long the training step takes to trace and compile, or to load from the cache."""
        state, images = self._state(), self._images()
        started = time.perf_counter()
        self._compile(state, images)
        return time.perf_counter() - started

    def _state(self):
        """Returns the initial state."""
        return self._init(jax.random.key(0))

    def _images(self) -> np.ndarray:
        """Returns a random batch, uint8 `[1, B, H, W, C]`."""
        shape = (1, self._batch_size, *self._shape)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def _compile(self, state, images) -> Callable:
        return self._devices.TrainSteps(
            self._build.make_train_steps(self._config),
            state,
            self._devices.shard_batch(images),
            self._seed,
            remat=self._config.training.remat,
            packed=self._build.is_elementwise(self._config),
        )

    def _train(self) -> Callable:
        images, state = self._images(), self._state()
        steps = self._compile(state, images)
        state = steps.to_devices(state)

        def run():
            nonlocal state
            state, metrics, _ = steps(state, self._devices.shard_batch(images))
            jax.block_until_ready((state, metrics))

        return run

    def _map(self, function: Callable) -> Callable:
        """Returns a task's asynchronous call of `function(params, seed, indices, x)` on all devices."""
        params = self._devices.replicate(self._state().params)
        x = self._devices.shard_batch(self._images().astype(np.float32) / 255)[:, 0]
        indices = np.arange(self._batch_size, dtype=np.uint32).reshape(x.shape[:2])
        mapped = self._devices.map_examples(function)
        return lambda: mapped(params, self._seed, indices, x)

    def _call_network(self) -> Callable:
        model = self._build.make_model(self._config)

        def evaluate(params, seed, indices, x):
            return model.apply(params, x, jnp.zeros(indices.shape, int))

        return self._map(evaluate)

    def _evaluate(self) -> Callable:
        call = self._call_network()
        return lambda: jax.block_until_ready(call())

    def _evaluations(self) -> Callable:
        call = self._call_network()
        count = self._config.model.num_levels * self._config.sampling.steps_per_level

        def run():
            for _ in range(count):
                out = call()
            jax.block_until_ready(out)

        return run

    def _sample(self) -> Callable:
        from ncsn_jax import models
        from ncsn_jax.sampling import annealed_langevin

        model = self._build.make_model(self._config)
        ladder = self._build.make_sigmas(self._config)
        options = self._config.sampling

        def sample(params, seed, indices, x):
            keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(indices)
            return annealed_langevin(
                keys,
                models.score_fn(model, params, ladder),
                x,
                ladder,
                epsilon=options.epsilon,
                steps_per_level=options.steps_per_level,
            )

        call = self._map(sample)
        return lambda: jax.block_until_ready(call())

    def _batch(self) -> Callable:
        """Makes the next training batch of the configuration's images, on the host."""
        from ncsn_jax.app import data

        images = self._build.load_images(self._config)
        batches = data.Batches(images, self._config.seed, self._batch_size)
        step = 0

        def run():
            nonlocal step
            self._devices.shard_batch(batches(step))
            step += 1

        return run

    def _matmul(self) -> Callable:
        a = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE))
        product = jax.jit(jnp.matmul)
        return lambda: product(a, a).block_until_ready()

    def matmul_operations(self) -> int:
        """Returns the floating-point operations of the task 'matmul'."""
        return 2 * _SIDE**3


if __name__ == "__main__":
    workers.serve(Ours)
