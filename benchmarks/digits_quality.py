"""Judges samples of digits: are they recognised, are all ten there, are they copies?

    python -m benchmarks.digits_quality runs/digits/samples/step_<step>/samples.npz

Ten support vector classifiers with calibrated probabilities, one for each digit, learn to tell it from the
others, on the even-numbered real digits. "Recognised" means that a probability is above 0.9; the share among
the odd-numbered real digits is the scale. The ten need not add up to 1, so noise is recognised as no digit.
Copies show in the distance to the nearest training image, compared with that of real digits which the
model never saw (the test split): samples of a model that copies are nearer to its training set.
"""

import functools
import sys

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC

from ncsn_jax.app import data, pictures
from ncsn_jax.errors import one_line

THRESHOLD = 0.9


def nearest_distances(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns each row's Euclidean distance to its nearest row of the reference."""
    squares = (x**2).sum(1)[:, None] + (reference**2).sum(1)[None] - 2 * x @ reference.T
    return np.sqrt(np.maximum(squares, 0).min(axis=1))


@functools.cache
def _classifier() -> tuple[OneVsRestClassifier, float]:
    """Returns a classifier of real digits, and the share of unseen ones it recognises."""
    digits = load_digits()
    pixels = digits.images.reshape(-1, 64) / 16.0
    # The folds of the calibration are not shuffled, so the classifier is always the same.
    of_one = CalibratedClassifierCV(SVC(gamma="scale", C=10), ensemble=False, cv=5)
    # Of labels as a table, unlike numbers, the probabilities are not scaled to add up to 1.
    classifier = OneVsRestClassifier(of_one).fit(pixels[::2], np.eye(10)[digits.target[::2]])
    real = (classifier.predict_proba(pixels[1::2]).max(axis=1) > THRESHOLD).mean()
    return classifier, real


def recognised(samples: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Returns the recognised share of samples `[N, 64]` in [0, 1], of real digits, and each digit's share."""
    classifier, real = _classifier()
    probability = classifier.predict_proba(samples)
    share = (probability.max(axis=1) > THRESHOLD).mean()
    return share, real, np.bincount(probability.argmax(axis=1), minlength=10) / len(samples)


def real_digits(split: str) -> np.ndarray:
    """Returns a split's digits, `[N, 64]` in [0, 1]."""
    return data.load("digits", "", 8, 1, split=split)[:].reshape(-1, 64) / 255.0


def main(path: str) -> None:
    """Prints the figures for one file of samples."""
    try:
        (samples,) = pictures.read_npz(path, "samples")
    # Damaged files can raise any exception.
    except Exception as error:
        sys.exit(one_line(f"error: {path} cannot be read ({type(error).__name__})"))
    if samples.dtype != np.uint8 or samples.shape[1:] != (8, 8, 1) or not len(samples):
        found = f"{samples.dtype} of shape {samples.shape}"
        sys.exit(one_line(f"error: {path} holds {found}, expected uint8 [N, 8, 8, 1]"))
    samples = samples.reshape(-1, 64) / 255.0
    share, real, classes = recognised(samples)
    print(f"{len(samples)} samples: recognised {share:.3f}, real digits {real:.3f}")
    print(f"ratio {share / real:.3f}")
    print("share of each digit:", " ".join(f"{c:.3f}" for c in classes))

    train, test = real_digits("train"), real_digits("test")
    for name, x in (("samples", samples), ("unseen real digits", test)):
        low, median = np.quantile(nearest_distances(x, train), [0.01, 0.5])
        print(
            f"distance of {name} to the nearest training image: 1 % {low:.3f}, median {median:.3f}"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.digits_quality SAMPLES.npz")
    main(sys.argv[1])
