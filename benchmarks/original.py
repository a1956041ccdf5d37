"""The worker of the authors' PyTorch code: tasks of `benchmarks.ours` with a checkout of ermongroup/ncsn.

    python -m benchmarks.original

answers the requests of `benchmarks.workers`. It imports the network and the loss from the checkout, which is
under GPL-3 and of which nothing is copied here. Adam, dequantization, Algorithm 1 of the paper, and the
settings that the authors' classes read are written anew.
"""

import functools
import pathlib
import sys
from collections.abc import Callable
from types import SimpleNamespace

from benchmarks import workers

# The files that are imported from the checkout.
FILES = ("models/cond_refinenet_dilated.py", "losses/dsm.py")


def missing_file(reference: str) -> str | None:
    """Returns the first file that a checkout should have and this directory lacks, or None."""
    return next((name for name in FILES if not (pathlib.Path(reference) / name).is_file()), None)


class Original(workers.Subject):
    """The tasks of the authors' NCSN.

    Args:
      reference: the checkout.
      features, side, channels, batch: those of the network and its images.
      learning_rate: Adam's.
      sigmas: the ladder, decreasing.
      epsilon, steps_per_level: those of Algorithm 1.
      threads: how many PyTorch uses.
      flush_denormals: whether it treats numbers too small for full precision as zero.

    Raises:
      ValueError: if it should flush and cannot on this processor.
    """

    def __init__(
        self,
        reference: str,
        features: int,
        side: int,
        channels: int,
        batch: int,
        learning_rate: float,
        sigmas: list[float],
        epsilon: float,
        steps_per_level: int,
        threads: int,
        flush_denormals: bool,
    ):
        super().__init__({"train": self._train, "evaluate": self._evaluate, "sample": self._sample})
        import torch

        sys.path.insert(0, reference)
        from models.cond_refinenet_dilated import CondRefineNetDilated

        # Denormal numbers slow PyTorch down, and when they occur depends on every draw.
        torch.manual_seed(0)
        # Threads that PyTorch makes later inherit this.
        if flush_denormals and not torch.set_flush_denormal(True):
            raise ValueError("PyTorch cannot flush denormal numbers on this processor")
        torch.set_num_threads(threads)
        levels = len(sigmas)
        data = SimpleNamespace(
            logit_transform=False, image_size=side, channels=channels, num_classes=levels
        )
        model = SimpleNamespace(ngf=features, num_classes=levels)
        config = SimpleNamespace(data=data, model=model, device="cpu")
        # Each task makes its own, so that none has weights another trained.
        self._make_network = functools.partial(CondRefineNetDilated, config)
        self._images = torch.rand(batch, channels, side, side)
        self._sigmas, self._learning_rate = torch.tensor(sigmas), learning_rate
        self._epsilon, self._steps_per_level = epsilon, steps_per_level

    def _train(self) -> Callable:
        import torch
        from losses.dsm import anneal_dsm_score_estimation

        network = self._make_network().train()
        optimizer = torch.optim.Adam(network.parameters(), lr=self._learning_rate)

        def run():
            # Uniform dequantization of images in [0, 1].
            noise = torch.rand_like(self._images)
            x = (255 * self._images + noise) / 256
            labels = torch.randint(0, len(self._sigmas), (len(x),), device=x.device)
            loss = anneal_dsm_score_estimation(network, x, labels, self._sigmas)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

        return run

    def _evaluate(self) -> Callable:
        import torch

        network = self._make_network()
        labels = torch.zeros(len(self._images), dtype=torch.long, device=self._images.device)

        def run():
            with torch.no_grad():
                network(self._images, labels)

        return run

    def _sample(self) -> Callable:
        import torch

        network = self._make_network()

        def run():
            x = self._images
            with torch.no_grad():
                for level, sigma in enumerate(self._sigmas.tolist()):
                    labels = torch.full((len(x),), level, device=x.device)
                    step = self._epsilon * (sigma / float(self._sigmas[-1])) ** 2
                    for _ in range(self._steps_per_level):
                        noise = torch.randn_like(x)
                        x = x + step / 2 * network(x, labels) + step**0.5 * noise

        return run


if __name__ == "__main__":
    workers.serve(Original)
