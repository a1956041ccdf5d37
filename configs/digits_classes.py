r"""Digits of a wanted class: the network of digits_ve.py, trained with and without the class.

    python main.py --config=configs/digits_classes.py --workdir=runs/digits_classes
    python main.py --workdir=runs/digits_classes --mode=sample "--config.sampling.label=(3,)" \
        --config.sampling.guidance=2 --config.sampling.name=threes

A tenth of the examples are trained without their class, for guidance. Sample i has class i modulo 10.

Hardware: one CPU core; 754,145 parameters.
Expected time and result: as for digits_ve.py; docs/classes.md has figures.
"""

from configs import digits_ve


def get_config():
    """Returns the configuration."""
    config = digits_ve.get_config()
    config.data.labels = True
    config.model.num_classes = 10
    config.model.label_dropout = 0.1
    return config
