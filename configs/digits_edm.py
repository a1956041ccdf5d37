"""EDM's training on the 8x8 digits: preconditioning, log-normal sigmas; minutes on two CPU cores.

    python main.py --config=configs/digits_edm.py --workdir=runs/digits_edm

The network and the number of steps are those of `digits_ve.py`. The images are in [-1, 1], with the standard
deviation 0.75.

Hardware: one CPU core; 748,737 parameters.
Expected time and result: as long as `digits_ve.py`; docs/edm.md says how good the samples are.
"""

from configs import digits_ve


def get_config():
    """Returns the configuration."""
    config = digits_ve.get_config()
    config.data.centered = True
    config.edm.sigma_data = 0.75
    config.model.sigma_begin = 80.0
    config.model.sigma_end = 0.002
    config.training.sde = "edm"
    config.training.grad_clip = 0.0
    config.training.reduce_mean = True
    return config
