"""NCSNv2 on FFHQ, a directory of its images, at 256x256, as published (Song & Ermon, 2020, appendix B).

It needs the directory as well: `--config.data.data_dir=path/to/images`.

    python main.py --config=configs/ncsnv2_ffhq.py --workdir=runs/ncsnv2_ffhq --config.data.data_dir=...

Hardware: TPU or GPUs; 94,132,611 parameters, 80,000 steps at batch 32.
Expected time and result: not yet measured.
"""

from configs import published


def get_config():
    """Returns the configuration."""
    config = published.ncsnv2(
        "image_folder",
        256,
        network="ncsnv2_deepest",
        num_levels=2311,
        sigma_begin=348.0,
        num_steps=80_000,
        step_lr=9e-7,
        steps_per_level=3,
    )
    config.training.batch_size = 32
    config.optim.eps = 1e-3
    return config
