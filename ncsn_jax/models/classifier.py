"""A small classifier of noisy images, for class-conditional sampling.

Song et al. (2021, appendix I.1) guide a sampler by the gradient of log p(y | x_t, t), which a classifier
learns from images with the SDE's noise. This one is the down path of a U-Net. One set of weights serves any
sigma: the input is scaled to order one, as in the preconditioning of Karras et al. (2022), and every block
sees an embedding of ln sigma. The logits are smooth in x.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax import _checks as check
from ncsn_jax.models.embeddings import FourierEmbedding
from ncsn_jax.models.layers import Conv, Dense, mean_pool
from ncsn_jax.models.normalization import GroupNorm
from ncsn_jax.models.unet import ResnetBlock

# Standard deviation of the frequencies in ln sigma: a typical one has two periods between sigmas of 0.01
# and 100, so that neighbouring sigmas look alike.
_FOURIER_SCALE = 0.2


class NoisyClassifier(nn.Module):
    """Computes the logits of the classes of x = x_0 + sigma z.

    `model.init(key, x, sigma)` returns the parameters and `model.apply(params, x, sigma)` the logits,
    initially zero. `ncsn_jax.classifier` has functions of an SDE's time.

    Args:
      num_classes: K >= 2.
      features: channels n of the first level, a multiple of 4.
      ch_mult: channels of every level as multiples of n. Each level has two residual blocks; between levels
        sides are halved, odd ones rounded up.

    The call takes

    - x: `[B, H, W, C]`, of any size; x_0 is of order one, for example in [0, 1] or [-1, 1];
    - sigma: `[B]`, > 0, the standard deviation of the noise in x, in units of x_0;

    and returns the logits, `[B, K]`.
    """

    num_classes: int
    features: int = 32
    ch_mult: tuple[int, ...] = (1, 2)

    @nn.compact
    def __call__(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")
        x, sigma = check.inputs(self, x, sigma, "sigma")
        sigma = sigma.astype(x.dtype)
        n = self.features
        embedding = FourierEmbedding(n, _FOURIER_SCALE, name="fourier")(sigma)
        embedding = Dense(4 * n, name="dense_0")(embedding)
        embedding = Dense(4 * n, name="dense_1")(nn.silu(embedding))

        h = x / jnp.sqrt(1.0 + jnp.square(sigma))[:, None, None, None]
        h = Conv(n, xavier=True, name="begin_conv")(h)
        for level, multiple in enumerate(self.ch_mult):
            if level:
                odd = ((0, 0), (0, h.shape[1] % 2), (0, h.shape[2] % 2), (0, 0))
                h = mean_pool(jnp.pad(h, odd, mode="edge"))
            for i in range(2):
                block = ResnetBlock(multiple * n, skip_rescale=True, name=f"block{level}_{i}")
                h = block(h, embedding)
        h = nn.silu(GroupNorm(name="normalizer")(h))
        return Dense(self.num_classes, scale=0.0, name="end_dense")(jnp.mean(h, axis=(1, 2)))
