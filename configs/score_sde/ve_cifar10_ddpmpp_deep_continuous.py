"""DDPM++, deep, on CIFAR-10, variance-exploding SDE, continuous objective.

This combination was not published; the settings are those of the NCSN++ run.

    python main.py --config=configs/score_sde/ve_cifar10_ddpmpp_deep_continuous.py --workdir=DIR

Hardware: TPU or GPUs; 106,698,243 parameters, 950,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs.score_sde import published


def get_config():
    """Returns the configuration."""
    return published.cifar10("ve", "ddpmpp", continuous=True, deep=True)
