"""NCSNv2 on LSUN church, cropped and resized to 96x96, as published (Song & Ermon, 2020, appendix B).

96x96 is the paper's resolution; the authors' configuration file has 64x64.

    python main.py --config=configs/ncsnv2_church.py --workdir=runs/ncsnv2_church

Hardware: TPU or GPUs; 83,445,379 parameters, 200,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs import published


def get_config():
    """Returns the configuration."""
    return published.ncsnv2(
        "lsun/church_outdoor",
        96,
        network="ncsnv2_deeper",
        num_levels=788,
        sigma_begin=140.0,
        num_steps=200_000,
        step_lr=4.9e-6,
        steps_per_level=4,
    )
