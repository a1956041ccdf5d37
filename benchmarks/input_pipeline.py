"""Measures the input pipeline against the training step it feeds, side by side in one process.

    python -m benchmarks.input_pipeline --config=configs/digits.py [overrides]

Prints the time to make a batch on the host, the time of a training step, and their ratio. The
application makes the next batch while a step runs, so that a ratio below 1 costs nothing.
"""

import statistics
import time

import jax
import numpy as np
from absl import app
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)


def main(_) -> None:
    """Prints the two medians over alternating calls, and their ratio."""
    from ncsn_jax import config as configuration
    from ncsn_jax import data, parallel

    config = _CONFIG.value
    images = configuration.load_images(config)
    batches = data.Batches(images, config.seed, config.training.batch_size)
    state = configuration.make_init(config)(jax.random.key(0))
    p_steps, _ = parallel.compile_train_steps(
        configuration.make_train_steps(config), state, parallel.spread(batches(0)), np.uint32(0)
    )
    state = parallel.replicate(state)
    seconds = {"batch": [], "step": []}
    for step in range(12):
        start = time.perf_counter()
        batch = parallel.spread(batches(step))
        middle = time.perf_counter()
        state, metrics, _ = p_steps(state, batch, np.uint32(0))
        jax.block_until_ready(metrics)
        seconds["batch"].append(middle - start)
        seconds["step"].append(time.perf_counter() - middle)
    batch, step = (statistics.median(seconds[name][2:]) * 1e3 for name in ("batch", "step"))
    print(f"batch {batch:.3f} ms, step {step:.1f} ms, ratio {batch / step:.5f}")


if __name__ == "__main__":
    app.run(main)
