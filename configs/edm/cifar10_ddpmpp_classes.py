"""DDPM++ on CIFAR-10, class-conditional, EDM's training, as published but for the dropout of classes.

    python main.py --config=configs/edm/cifar10_ddpmpp_classes.py --workdir=DIR

The published run always has the class. Here a tenth of the examples has none, so that guidance works.

Hardware: TPU or GPUs; 55,739,011 parameters, 390,625 steps at batch 512.
Expected time and result: not yet measured. The paper's FID is 1.79 at 35 evaluations (table 2).
"""

from configs.edm import published


def get_config():
    """Returns the configuration."""
    config = published.cifar10("ddpmpp")
    config.data.labels = True
    return config
