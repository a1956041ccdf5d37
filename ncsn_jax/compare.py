"""Compares runs, or samples of other programs, by what `--mode=evaluate` measures.

    python -m ncsn_jax.compare runs/digits runs/digits_ve --picture=quality.png

prints a Markdown table of all evaluations of the runs. The picture shows quality against the evaluations of
the network that a sample takes. A file of samples, `[N, H, W, C]` in the units of the data, is measured
as the samples of the first run named are.
"""

import argparse
import sys

from ncsn_jax.app import cli


def main(arguments: list[str]) -> None:
    """Prints the table, and draws."""
    parser = argparse.ArgumentParser(prog="python -m ncsn_jax.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "paths", nargs="+", metavar="RUN_OR_SAMPLES", help="work directory, or .npz or .npy file"
    )
    parser.add_argument("--picture", metavar="FILE.png", help="file for the picture")
    parser.add_argument(
        "--measures", default="", metavar="NAME,NAME", help="columns of the table; by default all"
    )
    parser.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="weights of FID's network, to measure files of samples",
    )
    parser.add_argument(
        "--average_seeds",
        action="store_true",
        help="make one row of runs that differ only in the seed: the mean, with its standard error",
    )
    chosen = parser.parse_args(arguments)
    from ncsn_jax.app import comparison, run_config, storage
    from ncsn_jax.app.data import arrays
    from ncsn_jax.app.modes import evaluate
    from ncsn_jax.errors import UserError

    try:
        paths = list(dict.fromkeys(storage.path(path) for path in chosen.paths))
        found = {path: comparison.find(path) for path in paths if not arrays.is_array(path)}
        for path in found:
            if not found[path]:
                run_config.get_config(path)  # if there is no run either, its message says so
                raise UserError(
                    f"{path} holds no evaluation: run python main.py --workdir={path} --mode=evaluate"
                )
        rows = []
        for path in paths:
            if path not in found:
                if not found:
                    raise UserError(f"{path} needs a run beside it, by whose data it is measured")
                workdir, of_run = next(iter(found.items()))
                names = {name: None for row in of_run for name in row.digests}
                summary = evaluate.measure_file(path, workdir, names, storage.path(chosen.weights))
                rows += [r for r in comparison.rows_of(summary, path, "") if not r.is_real]
            else:
                rows += found[path]
        if chosen.average_seeds:
            rows = comparison.average_seeds(rows)
        measures = [name for name in chosen.measures.split(",") if name]
        print(comparison.table(rows, measures), end="")
        if chosen.picture:
            storage.write(storage.path(chosen.picture), comparison.draw(rows))
    except UserError as error:
        cli.fail(str(error), 1)
    except OSError as error:
        cli.fail(f"{error.filename}: {error.strerror}", 1)


if __name__ == "__main__":
    main(sys.argv[1:])
