"""NCSNv2 on CIFAR-10, 32x32, as published (Song & Ermon, 2020, appendix B).

    python main.py --config=configs/ncsnv2_cifar10.py --workdir=runs/ncsnv2_cifar10

Hardware: TPU or GPUs; 29,694,083 parameters, 300,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs import published


def get_config():
    """Returns the configuration."""
    return published.ncsnv2(
        "cifar10",
        32,
        crop_size=0,
        network="ncsnv2",
        num_levels=232,
        sigma_begin=50.0,
        num_steps=300_000,
        step_lr=6.2e-6,
        steps_per_level=5,
    )
