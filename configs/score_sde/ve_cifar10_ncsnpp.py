"""NCSN++ on CIFAR-10, variance-exploding SDE, discrete objective, as published.

    python main.py --config=configs/score_sde/ve_cifar10_ncsnpp.py --workdir=DIR

Hardware: TPU or GPUs; 62,693,251 parameters, 1,300,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs.score_sde import published


def get_config():
    """Returns the configuration."""
    return published.cifar10("ve", "ncsnpp", continuous=False)
