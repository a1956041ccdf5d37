"""NCSN++, deep, on CIFAR-10, variance-exploding SDE, continuous objective, as published.

    python main.py --config=configs/score_sde/ve_cifar10_ncsnpp_deep_continuous.py --workdir=DIR

Hardware: TPU or GPUs; 107,587,075 parameters, 950,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs.score_sde import published


def get_config():
    """Returns the configuration."""
    return published.cifar10("ve", "ncsnpp", continuous=True, deep=True)
