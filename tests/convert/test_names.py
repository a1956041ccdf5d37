"""How PyTorch numbers the layers."""

from ncsn_jax import models
from ncsn_jax.convert.names import layer_names


def test_layer_numbers_match_the_published_network():
    names = layer_names(models.NCSNpp())
    assert len(names) == 59
    numbers = {0: "fourier", 9: "down0_pyramid", 17: "down1_3_attention", 24: "down2_halving"}
    numbers |= {31: "middle_attention", 38: "up3_doubling", 50: "up1_attention", 56: "up0_4"}
    assert {number: names[number] for number in numbers} == numbers
