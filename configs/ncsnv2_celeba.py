"""NCSNv2 on CelebA, cropped to 140x140 and resized to 64x64, as published (Song & Ermon, 2020, appendix B).

    python main.py --config=configs/ncsnv2_celeba.py --workdir=runs/ncsnv2_celeba

Hardware: TPU or GPUs; 29,694,083 parameters, 210,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs import published


def get_config():
    """Returns the configuration."""
    return published.ncsnv2(
        "celeb_a",
        64,
        crop_size=140,
        network="ncsnv2",
        num_levels=500,
        sigma_begin=90.0,
        num_steps=210_000,
        step_lr=3.3e-6,
        steps_per_level=5,
    )
