"""DDPM++ on CIFAR-10, variance-preserving SDE, discrete objective, as published.

    python main.py --config=configs/score_sde/vp_cifar10_ddpmpp.py --workdir=DIR

Hardware: TPU or GPUs; 61,804,419 parameters, 1,300,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs.score_sde import published


def get_config():
    """Returns the configuration."""
    return published.cifar10("vp", "ddpmpp", continuous=False)
