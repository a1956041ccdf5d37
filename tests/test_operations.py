import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import operations


def test_multiply_adds_of_known_programs_are_counted():
    x, w = jnp.zeros((2, 8, 6, 3)), jnp.zeros((3, 3, 3, 5))

    def conv(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        padding = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(x, w, (2, 2), padding, dimension_numbers=numbers)

    def looped(a):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, a), None), a, length=7)[0]

    assert operations.count_multiply_adds(conv, x, w) == 2 * 4 * 3 * 5 * 27
    assert operations.count_multiply_adds(jnp.matmul, jnp.zeros((4, 5)), jnp.zeros((5, 6))) == 120
    assert operations.count_multiply_adds(looped, jnp.zeros((5, 5))) == 7 * 125


def test_training_step_counts_six_operations_per_multiply_add():
    network = nn.Conv(6, (3, 3), use_bias=False)

    class Model:
        def apply(self, params, x, label):
            return network.apply(params, x)

    params = {"params": {"kernel": jnp.zeros((3, 3, 3, 6))}}
    assert operations.step_operations(Model(), params, (8, 4, 3)) == 6 * (8 * 4 * 6) * (9 * 3)
