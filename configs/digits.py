"""NCSN on the 8x8 digits that ship with scikit-learn: training and sampling in minutes on two CPU cores.

    python main.py --config=configs/digits.py --workdir=runs/digits

The network is the published one with 16 features. The ladder ends at 0.04, below the spacing of the data's
17 grey levels (1/16), and epsilon is 0.2 sigma_L^2 (published runs: 0.4 sigma_L^2).

Hardware: two CPU cores; 502,545 parameters.
Expected time and result: 3,000 steps and 100 samples in about 3 minutes; a classifier of real
digits recognises 0.68 of 1,000 samples with probability above 0.9, and 0.755 of real digits.
"""

from configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.dataset = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.random_flip = False
    config.model.features = 16
    config.model.num_levels = 7
    config.model.sigma_end = 0.04
    config.model.ema_decay = 0.998
    config.training.batch_size = 64
    config.training.num_steps = 3000
    config.training.checkpoint_every = 250
    config.training.sample_every = 1500
    config.training.log_every = 50
    config.optim.learning_rate = 2e-3
    config.optim.warmup_steps = 100
    config.evaluation.num_samples = 1000
    config.evaluation.features = "classifier"
    config.sampling.epsilon = 3.2e-4
    config.sampling.steps_per_level = 150
    config.sampling.denoise = True
    return config
