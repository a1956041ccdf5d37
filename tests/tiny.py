"""A configuration for tests: digits, and a network of two convolutions that compiles in a second.

python main.py --config=tests/tiny.py --workdir=DIR
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from configs import digits
from ncsn_jax import models
from ncsn_jax.app import build, schema


class Tiny(nn.Module):
    """The smallest network that the application accepts: a level, sigmas, convolutions."""

    features: int
    sigmas: jax.Array
    dtype: Any = None
    remat: bool = False  # two convolutions have nothing to save

    HALVINGS = 0

    @nn.compact
    def __call__(self, x, level):
        table = self.param(
            "embedding", nn.initializers.normal(1.0), (len(self.sigmas), self.features)
        )
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), dtype=self.dtype)
        h = conv(self.features)(2 * x - 1) + table[level][:, None, None, :]
        return conv(x.shape[-1])(nn.elu(h)) / self.sigmas[level][:, None, None, None]


class TinyDiffusion(models.NCSNpp):
    """The smallest stand-in for NCSNpp, with the same settings.

    It starts near the score of normal data, because solvers would otherwise diverge.
    """

    @nn.compact
    def __call__(self, x, label, deterministic=True, augment=None, classes=None):
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), dtype=self.dtype)
        label = jnp.asarray(label, jnp.float32)[:, None]
        h = conv(self.features)(x if self.centered else 2 * x - 1)
        h = h + nn.Dense(self.features)(jnp.log1p(jnp.abs(label)))[:, None, None, :]
        if self.augment_features:
            augment = jnp.zeros((len(x), self.augment_features)) if augment is None else augment
            h = h + nn.Dense(self.features, use_bias=False)(augment)[:, None, None, :]
        if self.num_classes:
            classes = jnp.full(len(x), self.num_classes) if classes is None else classes
            h += nn.Dense(self.features)(jax.nn.one_hot(classes, self.num_classes))[:, None, None]
        if not deterministic:
            h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = conv(x.shape[-1], kernel_init=nn.initializers.normal(1e-2))(nn.silu(h))
        if self.embedding_type != "fourier":
            return x + h
        sigma = label[:, None, None]
        return h - (x - 0.5) / (sigma**2 + 0.25)


assert "tiny" not in schema.FIELDS["model.name"].limits[0][1]  # the text was made earlier
build.MODELS["tiny"] = Tiny


def get_config():
    config = digits.get_config()
    config.model.name = "tiny"
    config.model.features = 4
    config.model.num_levels = 2
    config.training.batch_size = 8
    config.optim.schedule = "constant"  # the number of steps may change
    config.training.num_steps = 60
    config.training.checkpoint_every = 10
    config.training.log_every = 20
    config.training.sample_every = 40
    config.sampling.preview_samples = 8
    config.sampling.steps_per_level = 2
    config.sampling.num_samples = 12
    config.sampling.batch_size = 8
    return config
