"""DDPM++ on CIFAR-10, unconditional, EDM's training, as published.

    python main.py --config=configs/edm/cifar10_ddpmpp.py --workdir=DIR

Hardware: TPU or GPUs; 55,733,891 parameters, 390,625 steps at batch 512.
Expected time and result: not yet measured. The paper's FID is 1.97 at 35 evaluations (table 2).
"""

from configs.edm import published


def get_config():
    """Returns the configuration."""
    return published.cifar10("ddpmpp")
