"""NCSNv2 on FFHQ, a directory of its images, at 256x256, as published (Song & Ermon, 2020, appendix B).

Needs the directory as well: `--config.data.data_dir=path/to/images`.

    python main.py --config=configs/ncsnv2_ffhq.py --workdir=runs/ncsnv2_ffhq --config.data.data_dir=...

Hardware: TPU or GPUs; 94,132,611 parameters, 80,000 steps at batch 32.
Expected time and result: not yet measured.
"""

from configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.dataset = "image_folder"
    config.data.image_size = 256
    config.data.crop_size = -1
    config.data.dequantize = False
    config.model.name = "ncsnv2_deepest"
    config.model.num_levels = 2311
    config.model.sigma_begin = 348.0
    config.model.ema_decay = 0.999
    config.training.num_steps = 80_000
    config.training.batch_size = 32
    config.optim.learning_rate = 1e-4
    config.optim.eps = 0.001
    # Twice the published step of 9e-07.
    config.sampling.epsilon = 1.8e-06
    config.sampling.steps_per_level = 3
    config.sampling.denoise = True
    return config
