"""Holds what the published runs of Song et al. (2021) share, from their configurations.

The other files in this directory use it; it is not a run by itself.
"""

from configs import default

# Where DDPM++ differs from NCSN++.
_DDPMPP = {"fir": False, "progressive_input": "none"}


def cifar10(sde: str, network: str, *, continuous: bool, deep: bool = False):
    """Returns the configuration of a run on CIFAR-10.

    Args:
      sde: 've', 'vp' or 'subvp'.
      network: 'ncsnpp' or 'ddpmpp'.
      continuous: whether the objective is in continuous time.
      deep: whether each level has 8 residual blocks instead of 4.
    """
    config = default.get_config()
    is_ve = sde == "ve"
    config.data.dequantize = False
    config.data.centered = not is_ve
    config.model.name = "ncsnpp"
    config.model.sigma_begin = 50.0
    config.model.num_levels = 1000
    config.model.ema_decay = 0.999 if is_ve else 0.9999
    if network == "ddpmpp":
        config.ncsnpp.update(_DDPMPP)
    if deep:
        config.ncsnpp.num_res_blocks = 8
    config.training.sde = sde
    config.training.continuous = continuous
    config.training.reduce_mean = not is_ve
    config.training.num_steps = 950_000 if deep else 1_300_000
    config.training.checkpoint_every = 10_000
    config.training.sample_every = 50_000
    config.training.grad_clip = 1.0
    config.optim.learning_rate = 2e-4
    config.optim.warmup_steps = 5000
    sampling = config.sampling
    sampling.method = "predictor_corrector"
    sampling.denoise = True
    if is_ve:
        sampling.predictor, sampling.corrector, sampling.snr = "reverse_diffusion", "langevin", 0.16
        return config
    sampling.end = 1e-3
    if continuous:
        sampling.predictor = "euler_maruyama"
    else:
        sampling.predictor = "ancestral" if network == "ddpmpp" else "reverse_diffusion"
    return config


def celeba():
    """Returns the configuration of the run on CelebA at 64x64."""
    config = cifar10("ve", "ncsnpp", continuous=False)
    config.data.dataset = "celeb_a"
    config.data.image_size = 64
    config.data.crop_size = 140
    config.model.sigma_begin = 90.0
    config.sampling.snr = 0.17
    return config


def high_resolution(dataset: str, sigma_begin: float):
    """Returns the configuration of a run at 256x256.

    Args:
      dataset: see `config.data.dataset`.
      sigma_begin: the largest sigma.
    """
    config = cifar10("ve", "ncsnpp", continuous=True)
    config.data.dataset = dataset
    config.data.image_size = 256
    config.data.crop_size = -1
    config.model.sigma_begin = sigma_begin
    config.model.num_levels = 2000
    config.ncsnpp.ch_mult = (1, 1, 2, 2, 2, 2, 2)
    config.ncsnpp.num_res_blocks = 2
    config.ncsnpp.dropout = 0.0
    config.ncsnpp.progressive = "output_skip"
    config.ncsnpp.progressive_input = "input_skip"
    config.training.batch_size = 64
    config.training.num_steps = 2_400_000
    config.sampling.num_steps = 2000
    config.sampling.snr = 0.075
    config.sampling.batch_size = 16
    return config


def faces_1024(*, ema_decay: float, reduce_mean: bool):
    """Returns the configuration of a run on faces at 1024x1024.

    Args:
      ema_decay: the decay of the parameters' EMA.
      reduce_mean: whether the loss is a mean over elements.
    """
    config = high_resolution("image_folder", 1348.0)
    config.data.image_size = 1024
    config.model.features = 16
    config.model.ema_decay = ema_decay
    config.ncsnpp.ch_mult = (1, 2, 4, 8, 16, 32, 32, 32)
    config.ncsnpp.num_res_blocks = 1
    config.training.batch_size = 8
    config.training.reduce_mean = reduce_mean
    config.sampling.snr = 0.15
    config.sampling.batch_size = 8
    return config
