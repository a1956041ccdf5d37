"""NCSNv2 on LSUN bedroom, cropped and resized to 128x128, as published (Song & Ermon, 2020, appendix B).

    python main.py --config=configs/ncsnv2_bedroom.py --workdir=runs/ncsnv2_bedroom

Hardware: TPU or GPUs; 83,445,379 parameters, 150,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs import published


def get_config():
    """Returns the configuration."""
    return published.ncsnv2(
        "lsun/bedroom",
        128,
        network="ncsnv2_deeper",
        num_levels=1086,
        sigma_begin=190.0,
        num_steps=150_000,
        step_lr=1.8e-6,
        steps_per_level=3,
    )
