"""DDPM++, deep, on CIFAR-10, variance-preserving SDE, continuous objective, as published.

    python main.py --config=configs/score_sde/vp_cifar10_ddpmpp_deep_continuous.py --workdir=DIR

Hardware: TPU or GPUs; 106,632,579 parameters, 950,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs.score_sde import published


def get_config():
    """Returns the configuration."""
    return published.cifar10("vp", "ddpmpp", continuous=True, deep=True)
