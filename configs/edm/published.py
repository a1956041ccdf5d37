"""Holds what the published runs of Karras et al. (2022) share, from their table 7 and their code.

The other files in this directory use it; it is not a run by itself.

The paper calls the runs with DDPM++ VP and those with NCSN++ VE, after the SDEs of these networks' first
runs. docs/edm.md has the configurations of its ablation.
"""

from configs import default

_MEGA = 10**6


def cifar10(network: str):
    """Returns the configuration of the run on CIFAR-10 without classes.

    Args:
      network: 'ncsnpp' or 'ddpmpp'.
    """
    config = default.get_config()
    config.data.random_flip = False
    config.data.dequantize = False
    config.data.centered = True
    config.model.name = "ncsnpp"
    config.model.sigma_begin = 80.0
    config.model.sigma_end = 0.002
    config.model.ema_halflife = _MEGA // 2
    config.model.ema_rampup = 0.05
    config.ncsnpp.ch_mult = (2, 2, 2)
    config.ncsnpp.dropout = 0.13
    if network == "ddpmpp":
        config.ncsnpp.fir = False
        config.ncsnpp.progressive_input = "none"
    config.training.sde = "edm"
    config.training.continuous = True
    config.training.augment = 0.12
    config.training.checkpoint_every = 5000
    config.training.sample_every = 25_000
    config.optim.learning_rate = 1e-3
    config.sampling.method = "heun"
    config.sampling.num_steps = 18
    _set_batch(config, 512)
    return config


def faces(network: str, *, dropout: float):
    """Returns the configuration of a run on FFHQ or AFHQv2, a folder of images at 64x64.

    Args:
      network: as for `cifar10`.
      dropout: the dropout rate.
    """
    config = cifar10(network)
    config.data.dataset = "image_folder"
    config.data.image_size = 64
    config.data.crop_size = -1
    config.ncsnpp.ch_mult = (1, 2, 2, 2)
    config.ncsnpp.dropout = dropout
    config.training.augment = 0.15
    config.optim.learning_rate = 2e-4
    config.sampling.num_steps = 40
    _set_batch(config, 256)
    return config


def _set_batch(config, size: int) -> None:
    """Sets the batch, 200 million images of training, and 10 million of warm-up."""
    config.training.batch_size = size
    config.training.num_steps = 200 * _MEGA // size
    config.optim.warmup_steps = 10 * _MEGA // size
