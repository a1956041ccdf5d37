"""NCSN on CIFAR-10, 32x32 RGB, as published (Song & Ermon, 2019, section 5 and appendix B).

    python main.py --config=configs/cifar10.py --workdir=runs/cifar10

Hardware: one GPU or TPU host; 30,117,635 parameters, 200,000 steps at batch 128.
Expected time and result: not yet measured (the paper reports FID 25.32 and inception score 8.87).
"""

from configs import default


def get_config():
    """Returns the configuration."""
    return default.get_config()
