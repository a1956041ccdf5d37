"""NCSNv2 on LSUN bedroom, cropped and resized to 128x128, as published (Song & Ermon, 2020, appendix B).

    python main.py --config=configs/ncsnv2_bedroom.py --workdir=runs/ncsnv2_bedroom

Hardware: TPU or GPUs; 83,445,379 parameters, 150,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.dataset = "lsun/bedroom"
    config.data.image_size = 128
    config.data.crop_size = -1
    config.data.dequantize = False
    config.model.name = "ncsnv2_deeper"
    config.model.num_levels = 1086
    config.model.sigma_begin = 190.0
    config.model.ema_decay = 0.999
    config.training.num_steps = 150_000
    config.optim.learning_rate = 1e-4
    # Twice the published step of 1.8e-06.
    config.sampling.epsilon = 3.6e-06
    config.sampling.steps_per_level = 3
    config.sampling.denoise = True
    return config
