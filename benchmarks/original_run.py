"""Trains the authors' PyTorch network on a run's images, for as many steps, and writes their checkpoint.

    python -m benchmarks.original_run runs/mnist CHECKOUT original.pth
    python -m ncsn_jax.convert original.pth --config=configs/mnist.py --workdir=runs/mnist_original
    python main.py --workdir=runs/mnist_original --mode=evaluate

The second and third command (with the overrides of the run) evaluate both by the same sampler and measures.
Network and loss are imported from a checkout of ermongroup/ncsn, which is under GPL-3 and of which nothing is
copied here.
"""

import os
import sys
import time
from types import SimpleNamespace

import numpy as np

from benchmarks.original import missing_file
from ncsn_jax.app import build, run_config
from ncsn_jax.app.data import Batches
from ncsn_jax.app.progress import progress


def main(workdir: str, reference: str, path: str) -> None:
    """Trains and writes."""
    import torch

    if lacking := missing_file(reference):
        sys.exit(f"error: {reference} has no {lacking}: it must be a checkout of ermongroup/ncsn")
    sys.path.insert(0, reference)
    from losses.dsm import anneal_dsm_score_estimation
    from models.cond_refinenet_dilated import CondRefineNetDilated

    config = run_config.get_config(workdir)
    if os.path.exists(path):
        sys.exit(f"error: {path} already exists; choose another name")
    if not os.path.isdir(os.path.dirname(path) or "."):  # now, not after hours
        sys.exit(f"error: the directory of {path} does not exist")
    alike = config.model.name == "ncsn" and not (
        config.model.ema_decay or config.optim.warmup_steps
    )
    alike &= config.optim.schedule == "constant" and config.optim.eps == 1e-8
    alike &= not (config.training.grad_clip or config.data.random_flip or config.optim.weight_decay)
    if not (alike and config.data.dequantize and config.training.loss == "dsm"):
        sys.exit(f"error: {workdir} must be a run of NCSN as the authors trained it, without EMA")
    images = build.load_images(config)
    size, _, channels = images.shape[1:]
    levels, options = config.model.num_levels, config.optim
    data = SimpleNamespace(
        logit_transform=False, image_size=size, channels=channels, num_classes=levels
    )
    model = SimpleNamespace(ngf=config.model.features, num_classes=levels)
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)
    network = CondRefineNetDilated(SimpleNamespace(data=data, model=model, device="cpu")).train()
    adam = {"lr": options.learning_rate, "betas": (options.beta1, options.beta2)}
    optimizer = torch.optim.Adam(network.parameters(), **adam)
    sigmas = torch.tensor(np.asarray(build.make_sigmas(config)))
    batches = Batches(images, config.seed, config.training.batch_size)
    started, losses = time.perf_counter(), []
    with progress("training the authors' network", config.training.num_steps) as advanced:
        for step in range(config.training.num_steps):
            x = torch.from_numpy(np.moveaxis(images[batches.indices(step)], 3, 1).copy())
            x = (x + torch.rand(x.shape)) / 256
            labels = torch.randint(0, levels, (len(x),))
            loss = anneal_dsm_score_estimation(network, x, labels, sigmas)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            advanced(1)
            if (step + 1) % 100 == 0:
                seconds = time.perf_counter() - started
                print(
                    f"step {step + 1}  loss {np.mean(losses[-100:]):.4g}  {seconds:.0f} s",
                    flush=True,
                )
    states = [network.state_dict(), optimizer.state_dict()]
    torch.save(states, path)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m benchmarks.original_run WORKDIR CHECKOUT FILE.pth")
    main(*sys.argv[1:])
