"""A small DDPM++ under the variance-preserving SDE, on the 8x8 digits: minutes on two CPU cores.

python main.py --config=configs/digits_vp.py --workdir=runs/digits_vp
"""

from configs import digits_ve


def get_config():
    """Returns the configuration."""
    config = digits_ve.get_config()
    config.data.centered = True
    # Of images in [-1, 1], for samplers along sigmas; training does not use them.
    config.model.sigma_begin = 10.0
    config.model.sigma_end = 0.02
    config.training.sde = "vp"
    config.training.reduce_mean = True
    config.sampling.end = 1e-3
    return config
