"""Compares quality with network evaluations (NFE), for every sampler on one checkpoint of the digits.

    python -m benchmarks.sampler_quality --config=configs/digits_ve.py --workdir=runs/digits_ve

It prints a table and writes it, with a figure, to `<workdir>/figures/sampler_quality.*`. "Recognised" is the
share that a classifier of real digits recognises (`benchmarks.digits_quality`). The Frechet distance compares
the samples' pixels with those of the training images; its value between as many training images and the rest
is the scale. Seconds are those of the fastest batch after the first, which compiles.
"""

import io
import json
import os
import sys
import time

import numpy as np
from absl import flags

from benchmarks import digits_quality
from ncsn_jax.app import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
flags.adopt_module_key_flags(cli)
_SAMPLES = flags.DEFINE_integer("samples", 1000, "How many, of every sampler.", lower_bound=100)

# For annealed Langevin dynamics with 1,000 evaluations; epsilon follows technique 4.
_LEVELS, _STEPS_PER_LEVEL = 100, 10


def _samplers(sigmas, config) -> list[tuple[str, dict]]:
    """Returns every sampler's name and overrides."""
    ratio = float((config.model.sigma_begin / config.model.sigma_end) ** (1 / (_LEVELS - 1)))
    epsilon, _ = sigmas.step_size(config.model.sigma_end, ratio, _STEPS_PER_LEVEL)
    found = [
        (
            "annealed Langevin",
            {
                "sampling.method": "annealed_langevin",
                "model.num_levels": _LEVELS,
                "sampling.steps_per_level": _STEPS_PER_LEVEL,
                "sampling.epsilon": float(epsilon),
                "sampling.denoise": True,
                "sampling.init": "centred_normal",
            },
        )
    ]
    is_subvp = config.training.sde == "subvp"
    predictors = ["euler_maruyama", "reverse_diffusion"] + ([] if is_subvp else ["ancestral"])
    for steps in (1000, 200, 50):
        for predictor in predictors:
            # 1,000 evaluations take long, so only one sampler gets them.
            if steps < 1000 or (is_subvp and predictor == "euler_maruyama"):
                found.append((predictor, _predictor_corrector(steps, predictor)))
        if not is_subvp:
            options = _predictor_corrector(steps // 2, "reverse_diffusion")
            options |= {"sampling.corrector": "langevin", "sampling.snr": 0.16}
            found.append(("reverse_diffusion + langevin", options))
    if not is_subvp:
        # VP's chain needs more steps than beta_max.
        options = _predictor_corrector(24 if config.training.sde == "vp" else 16, "ancestral")
        options |= {"sampling.corrector": "annealed_langevin", "sampling.snr": 0.45}
        options["sampling.corrector_steps"] = 2
        found.append(("ancestral + annealed_langevin", options))
    for tolerance in (1e-5, 1e-2):
        options = {
            "sampling.method": "probability_flow",
            "sampling.rtol": tolerance,
            "sampling.atol": tolerance,
        }
        found.append((f"probability flow, tolerance {tolerance:g}", options))
    for churn, name in ((0.0, "Heun"), (10.0, "Heun with churn 10")):
        for levels in (50, 25, 18, 12, 8, 5):
            options = {
                "sampling.method": "heun",
                "sampling.num_steps": levels,
                "sampling.churn": churn,
            }
            found.append((name, options))
    return found


def _predictor_corrector(steps: int, predictor: str) -> dict:
    return {
        "sampling.method": "predictor_corrector",
        "sampling.predictor": predictor,
        "sampling.num_steps": steps,
        "sampling.denoise": True,
    }


def _draw(rows: list[dict], real: float, floor: float) -> bytes:
    """Plots recognised share and Frechet distance against evaluations; returns a PNG file."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(row["sampler"].partition(",")[0] for row in rows))
    colours = matplotlib.colormaps["tab10"](range(len(names)))
    for name, colour in zip(names, colours, strict=True):
        mine = sorted(
            (r["evaluations"], r["recognised"], r["frechet"])
            for r in rows
            if r["sampler"].partition(",")[0] == name
        )
        evaluations, share, distance = zip(*mine, strict=True)
        for axes, values in ((left, share), (right, distance)):
            axes.plot(evaluations, values, "o-", color=colour, label=name, markersize=4)
    left.axhline(real, color="black", linestyle=":", label="real digits")
    right.axhline(floor, color="black", linestyle=":")
    for axes, name in ((left, "share recognised"), (right, "Frechet distance of the pixels")):
        axes.set(xscale="log", xlabel="network evaluations of a sample", ylabel=name)
    left.set_ylim(0, 1)
    right.set_yscale("log")
    left.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def main(_) -> None:
    """Measures, prints and draws."""
    from ncsn_jax import evaluation, sigmas
    from ncsn_jax.app import devices, run_samplers, schema, storage, workdirs
    from ncsn_jax.app.progress import progress
    from ncsn_jax.errors import UserError

    config, workdir = _CONFIG.value, _WORKDIR.value
    schema.check(config)
    if config.data.dataset != "digits":
        raise UserError(f"config.data.dataset={config.data.dataset!r} must be 'digits'")
    if config.training.sde != "none" and not config.training.continuous:
        raise UserError(
            "config.training.continuous=False must be True: the benchmark changes the ladder"
        )
    step, state = workdirs.load(config, workdir)
    params = devices.replicate(state.ema_params or state.params)
    count, size = _SAMPLES.value, config.sampling.batch_size
    reference = digits_quality.real_digits("train")
    rows = []
    todo = _samplers(sigmas, config)
    with progress("measuring", len(todo)) as advanced:
        for name, overrides in todo:
            changed = config.copy_and_resolve_references()
            changed.update_from_flattened_dict(overrides)
            schema.check(changed)
            runner = run_samplers.Chains(changed)
            found, seconds = [], []
            for first in range(0, count, size):
                started = time.perf_counter()
                indices = list(range(first, min(first + size, count)))
                found.append(runner.run(params, indices, size))
                seconds.append(time.perf_counter() - started)
            x = np.concatenate([f.images for f in found]).reshape(-1, 64) / 255.0
            share, real, _ = digits_quality.recognised(x)
            evaluations = float(np.mean(np.concatenate([f.evaluations for f in found])))
            distance = evaluation.frechet_distance(x, reference)
            rows.append(
                {
                    "sampler": name,
                    "evaluations": evaluations,
                    "seconds": min(seconds[1:] or seconds),
                    "recognised": float(share),
                    "frechet": distance,
                }
            )
            advanced(1)
    drawn = np.random.default_rng(0).permutation(len(reference)) < min(count, len(reference) // 2)
    floor = evaluation.frechet_distance(reference[drawn], reference[~drawn])

    lines = [
        f"step {step}, {count} samples each, in batches of {size}; real digits: {real:.3f} recognised, "
        f"Frechet {floor:.3f}",
        "",
        "| sampler | evaluations | seconds | recognised | Frechet distance |",
        "|---|---|---|---|---|",
        *(
            f"| {r['sampler']} | {r['evaluations']:.0f} | {r['seconds']:.1f} | {r['recognised']:.3f} | "
            f"{r['frechet']:.3f} |"
            for r in rows
        ),
    ]
    print("\n".join(lines))
    directory = os.path.join(workdir, "figures")
    storage.make_directory(directory)
    name = os.path.join(directory, "sampler_quality")
    storage.write(f"{name}.json", (json.dumps({"step": step, "rows": rows}, indent=1)).encode())
    storage.write(f"{name}.md", ("\n".join(lines) + "\n").encode())
    storage.write(f"{name}.png", _draw(rows, real, floor))
    print(f"wrote {name}.png, .md and .json", file=sys.stderr)


if __name__ == "__main__":
    cli.run(
        main,
        _CONFIG,
        lambda: (_CONFIG, _WORKDIR),
        program="python -m benchmarks.sampler_quality",
        interrupted="nothing was written",
    )
