"""NCSN++ on AFHQv2 at 64x64, EDM's training, as published.

    python main.py --config=configs/edm/afhqv2_ncsnpp.py --workdir=DIR --config.data.data_dir=DIR_OF_IMAGES

Hardware: TPU or GPUs; 62,761,219 parameters, 781,250 steps at batch 256.
Expected time and result: not yet measured. The paper's FID is 2.16 at 79 evaluations (table 2).
"""

from configs.edm import published


def get_config():
    """Returns the configuration."""
    return published.faces("ncsnpp", dropout=0.25)
