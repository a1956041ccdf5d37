"""NCSNv2 on LSUN tower, cropped and resized to 128x128, as published (Song & Ermon, 2020, appendix B).

    python main.py --config=configs/ncsnv2_tower.py --workdir=runs/ncsnv2_tower

Hardware: TPU or GPUs; 83,445,379 parameters, 150,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs import ncsnv2_bedroom


def get_config():
    """Returns the bedrooms' configuration with other images."""
    config = ncsnv2_bedroom.get_config()
    config.data.dataset = "lsun/tower"
    return config
