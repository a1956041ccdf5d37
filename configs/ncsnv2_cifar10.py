"""NCSNv2 on CIFAR-10, 32x32, as published (Song & Ermon, 2020, appendix B).

    python main.py --config=configs/ncsnv2_cifar10.py --workdir=runs/ncsnv2_cifar10

Hardware: TPU or GPUs; 29,694,083 parameters, 300,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.dataset = "cifar10"
    config.data.dequantize = False
    config.model.name = "ncsnv2"
    config.model.num_levels = 232
    config.model.sigma_begin = 50.0
    config.model.ema_decay = 0.999
    config.training.num_steps = 300_000
    config.optim.learning_rate = 1e-4
    # Twice the published step of 6.2e-06.
    config.sampling.epsilon = 1.24e-05
    config.sampling.steps_per_level = 5
    config.sampling.denoise = True
    return config
