"""A small DDPM++ under the sub-variance-preserving SDE, on the 8x8 digits: minutes on two CPU cores.

python main.py --config=configs/digits_subvp.py --workdir=runs/digits_subvp
"""

from configs import digits_vp


def get_config():
    """Returns the configuration."""
    config = digits_vp.get_config()
    config.training.sde = "subvp"
    return config
