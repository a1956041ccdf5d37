"""The simplified NCSN on CelebA at 32x32 RGB, as its PyTorch reimplementation trains it.

    python main.py --config=configs/simplified_celeba.py --workdir=runs/simplified_celeba

Prepare the dataset with tensorflow-datasets as array_record, or give a directory of the aligned images:
`--config.data.dataset=image_folder --config.data.data_dir=.../img_align_celeba`. The original takes all
202,599 images at their largest centre square; `celeb_a`'s training split has 162,770.

The original works in [-1, 1] and sums (sigma s + z)^2 without 1/2. For pixels in [0, 1], sigmas are half as
large and squared step sizes a quarter; with half the loss, the same Adam has half the clipping norm and
half the eps. The values below are converted accordingly, and training is the same.

Hardware: one GPU; 3,176,067 parameters, 316,500 steps at batch 64 (100 epochs of all images).
Expected time and result: not yet measured.
"""

from configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.dataset = "celeb_a"
    config.data.crop_size = -1
    config.data.dequantize = False
    config.model.name = "ncsn_simplified"
    config.model.normalization = "instance"
    config.model.features = 64
    # These are 1 and 0.01 in the units of [-1, 1].
    config.model.sigma_begin = 0.5
    config.model.sigma_end = 0.005
    config.training.batch_size = 64
    config.training.num_steps = 316_500
    # The original clips at 1.0, with twice the loss.
    config.training.grad_clip = 0.5
    config.optim.learning_rate = 2e-4
    config.optim.eps = 5e-9
    # This is twice the published step size of 2e-5, in a quarter of its unit.
    config.sampling.epsilon = 1e-5
    config.sampling.clip = (0.0, 1.0)
    # This is N(0, 1) in the units of [-1, 1].
    config.sampling.init = "centred_normal"
    return config
