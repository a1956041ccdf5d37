"""NCSN on your own pictures: a directory tree of image files, cropped and resized to 32x32.

    python main.py --config=configs/image_folder.py --workdir=runs/mine --config.data.data_dir=path/to/images

It reads PNG, JPEG, WebP, BMP, TIFF and GIF files with any name, and logs the names of other files.
`--config.data.holdout=0.1` keeps a tenth of the images out of training, for `--mode=inpaint` and
`--mode=likelihood`.

Hardware: one GPU or TPU host at this size; on a CPU, start with `--config.model.features=16`.
Expected time and result: not yet measured; they depend on the pictures.
"""

from configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.dataset = "image_folder"
    config.data.crop_size = -1
    config.model.ema_decay = 0.999
    return config
