"""Judges samples of digits: are they recognised, are all ten there, are they copies?

    python -m benchmarks.digits_quality runs/digits/samples/step_<step>/samples.npz

A support vector classifier with calibrated probabilities is trained on the even-numbered real digits.
"Recognised" means a probability above 0.9; the share among the odd-numbered real digits is the scale.
Copies are judged by the distance to the nearest training image, against that of real digits which the
model never saw (the test split): a model that copies is nearer to its training set than those are.
"""

import sys
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from ncsn_jax import data, images
from ncsn_jax.errors import one_line

THRESHOLD = 0.9


def nearest_distances(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns the Euclidean distance of each row to its nearest row of the reference."""
    squares = (x**2).sum(1)[:, None] + (reference**2).sum(1)[None] - 2 * x @ reference.T
    return np.sqrt(np.maximum(squares, 0).min(axis=1))


def main(path: str) -> None:
    """Prints the figures for one file of samples."""
    try:
        (samples,) = images.read_npz(path, "samples")
    # Damaged files raise all kinds of exceptions.
    except Exception as error:
        sys.exit(one_line(f"error: {path} cannot be read ({type(error).__name__})"))
    if samples.dtype != np.uint8 or samples.shape[1:] != (8, 8, 1) or not len(samples):
        found = f"{samples.dtype} of shape {samples.shape}"
        sys.exit(one_line(f"error: {path} holds {found}, expected uint8 [N, 8, 8, 1]"))
    samples = samples.reshape(-1, 64) / 255.0
    digits = load_digits()
    pixels = digits.images.reshape(-1, 64) / 16.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # SVC(probability=True) will be renamed
        classifier = SVC(gamma="scale", C=10, probability=True, random_state=0)
        classifier.fit(pixels[::2], digits.target[::2])
    real = (classifier.predict_proba(pixels[1::2]).max(axis=1) > THRESHOLD).mean()
    probability = classifier.predict_proba(samples)
    share = (probability.max(axis=1) > THRESHOLD).mean()
    classes = np.bincount(probability.argmax(axis=1), minlength=10) / len(samples)
    print(f"{len(samples)} samples: recognised {share:.3f}, real digits {real:.3f}")
    print(f"ratio {share / real:.3f}")
    print("share of each digit:", " ".join(f"{c:.3f}" for c in classes))

    train, test = (
        data.load("digits", "", 8, 1, split=split).reshape(-1, 64) / 255.0
        for split in ("train", "test")
    )
    for name, x in (("samples", samples), ("unseen real digits", test)):
        low, median = np.quantile(nearest_distances(x, train), [0.01, 0.5])
        print(
            f"distance of {name} to the nearest training image: 1 % {low:.3f}, median {median:.3f}"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.digits_quality SAMPLES.npz")
    main(sys.argv[1])
