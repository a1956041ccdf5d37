"""NCSN++ on CIFAR-10, unconditional, EDM's training, as published.

    python main.py --config=configs/edm/cifar10_ncsnpp.py --workdir=DIR

Hardware: TPU or GPUs; 56,397,955 parameters, 390,625 steps at batch 512.
Expected time and result: not yet measured. The paper's FID is 1.98 at 35 evaluations (table 2).
"""

from configs.edm import published


def get_config():
    """Returns the configuration."""
    return published.cifar10("ncsnpp")
