"""What annealed Langevin dynamics costs beyond its network evaluations.

    python -m benchmarks.sampler_overhead [--batch=100] [--rounds=5]

The network of `configs/digits.py`, 1,000 steps of the compiled sampler against 1,000 calls of the
compiled network alone, alternating in one process. Prints the ratio of the medians, of which 1 is
ideal; below 1 the sampler saves what a call costs.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from configs import digits
from ncsn_jax import config as configuration
from ncsn_jax import models, sigmas
from ncsn_jax.sampling import annealed_langevin

STEPS = 1000


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    config = digits.get_config()
    config.model.num_levels = 10
    model, ladder = configuration.make_model(config), sigmas.geometric(1.0, 0.04, 10)
    x = jax.random.uniform(jax.random.key(0), (options.batch, 8, 8, 1))
    level = jnp.zeros(options.batch, int)
    params = model.lazy_init(jax.random.key(1), x, level)

    evaluate = jax.jit(model.apply)
    sample = jax.jit(
        lambda params, key, x: annealed_langevin(
            key, models.score_fn(model, params, ladder), x, ladder, steps_per_level=STEPS // 10
        )
    )
    keys = jax.random.split(jax.random.key(2), options.batch)

    def seconds(function) -> float:
        started = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - started

    def evaluations():
        for _ in range(STEPS):
            out = evaluate(params, x, level)
        return out

    jax.block_until_ready((evaluate(params, x, level), sample(params, keys, x)))
    rounds = [
        (seconds(evaluations), seconds(lambda: sample(params, keys, x)))
        for _ in range(options.rounds)
    ]
    bare, whole = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(
        f"{STEPS} evaluations {bare:.2f} s, {STEPS} steps {whole:.2f} s, ratio {whole / bare:.3f} "
        f"(rounds: {', '.join(f'{b / a:.3f}' for a, b in rounds)})"
    )


if __name__ == "__main__":
    main()
