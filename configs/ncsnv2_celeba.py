"""NCSNv2 on CelebA, cropped to 140x140 and resized to 64x64, as published (Song & Ermon, 2020, appendix B).

    python main.py --config=configs/ncsnv2_celeba.py --workdir=runs/ncsnv2_celeba

Hardware: TPU or GPUs; 29,694,083 parameters, 210,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.dataset = "celeb_a"
    config.data.image_size = 64
    config.data.crop_size = 140
    config.data.dequantize = False
    config.model.name = "ncsnv2"
    config.model.num_levels = 500
    config.model.sigma_begin = 90.0
    config.model.ema_decay = 0.999
    config.training.num_steps = 210_000
    config.optim.learning_rate = 1e-4
    # Twice the published step of 3.3e-06.
    config.sampling.epsilon = 6.6e-06
    config.sampling.steps_per_level = 5
    config.sampling.denoise = True
    return config
