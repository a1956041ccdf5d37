r"""NCSN++ on CelebA-HQ, 256x256, variance-exploding SDE, as published (Song et al., 2021).

It needs a directory of its images.

    python main.py --config=configs/score_sde/ve_celebahq_256_ncsnpp_continuous.py --workdir=DIR \
        --config.data.data_dir=DIR

Hardware: TPU or GPUs; 65,574,549 parameters, 2,400,000 steps at batch 64.
Expected time and result: not yet measured.
"""

from configs.score_sde import published


def get_config():
    """Returns the configuration."""
    return published.high_resolution("image_folder", 348.0)
