"""A small network under the variance-exploding SDE, on the 8x8 digits: minutes on two CPU cores.

    python main.py --config=configs/digits_ve.py --workdir=runs/digits_ve

It has the continuous objective of the published NCSN++ runs, DDPM++'s parts, 32 features and two levels.

Hardware: one CPU core; 752,865 parameters.
Expected time and result: 2,000 steps in 7 to 14 minutes on a busy machine; docs/results.md says
how good the samples are.
"""

from configs import digits


def get_config():
    """Returns the configuration."""
    config = digits.get_config()
    config.model.name = "ncsnpp"
    config.model.features = 32
    # The largest distance between two digits is 4.8.
    config.model.sigma_begin = 5.0
    config.model.sigma_end = 0.01
    config.model.num_levels = 1000
    config.ncsnpp.ch_mult = (1, 2)
    config.ncsnpp.num_res_blocks = 1
    config.ncsnpp.attn_resolutions = (4,)
    config.ncsnpp.dropout = 0.0
    # With the published 16 the features turn 100 times over these sigmas, which takes longer to learn.
    config.ncsnpp.fourier_scale = 1.0
    config.ncsnpp.fir = False
    config.ncsnpp.progressive_input = "none"
    config.model.ema_decay = 0.998
    config.training.num_steps = 2000
    config.training.sample_every = 1000
    config.training.sde = "ve"
    config.training.continuous = True
    config.training.grad_clip = 1.0
    config.optim.learning_rate = 2e-3
    config.likelihood.rtol = config.likelihood.atol = 1e-4
    # Annealed Langevin dynamics: 1,001 evaluations (NFE), and epsilon by NCSNv2's technique 4.
    config.sampling.steps_per_level = 1
    config.sampling.epsilon = 2.5e-06
    config.sampling.init = "centred_normal"
    config.sampling.method = "heun"
    config.sampling.num_steps = 18
    return config
