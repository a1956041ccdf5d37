"""NCSN++ and, with other settings, DDPM++, the networks of the SDE framework (Song et al., 2021, appendix H).

They are U-Nets of residual blocks conditioned on an embedding of sigma or of the time. Their parts are chosen
by name, as in the authors' configurations; only published combinations are available. The down path keeps
its feature maps, which the up path uses in reverse. Two pyramids run alongside: an image that shrinks on the
down path, and one that grows on the up path.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax import _checks as check
from ncsn_jax.models.blocks import rematerialized
from ncsn_jax.models.embeddings import FourierEmbedding, positional_embedding
from ncsn_jax.models.layers import ClassEmbedding, Conv, Dense
from ncsn_jax.models.normalization import GroupNorm
from ncsn_jax.models.resampling import SmoothedDownConv, Taps, downsample, upsample
from ncsn_jax.models.unet import Attention, ResnetBlock, merged

# (resblock_type, fir, progressive, progressive_input)
ARCHITECTURES = (
    ("biggan", True, "none", "residual"),  # NCSN++ for CIFAR-10 and CelebA
    ("biggan", True, "output_skip", "input_skip"),  # NCSN++ from 256x256 pixels on
    ("biggan", False, "none", "none"),  # DDPM++
    ("ddpm", False, "none", "none"),  # DDPM++ with the blocks and the resampling of DDPM
)

CHOICES = {
    "embedding_type": ("fourier", "positional", "fourier_linear"),
    "conditional": (True,),
    "resamp_with_conv": (True,),
    "progressive_combine": ("sum",),
}


def normalized_channels(features: int, ch_mult: tuple[int, ...], num_res_blocks: int) -> set[int]:
    """Returns the channel counts that GroupNorm sees in any of the architectures."""
    last, skips = len(ch_mult) - 1, [features]
    for level, multiple in enumerate(ch_mult):
        skips += [multiple * features] * (num_res_blocks + (level < last))
    found, width = set(skips), skips[-1]
    for multiple in reversed(ch_mult):
        for _ in range(num_res_blocks + 1):
            found.add(width + skips.pop())
            width = multiple * features
    return found


class NCSNpp(nn.Module):
    """NCSN++ and DDPM++.

    `model.init(key, x, label)` returns the parameters and `model.apply(params, x, label)` the output F. For
    the variance-exploding SDE, with `scale_by_sigma`, F is the score. For the others it is minus the score
    times the standard deviation of the noise.

    The defaults are those of the continuous variance-exploding run on CIFAR-10, with 62,758,915 parameters.
    Below are the values of other published configurations; "Skip" means those from 256x256 pixels on.

    Args:
      features: channels n of the first level. 1024x1024 pixels: 16.
      ch_mult: channels of every level as multiples of n; each level halves the side of the previous one.
        256x256 pixels: (1, 1, 2, 2, 2, 2, 2); 1024x1024: (1, 2, 4, 8, 16, 32, 32, 32).
      num_res_blocks: residual blocks per level of the down path; the up path has one more. "Deep": 8;
        256x256 pixels: 2; 1024x1024: 1.
      attn_resolutions: sides of the feature maps with attention. All published: (16,).
      image_size: the side of the images, which determines the levels with attention. x may have a different
        side, but attention stays at these levels.
      dropout: dropout rate in the residual blocks, in training. Skip: 0.
      embedding_type: 'fourier', of sigma, or 'positional', of a time (all but the continuous
        variance-exploding runs). 'fourier_linear' is 'fourier' of a number in place of ln sigma, such as
        EDM's c_noise.
      fourier_scale: standard deviation of the random frequencies at initialisation.
      resblock_type: 'biggan', or 'ddpm' for DDPM's block and resampling convolutions.
      fir: whether resampling smooths with `fir_kernel`. DDPM++: False.
      fir_kernel: the four taps of the separable filter.
      skip_rescale: divide sums of two branches by the root of two.
      progressive: 'none', or 'output_skip': every level of the up path adds to a growing image.
      progressive_input: adds a shrinking image to every level of the down path. 'residual' convolves it and
        continues with the sum; 'input_skip' downsamples it and adds it by a 1x1 convolution. DDPM++: 'none'.
      progressive_combine: how 'input_skip' adds: 'sum'.
      resamp_with_conv: whether 'ddpm' resamples with a convolution: True.
      conditional: whether there is an embedding: True.
      init_scale: factor of the initial variance of the last kernels of each branch and of the network.
      scale_by_sigma: divide the output by sigma. DDPM++ and all but variance-exploding runs: False.
      sigmas: `[L]`, the ladder, for `scale_by_sigma` with 'positional'; the label is a level's index.
      centered: whether x is already in [-1, 1]. DDPM++ and all but variance-exploding runs: True.
      augment_features: length of the label of `augmentation.augment`; 0 for a network without one.
      remat, dtype: as for `NCSN`; the pyramid of 'output_skip' has the type of x.
      num_classes: K, the number of classes; 0 for a network without them. A row for the class, initially from
        N(0, 1), is added to the embedding, as in ADM (Dhariwal & Nichol, 2021). The published networks have
        none.

    The call takes

    - x: `[B, H, W, C]` images in [0, 1], or [-1, 1] if `centered`, plus noise. H and W are multiples of
      2^(len(ch_mult) - 1);
    - label: `[B]`; sigma > 0 for 'fourier'; for 'positional' the level's index, or 999 times the time of the
      continuous process; for a preconditioned network c_noise;
    - augment: `[B, augment_features]`, how the images were augmented; None stands for zeros, not at all;
    - deterministic: disables dropout; otherwise the rng 'dropout' is needed;
    - classes: `int[B]` in [0, K], K for no class, or None for no class in the whole batch;

    and returns F, `[B, H, W, C]`.
    """

    features: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    image_size: int = 32
    dropout: float = 0.1
    embedding_type: str = "fourier"
    fourier_scale: float = 16.0
    resblock_type: str = "biggan"
    fir: bool = True
    fir_kernel: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    skip_rescale: bool = True
    progressive: str = "none"
    progressive_input: str = "residual"
    progressive_combine: str = "sum"
    resamp_with_conv: bool = True
    conditional: bool = True
    init_scale: float = 0.0
    scale_by_sigma: bool = True
    sigmas: jax.Array | None = None
    centered: bool = False
    augment_features: int = 0
    remat: bool = False
    dtype: Any = None
    num_classes: int = 0

    @property
    def HALVINGS(self) -> int:
        """How often the down path halves the sides."""
        return len(self.ch_mult) - 1

    def attends(self, level: int) -> bool:
        """Returns whether a level has attention."""
        return self.image_size // 2**level in self.attn_resolutions

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        label: jax.Array,
        deterministic: bool = True,
        augment: jax.Array | None = None,
        classes: jax.Array | None = None,
    ) -> jax.Array:
        fourier = self.embedding_type == "fourier"
        on_ladder = self.scale_by_sigma and not fourier and self.sigmas is not None
        levels = len(self.sigmas) if on_ladder else None
        x, label = check.inputs(self, x, label, "label", levels)
        self._check(x)
        scales = {"skip_rescale": self.skip_rescale, "init_scale": self.init_scale}
        dropout = 0.0 if deterministic else self.dropout
        block_class = rematerialized(ResnetBlock, self.remat)
        attention_class = rematerialized(Attention, self.remat)
        embedding = self._embedding(label.astype(jnp.promote_types(x.dtype, jnp.float32)), augment)
        classes = check.classes(self, classes, x.shape[0])
        if classes is not None:
            init = nn.initializers.normal(1.0)
            table = ClassEmbedding(self.num_classes, 4 * self.features, init, name="classes")
            embedding += table(classes).astype(embedding.dtype)

        def block(name, h, width, resampling=None):
            options = {"resampling": resampling, "taps": self._taps, "dropout": dropout}
            biggan = self.resblock_type == "biggan"
            return block_class(width, biggan, **options, **scales, name=name)(h, embedding)

        def attention(name, h):
            return attention_class(**scales, name=name)(h)

        skips = self._down(x if self.centered else 2.0 * x - 1.0, block, attention)
        h = block("middle_0", skips[-1], skips[-1].shape[-1])
        h = attention("middle_attention", h)
        h = block("middle_1", h, h.shape[-1])
        h = self._up(h, skips, block, attention, x)
        if not self.scale_by_sigma:
            return h
        sigma = label if fourier else jnp.asarray(self.sigmas)[label.astype(jnp.int32)]
        return h / sigma[:, None, None, None].astype(x.dtype)

    @property
    def _taps(self) -> Taps | None:
        return self.fir_kernel if self.fir else None

    def _down(self, x: jax.Array, block: Callable, attention: Callable) -> list[jax.Array]:
        """Returns the feature maps of the down path, from the first to the last."""
        n, dtype = self.features, self.dtype or x.dtype
        h = Conv(n, xavier=True, name="begin_conv")(x).astype(dtype)
        skips, shrinking = [h], x.astype(dtype)
        for level, multiple in enumerate(self.ch_mult):
            for i in range(self.num_res_blocks):
                h = block(f"down{level}_{i}", h, multiple * n)
                if self.attends(level):
                    h = attention(f"down{level}_{i}_attention", h)
                skips.append(h)
            if level == self.HALVINGS:
                return skips
            name, width = f"down{level}_halving", h.shape[-1]
            if self.resblock_type == "biggan":
                h = block(name, h, width, "down")
            else:
                h = Conv(width, xavier=True, stride=2, padding=(0, 1), name=name)(h)
            name = f"down{level}_pyramid"
            if self.progressive_input == "residual":
                shrinking = SmoothedDownConv(width, self._taps, name=name)(shrinking)
                h = shrinking = merged(shrinking, h, self.skip_rescale)
            elif self.progressive_input == "input_skip":
                shrinking = downsample(shrinking, self._taps)
                h = h + Conv(width, kernel_size=1, xavier=True, name=name)(shrinking)
            skips.append(h)

    def _up(self, h: jax.Array, skips: list, block: Callable, attention: Callable, x: jax.Array):
        """Returns the up path's image `[B, H, W, C]`, like x, from h and the feature maps."""

        def image(name, normalizer, h):
            h = nn.silu(GroupNorm(name=normalizer)(h.astype(x.dtype)))
            return Conv(x.shape[-1], xavier=True, scale=self.init_scale, name=name)(h)

        growing = None
        for level in reversed(range(len(self.ch_mult))):
            width = self.ch_mult[level] * self.features
            for i in range(self.num_res_blocks + 1):
                h = block(f"up{level}_{i}", jnp.concatenate([h, skips.pop()], axis=-1), width)
            if self.attends(level):
                h = attention(f"up{level}_attention", h)
            if self.progressive == "output_skip":
                part = image(f"up{level}_image", f"up{level}_normalizer", h)
                growing = part if growing is None else upsample(growing, self._taps) + part
            if level == 0:
                break
            name = f"up{level}_doubling"
            if self.resblock_type == "biggan":
                h = block(name, h, width, "up")
            else:
                h = Conv(width, xavier=True, name=name)(upsample(h, None))
        return image("end_conv", "normalizer", h) if growing is None else growing

    def _embedding(self, label: jax.Array, augment: jax.Array | None) -> jax.Array:
        """Returns the embedding `[B, 4 n]` of the labels, for the blocks to activate."""
        n, kind = self.features, self.embedding_type
        if kind == "positional":
            embedding = positional_embedding(label, n)
        else:
            logarithm = kind == "fourier"
            embedding = FourierEmbedding(n, self.fourier_scale, logarithm, name="fourier")(label)
        if self.augment_features:
            shape = (*label.shape, self.augment_features)
            augment = jnp.zeros(shape, label.dtype) if augment is None else augment
            check.shape("augment", augment, shape)
            # Without a bias, so that zeros change nothing.
            linear = Dense(embedding.shape[-1], use_bias=False, name="augment")
            embedding = embedding + linear(augment.astype(embedding.dtype))
        embedding = Dense(4 * n, name="dense_0")(embedding)
        return Dense(4 * n, name="dense_1")(nn.silu(embedding))

    def _check(self, x: jax.Array) -> None:
        """Rejects settings that the originals do not have, and images that cannot be halved."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {list(choices)}, got {getattr(self, name)!r}"
                )
        architecture = (self.resblock_type, self.fir, self.progressive, self.progressive_input)
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"(resblock_type, fir, progressive, progressive_input) must be one of "
                f"{list(ARCHITECTURES)}, got {architecture}"
            )
        if len(self.fir_kernel) != 4:
            raise ValueError(f"fir_kernel must have four taps, got {self.fir_kernel}")
        if self.scale_by_sigma and self.embedding_type == "positional" and self.sigmas is None:
            raise ValueError("scale_by_sigma with embedding_type='positional' needs sigmas")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        check.sides(self, x, self.HALVINGS)
