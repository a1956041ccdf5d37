"""Checks the methods of `ncsn_jax.inverse` on normal data, whose posterior is known in closed form.

    python -m benchmarks.posteriors [--methods mmps,pigdm] [--dimensions 16]

Data x_0 ~ N(mean, cov) of 16 and of 64 numbers, with eigenvalues of the covariance from 0.05 to 1, are
measured by each operator with noise of 0.01, 0.1 and 1. A method's score is then affine, so that a sampler's
steps are affine maps, and samples stay normal: their moments are computed in float64, with dense matrices,
apart from the library. Prints for each sampler, method and noise the largest deviations of 4,000 samples from
these moments, in standard errors, and how far the moments are from those of the posterior: the error of the
mean in the posterior's standard deviations, and the ratio of the standard deviations, over the operators.
"""

import argparse
import itertools
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import inverse, sampling

COUNT = 4000
SHAPES = {16: (2, 4, 2), 64: (4, 8, 2)}


class Problem(NamedTuple):
    """Data N(mean, cov) `[D]`, a dense operator `[M, D]`, and a measurement `[M]` with its noise."""

    mean: np.ndarray
    cov: np.ndarray
    dense: np.ndarray
    y: np.ndarray
    noise: float


def posterior(problem):
    """Returns mean and covariance of x_0 given y."""
    mean, cov, a, y, noise = problem
    gain = cov @ a.T @ np.linalg.inv(noise**2 * np.eye(len(a)) + a @ cov @ a.T)
    return mean + gain @ (y - a @ mean), cov - gain @ a @ cov


def affine_score(problem, method, sigma, data_std=1.0):
    """Returns P and q of the method's score."""
    mean, cov, a, y, noise = problem
    eye, square = np.eye(len(mean)), sigma**2
    precision = np.linalg.inv(cov + square * eye)
    shrink = cov @ precision  # D(x) = mean + shrink (x - mean)
    if method == "langevin":
        jacobian, offset = eye, 0 * mean
    else:
        jacobian, offset = shrink, mean - shrink @ mean
    spread = {
        "langevin": square * eye,
        "dps": 0 * eye,
        "pigdm": square * data_std**2 / (square + data_std**2) * eye,
        "mmps": square * shrink,
    }[method]
    gain = jacobian.T @ a.T @ np.linalg.inv(noise**2 * np.eye(len(a)) + a @ spread @ a.T)
    return precision + gain @ a @ jacobian, precision @ mean + gain @ (y - a @ offset)


def heun(problem, method, ladder, data_std=1.0):
    """Returns mean and covariance of the samples of Heun's method from N(0, ladder[0]^2)."""

    def slope(sigma, matrix, vector):
        p, q = affine_score(problem, method, sigma, data_std)
        return sigma * p @ matrix, sigma * (p @ vector - q)

    matrix, vector = np.eye(len(problem.mean)), np.zeros(len(problem.mean))
    for here, there in zip(ladder, [*ladder[1:], 0.0], strict=True):
        state = matrix, vector
        first = slope(here, *state)
        change = there - here
        second = first
        if there:
            ahead = (s + change * f for s, f in zip(state, first, strict=True))
            second = slope(there, *ahead)
        matrix, vector = (
            s + change * (f + g) / 2 for s, f, g in zip(state, first, second, strict=True)
        )
    return vector, ladder[0] ** 2 * matrix @ matrix.T


def annealed_langevin(problem, method, ladder, epsilon, steps_per_level):
    """Returns mean and covariance of the samples of annealed Langevin dynamics from N(0, ladder[0]^2)."""
    eye = np.eye(len(problem.mean))
    mean, cov = np.zeros(len(eye)), ladder[0] ** 2 * eye
    for sigma in ladder:
        p, q = affine_score(problem, method, sigma)
        alpha = epsilon * sigma**2 / ladder[-1] ** 2
        step = eye - alpha / 2 * p
        for _ in range(steps_per_level):
            mean, cov = step @ mean + alpha / 2 * q, step @ cov @ step.T + alpha * eye
    return mean, cov


class Data(NamedTuple):
    """Normal data of a shape, with their score."""

    shape: tuple[int, ...]
    mean: np.ndarray
    cov: np.ndarray

    def score(self, x, sigma):
        """Returns the score of the perturbed data; see `ScoreFn`."""
        values, vectors = (a.astype(np.float32) for a in np.linalg.eigh(self.cov))
        centred = (x.reshape(len(x), -1) - self.mean[None].astype(np.float32)) @ vectors
        return -((centred / (values[None] + sigma[:, None] ** 2)) @ vectors.T).reshape(x.shape)

    def problem(self, operator, noise, seed=2):
        """Returns a problem and its measurement as the library takes it, `[1, ...]`."""
        rng, size = np.random.default_rng(seed), len(self.mean)
        basis = jnp.eye(size).reshape(size, *self.shape)
        dense = np.asarray(operator.apply(basis), np.float64)
        x = self.mean + np.linalg.cholesky(self.cov) @ rng.normal(size=size)
        y = np.tensordot(x, dense, 1) + noise * rng.normal(size=dense.shape[1:])
        if operator.observed is not None:
            y = np.where(operator.observed[0], y, 0)
        flat = dense.reshape(size, -1).T
        problem = Problem(self.mean, self.cov, flat, y.ravel(), noise)
        return problem, jnp.asarray(y, jnp.float32)[None]


def make_data(shape, seed=1):
    """Returns data with a random mean, and eigenvalues of the covariance from 0.05 to 1."""
    rng, size = np.random.default_rng(seed), int(np.prod(shape))
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    cov = (basis * np.geomspace(0.05, 1, size)) @ basis.T
    return Data(tuple(shape), 0.3 * rng.normal(size=size), cov)


def make_operators(shape, seed=3):
    """Returns one operator of each kind for images of a shape."""
    rng, size = np.random.default_rng(seed), int(np.prod(shape))
    return {
        "mask": inverse.mask(rng.random((1, *shape)) < 0.5),
        "downsample": inverse.downsample(2),
        "blur": inverse.blur(np.outer([1, 2, 1], [1, 2, 1]) / 16),
        "fourier_mask": inverse.fourier_mask(rng.random((1, *shape[:2], 1)) < 0.5),
        "grey": inverse.grey(),
        "matrix": inverse.matrix(rng.normal(size=(5, size)) / size**0.5),
    }


def deviations(samples, mean, cov):
    """Returns by how many standard errors the samples' mean and covariance deviate at most."""
    samples = np.asarray(samples, np.float64)
    samples, std = samples.reshape(len(samples), -1), np.sqrt(np.diag(cov))
    of_mean = np.abs(samples.mean(0) - mean) / std * len(samples) ** 0.5
    # The covariance of a and b has the variance (cov_aa cov_bb + cov_ab^2) / (n - 1).
    error = np.sqrt((np.outer(std, std) ** 2 + cov**2) / (len(samples) - 1))
    of_cov = np.abs(np.cov(samples, rowvar=False) - cov) / error
    return float(of_mean.max()), float(of_cov.max())


def bias(problem, mean, cov):
    """Returns the error of a mean in the posterior's standard deviations (rms), and the ratio of these."""
    exact, exact_cov = posterior(problem)
    error = np.sqrt(np.sum((mean - exact) ** 2) / np.trace(exact_cov))
    return float(error), float(np.sqrt(np.trace(cov) / np.trace(exact_cov)))


def steps_of(method, noise):
    """Returns the number of levels; "dps" needs many where the noise is small."""
    return max(100, round(2.5 / noise**2)) if method == "dps" else 100


def sample(data, operator, sampler, method, noise, y, key):
    """Returns samples by a sampler and a method, and the function of a problem that gives their moments."""
    is_heun, end = sampler == "heun", 0.0005
    begin = 10 if method == "dps" or not is_heun else 100
    ladder = np.geomspace(begin, end, steps_of(method, noise)).astype(np.float32)
    epsilon, per_level = 0.5 * end**2, 20
    size = len(data.mean)

    @jax.jit
    def run(key, noise, y):
        key_start, key_steps = jax.random.split(key)
        given_y = inverse.posterior_score(
            data.score, operator, y, noise, method=method, iterations=2 * size
        )
        x = ladder[0] * jax.random.normal(key_start, (COUNT, *data.shape))
        if is_heun:
            return sampling.heun(key_steps, given_y, x, ladder)[0]
        return sampling.annealed_langevin(
            key_steps, given_y, x, ladder, epsilon=epsilon, steps_per_level=per_level
        )

    exact_ladder = ladder.astype(np.float64)

    def moments(problem):
        if is_heun:
            return heun(problem, method, exact_ladder)
        return annealed_langevin(problem, method, exact_ladder, epsilon, per_level)

    x = run(key, jnp.full(COUNT, noise), jnp.broadcast_to(y, (COUNT, *y.shape[1:])))
    return x, moments


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posteriors")
    parser.add_argument("--methods", default=",".join(inverse.METHODS), help="separated by commas")
    parser.add_argument("--dimensions", default="16,64", help="16, 64 or both")
    chosen = parser.parse_args()
    rows, noises = {}, (0.01, 0.1, 1.0)
    kinds = [("heun", method) for method in chosen.methods.split(",")]
    kinds += [("annealed Langevin", "langevin")] * ("langevin" in chosen.methods)
    shapes = [SHAPES[int(size)] for size in chosen.dimensions.split(",")]
    for shape, noise, (sampler, method) in itertools.product(shapes, noises, kinds):
        data = make_data(shape)
        for name, operator in make_operators(shape).items():
            problem, y = data.problem(operator, noise)
            started, key = time.perf_counter(), jax.random.key(len(rows))
            x, moments = sample(data, operator, sampler, method, noise, y, key)
            found = moments(problem)
            row = *deviations(x, *found), *bias(problem, *found)
            rows[shape, name, sampler, method, noise] = row
            seconds = time.perf_counter() - started
            report = *shape, name, sampler, method, noise, *(f"{v:.3f}" for v in row)
            print(*report, f"{seconds:.0f} s", file=sys.stderr, flush=True)
    print("| sampler | method | noise | mean | covariance | bias of the mean | width |")
    print("|---|---|---|---|---|---|---|")
    for (sampler, method), noise in itertools.product(kinds, noises):
        found = np.asarray([v for k, v in rows.items() if k[2:] == (sampler, method, noise)])
        high, low = found.max(0), found.min(0)
        print(
            f"| {sampler} | {method} | {noise} | {high[0]:.1f} | {high[1]:.1f} "
            f"| {low[2]:.3f} to {high[2]:.3f} | {low[3]:.3f} to {high[3]:.3f} |"
        )


if __name__ == "__main__":
    main()
