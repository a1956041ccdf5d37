"""NCSN on the 8x8 digits that ship with scikit-learn: training and sampling in minutes on two CPU cores.

    python main.py --config=configs/digits.py --workdir=runs/digits

The network is the published one with 16 features. The ladder ends at 0.04, below the spacing of the data's
17 grey levels (1/16), and neighbouring sigmas have about the ratio of NCSNv2's technique 2. epsilon is
0.31 sigma_L^2 (published runs: 0.4).

Hardware: two CPU cores; 529,665 parameters.
Expected time and result: 5,000 steps and 100 samples in about six minutes. Of 1,000 samples of each of
three seeds, classifiers of real digits recognise 0.874 to 0.907 (of real digits 0.899); the Frechet distance
of the pixels is 0.081 to 0.101 (two halves of the real digits: 0.07 to 0.10).
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
    config.model.num_levels = 12
    config.model.sigma_end = 0.04
    config.model.ema_decay = 0.999
    config.training.batch_size = 64
    config.training.num_steps = 5000
    config.training.checkpoint_every = 500
    config.training.sample_every = 2500
    config.training.log_every = 100
    config.optim.learning_rate = 7e-3
    config.optim.warmup_steps = 100
    config.optim.schedule = "cosine"
    config.evaluation.num_samples = 1000
    config.evaluation.features = "classifier"
    config.sampling.epsilon = 5e-4
    config.sampling.steps_per_level = 40
    config.sampling.denoise = True
    return config
