"""NCSN on the 8x8 digits that ship with scikit-learn: the whole way in minutes on two CPU cores.

python main.py --config=configs/digits.py --workdir=runs/digits
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
    config.model.ema_decay = 0.995
    config.training.batch_size = 64
    config.training.num_steps = 2000
    config.training.checkpoint_every = 250
    config.training.sample_every = 1000
    config.training.log_every = 50
    config.sampling.denoise = True
    return config
