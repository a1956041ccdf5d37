"""Finds the weights of FID's network: a file of the user's, or the published one, downloaded once."""

import hashlib
import http.client
import io
import os
import urllib.error
import urllib.request

import numpy as np

from ncsn_jax import evaluation
from ncsn_jax.app import storage
from ncsn_jax.app.data import cache
from ncsn_jax.app.progress import progress
from ncsn_jax.errors import UserError, one_line

_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
# The beginning of its SHA-256.
_SHA256 = "6726825d"
_CHUNK = 2**20


def load(path: str) -> tuple[dict, str, bool]:
    """Returns the parameters of `evaluation.Inception`, their digest, and whether they are published.

    Args:
      path: a `.pth` file, which torch reads, or a `.npz` file with the same names; "" for the published
        weights, which are downloaded to the cache directory at first use.

    Raises:
      UserError: if they cannot be downloaded, read or used.
    """
    path = storage.path(path) or _download()
    try:
        data = storage.read(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"config.evaluation.weights={path!r} cannot be read: {reason}") from None
    digest = hashlib.sha256(data).hexdigest()
    try:
        params = evaluation.inception_params(_read(path, io.BytesIO(data)))
    except ValueError as error:
        raise UserError(f"{path} does not hold the weights of FID's network: {error}") from None
    return params, digest[:16], digest.startswith(_SHA256)


def _read(path: str, file: io.BytesIO) -> dict[str, np.ndarray]:
    try:
        if path.endswith(".npz"):
            with np.load(file, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        import torch

        found = torch.load(file, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in found.items()}
    except ImportError:
        raise UserError(f'{path} needs PyTorch to be read: pip install "torch>=2.10"') from None
    except Exception as error:  # damaged files can raise any exception
        raise ValueError(one_line(f"{type(error).__name__}: {error}")) from None


def _download() -> str:
    """Returns the path of the published file in the cache directory, and downloads it if it is not there."""
    path = os.path.join(cache.directory(), _URL.rpartition("/")[2])
    if storage.exists(path) and hashlib.sha256(storage.read(path)).hexdigest().startswith(_SHA256):
        return path
    give = f"give the file {os.path.basename(path)} as config.evaluation.weights=FILE, or choose other "
    give += "features with config.evaluation.features"
    try:
        with urllib.request.urlopen(_URL, timeout=30) as response:
            total, data = int(response.headers.get("Content-Length") or 0), bytearray()
            with progress("downloading the weights", total, "bytes") as advanced:
                while chunk := response.read(_CHUNK):
                    data += chunk
                    advanced(len(chunk))
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(one_line(f"{_URL} cannot be downloaded ({reason}): {give}")) from None
    if not hashlib.sha256(data).hexdigest().startswith(_SHA256):
        raise UserError(f"{_URL} gave a file whose SHA-256 does not begin with {_SHA256}: {give}")
    storage.make_directory(cache.directory())
    storage.write(path, bytes(data))
    return path
