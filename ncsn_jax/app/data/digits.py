"""Builds the `digits` dataset: 1,797 real 8x8 images of handwritten digits that ship with scikit-learn.

This tensorflow-datasets builder needs neither a download nor TensorFlow. It scales the 17 grey levels
0 ... 16 to 0 ... 255. The first 1,500 images are the training split; the other 297, by other writers, are
the test split.
"""

import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
    """Optical recognition of handwritten digits, the test set of the UCI collection."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        return {
            "train": self._generate_examples(images[:1500], digits.target[:1500]),
            "test": self._generate_examples(images[1500:], digits.target[1500:]),
        }

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}
