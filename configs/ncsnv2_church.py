"""NCSNv2 on LSUN church, cropped and resized to 96x96, as published (Song & Ermon, 2020, appendix B).

The paper's resolution; the authors' configuration file has 64x64.

    python main.py --config=configs/ncsnv2_church.py --workdir=runs/ncsnv2_church

Hardware: TPU or GPUs; 83,445,379 parameters, 200,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.dataset = "lsun/church_outdoor"
    config.data.image_size = 96
    config.data.crop_size = -1
    config.data.dequantize = False
    config.model.name = "ncsnv2_deeper"
    config.model.num_levels = 788
    config.model.sigma_begin = 140.0
    config.model.ema_decay = 0.999
    config.training.num_steps = 200_000
    config.optim.learning_rate = 1e-4
    # Twice the published step of 4.9e-06.
    config.sampling.epsilon = 9.8e-06
    config.sampling.steps_per_level = 4
    config.sampling.denoise = True
    return config
