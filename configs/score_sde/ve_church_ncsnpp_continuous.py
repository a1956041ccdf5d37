"""NCSN++ on LSUN church, 256x256, variance-exploding SDE, as published (Song et al., 2021).

    python main.py --config=configs/score_sde/ve_church_ncsnpp_continuous.py --workdir=DIR

Hardware: TPU or GPUs; 65,574,549 parameters, 2,400,000 steps at batch 64.
Expected time and result: not yet measured.
"""

from configs.score_sde import published


def get_config():
    """Returns the configuration."""
    return published.high_resolution("lsun/church_outdoor", 380.0)
