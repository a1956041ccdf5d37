"""NCSN on CelebA, cropped to 140x140 and resized to 32x32 RGB, as published (Song & Ermon, 2019).

    python main.py --config=configs/celeba.py --workdir=runs/celeba

Prepare the dataset with tensorflow-datasets as array_record, or give a directory of the aligned images:
`--config.data.dataset=image_folder --config.data.data_dir=.../img_align_celeba`.

Hardware: one GPU or TPU host; 30,117,635 parameters, 200,000 steps at batch 128.
Expected time and result: not yet measured.
"""

from configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.dataset = "celeb_a"
    config.data.crop_size = 140
    return config
