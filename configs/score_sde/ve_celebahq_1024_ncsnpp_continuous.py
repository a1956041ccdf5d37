r"""NCSN++ on CelebA-HQ, 1024x1024, variance-exploding SDE, as published (Song et al., 2021).

It needs a directory of its images.

    python main.py --config=configs/score_sde/ve_celebahq_1024_ncsnpp_continuous.py --workdir=DIR \
        --config.data.data_dir=DIR

Hardware: TPU or GPUs; 105,785,896 parameters, 2,400,000 steps at batch 8.
Expected time and result: not yet measured.
"""

from configs.score_sde import published


def get_config():
    """Returns the configuration."""
    return published.faces_1024(ema_decay=0.9999, reduce_mean=False)
