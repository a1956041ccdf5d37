"""A small network under the variance-preserving SDE, on the 8x8 digits: minutes on two CPU cores.

    python main.py --config=configs/digits_vp.py --workdir=runs/digits_vp

Hardware: one CPU core; 748,737 parameters.
Expected time and result: 2,000 steps in 7 to 14 minutes on a busy machine; docs/results.md says
how good the samples are.
"""

from configs import digits_ve


def get_config():
    """Returns the configuration."""
    config = digits_ve.get_config()
    config.data.centered = True
    # The ladder for images in [-1, 1]: samplers along sigmas use it, training does not.
    config.model.sigma_begin = 10.0
    config.model.sigma_end = 0.02
    config.training.sde = "vp"
    config.training.reduce_mean = True
    config.sampling.end = 1e-3
    config.sampling.epsilon = 9.9e-06
    config.evaluation.num_samples = 1000
    config.evaluation.features = "classifier"
    return config
