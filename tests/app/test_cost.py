import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax.app import cost


def test_multiply_adds_of_known_programs():
    x, w = jnp.zeros((2, 8, 6, 3)), jnp.zeros((3, 3, 3, 5))

    def conv(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        padding = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(x, w, (2, 2), padding, dimension_numbers=numbers)

    def looped(a):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, a), None), a, length=7)[0]

    assert cost.count_multiply_adds(conv, x, w) == 2 * 4 * 3 * 5 * 27
    assert cost.count_multiply_adds(jnp.matmul, jnp.zeros((4, 5)), jnp.zeros((5, 6))) == 120
    assert cost.count_multiply_adds(looped, jnp.zeros((5, 5))) == 7 * 125


def cost_of(model, image_shape, *, ema):
    """The estimate for a network, from the shapes of its parameters."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), image, level)
    return cost.estimate_cost(model, params, image_shape, ema=ema)


class Sines(nn.Module):
    """A convolution, then sines of convolutions, each a block."""

    remat: bool = False
    dtype: object = None

    @nn.compact
    def __call__(self, x, level):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Conv(6, (3, 3), use_bias=False, dtype=x.dtype)(jnp.sin(x))

        block = nn.remat(Block) if self.remat else Block
        h = nn.Conv(6, (3, 3), use_bias=False, dtype=self.dtype)(x)
        return block()(block()(h))


def test_activations_of_a_network_that_is_known():
    """A sine's derivative is its cosine, and a convolution's, by its kernel, is its input."""
    map_, weights = 8 * 4 * 6, 9 * (3 + 6 + 6) * 6
    plain = cost_of(Sines(), (8, 4, 3), ema=True)
    assert plain.parameters == weights and plain.state_bytes == 5 * 4 * weights
    assert plain.multiply_adds == 8 * 4 * weights and plain.step_operations == 6 * 8 * 4 * weights
    assert plain.activation_bytes == 4 * map_ * 4  # two sines and two cosines; the image is there
    half = cost_of(Sines(dtype=jnp.bfloat16), (8, 4, 3), ema=False)
    assert half.state_bytes == 4 * 4 * weights
    # The image and the kernel of the first convolution and the kernels of the others, rounded, besides.
    assert half.activation_bytes == 4 * map_ * 2 + 2 * (8 * 4 * 3 + 2 * 9 * 6 * 6)
    again = cost_of(Sines(remat=True), (8, 4, 3), ema=True)
    assert again == plain._replace(activation_bytes=2 * map_ * 4)  # the inputs of the blocks


def test_cost_is_told_for_the_images_that_are_computed_at_once():
    found = cost.Cost(143_505, 3_000_000, 18_000_000, 2 * 2**20, 2**20)
    assert cost.describe_cost(found, 16) == (
        "143505 parameters, 3e+06 multiply-adds per image and evaluation; about 1.8e+07 operations per "
        "image and training step, 2 MiB for the state of training and 16 MiB for the activations of 16 "
        "image(s) per device"
    )


class Residual(nn.Module):
    """As the large networks are made: normalization, nonlinearity, convolution, and a sum."""

    @nn.compact
    def __call__(self, x, level):
        h = nn.Conv(8, (3, 3))(x)
        for _ in range(4):
            h = h + nn.Conv(8, (3, 3))(nn.silu(nn.GroupNorm(2)(h)))
        return nn.Conv(3, (3, 3))(h)


def test_activations_are_those_that_the_compiler_has_room_for():
    """Within a factor of two: it computes some again, and the gradient of one layer needs room too."""
    model, shape = Residual(), (16, 16, 3)

    def room(count):
        image = jax.ShapeDtypeStruct((count, *shape), jnp.float32)
        level = jax.ShapeDtypeStruct((count,), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), image, level)
        loss = lambda params, x, level: jnp.square(model.apply(params, x, level)).mean()
        compiled = jax.jit(jax.grad(loss)).lower(params, image, level)
        compiled = compiled.compile({"xla_backend_optimization_level": 0})
        return compiled.memory_analysis().temp_size_in_bytes

    per_image = (room(24) - room(8)) / 16
    estimated = cost_of(model, shape, ema=False).activation_bytes
    assert 0.5 < per_image / estimated < 2
