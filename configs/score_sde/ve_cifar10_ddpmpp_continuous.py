"""DDPM++ on CIFAR-10, variance-exploding SDE, continuous objective.

This combination was not published; the settings are those of the NCSN++ run.

    python main.py --config=configs/score_sde/ve_cifar10_ddpmpp_continuous.py --workdir=DIR

Hardware: TPU or GPUs; 61,870,083 parameters, 1,300,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs.score_sde import published


def get_config():
    """Returns the configuration."""
    return published.cifar10("ve", "ddpmpp", continuous=True)
