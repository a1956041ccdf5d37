"""Holds what the published runs of NCSNv2 share (Song & Ermon, 2020, appendix B).

The files `ncsnv2_*.py` use it; it is not a run by itself.
"""

from configs import default


def ncsnv2(
    dataset: str,
    image_size: int,
    *,
    network: str,
    num_levels: int,
    sigma_begin: float,
    num_steps: int,
    step_lr: float,
    steps_per_level: int,
    crop_size: int = -1,
):
    """Returns the configuration of a run.

    Args:
      dataset, image_size, crop_size: see `config.data`.
      network, num_levels, sigma_begin: see `config.model`.
      num_steps: the number of training steps.
      step_lr: the step size in the authors' code, half of epsilon.
      steps_per_level: sampling steps at each level.
    """
    config = default.get_config()
    config.data.dataset = dataset
    config.data.image_size = image_size
    config.data.crop_size = crop_size
    config.data.dequantize = False
    config.model.name = network
    config.model.num_levels = num_levels
    config.model.sigma_begin = sigma_begin
    config.model.ema_decay = 0.999
    config.training.num_steps = num_steps
    config.optim.learning_rate = 1e-4
    config.sampling.epsilon = 2 * step_lr
    config.sampling.steps_per_level = steps_per_level
    config.sampling.denoise = True
    return config
