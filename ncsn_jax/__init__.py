"""Noise conditional score networks in JAX.

Import the parts that you need: `ncsn_jax.sigmas`, `ncsn_jax.losses`, `ncsn_jax.sampling`,
`ncsn_jax.scores` (these need only jax), `ncsn_jax.models` (and flax).
"""

__version__ = "0.1.0"
