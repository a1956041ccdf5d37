"""NCSN on MNIST, 28x28 grey, as published by the authors (anneal.yml with 64 features).

    python main.py --config=configs/mnist.py --workdir=runs/mnist

Hardware: one GPU or TPU; 7,638,657 parameters.
Expected time and result: not yet measured at full length.

On a CPU: `--config.model.features=16 --config.training.batch_size=32 --config.training.num_steps=3000`.
"""

from configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.dataset = "mnist"
    config.data.image_size = 28
    config.data.channels = 1
    config.data.random_flip = False
    config.model.features = 64
    return config
