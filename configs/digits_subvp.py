"""A small network under the sub-variance-preserving SDE, on the 8x8 digits: minutes on two CPU cores.

    python main.py --config=configs/digits_subvp.py --workdir=runs/digits_subvp

Hardware: one CPU core; 748,737 parameters.
Expected time and result: 2,000 steps in 7 to 14 minutes on a busy machine; docs/results.md says
how good the samples are.
"""

from configs import digits_vp


def get_config():
    """Returns the configuration."""
    config = digits_vp.get_config()
    config.training.sde = "subvp"
    return config
