"""The worker of the authors' PyTorch code on a GPU: `benchmarks.original`'s tasks in two precisions.

    python -m benchmarks.original_gpu

answers the requests of `benchmarks.workers`. Under its own name, a task may use TF32; with the suffix
`_bfloat16`, its network runs under autocast. cuDNN picks its algorithms by trial, as in the authors'
`main.py`. Without a GPU everything runs on the CPU. A task ends when the GPU has finished.
"""

from collections.abc import Callable

from benchmarks import original, workers

AUTOCAST = "_bfloat16"


class OriginalOnGPU(original.Original):
    """The tasks of `Original` on the first GPU, each also with the suffix `AUTOCAST`.

    Args:
      **settings: those of `Original`, except how the CPU computes.
    """

    def __init__(self, **settings):
        import torch

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Allows TF32 in matrix products; in convolutions it is the default.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        with self._device:
            super().__init__(**settings, threads=1, flush_denormals=False)
        self._make_plain = self._make_network
        self._makers = {
            name + suffix: self._on_device(maker, bool(suffix))
            for name, maker in self._makers.items()
            for suffix in ("", AUTOCAST)
        }

    def _on_device(self, maker: Callable, autocast: bool) -> Callable:
        """Returns a maker of the task on the device, which ends when the device has finished."""
        import torch

        def make_network():
            network = self._make_plain().to(self._device)
            if autocast:
                network.forward = _autocast(network.forward, self._device.type)
            return network

        def make():
            self._make_network = make_network
            task = maker()

            def run():
                task()
                if self._device.type == "cuda":
                    torch.cuda.synchronize()

            return run

        return make

    def device_memory(self) -> int | None:
        """Returns the peak device memory since the last call, in bytes, or None without a GPU."""
        import torch

        if self._device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


def _autocast(forward: Callable, device: str) -> Callable:
    import torch

    def call(x, labels):
        with torch.autocast(device, torch.bfloat16):
            output = forward(x, labels)
        return output.float()

    return call


if __name__ == "__main__":
    workers.serve(OriginalOnGPU)
