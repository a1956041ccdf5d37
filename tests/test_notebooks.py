"""The notebooks, executed from top to bottom with smaller numbers, and the outputs they are kept with."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import types
from importlib import metadata

import jax
import pytest
from matplotlib import pyplot

from tests.running import ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WITH_OUTPUTS = {"digits", "sampler_tour"}

# A network that trains in seconds, set just before the notebook trains.
SMALLER = """
import tests.tiny
config.data.dataset, config.data.image_size, config.data.channels = "digits", 8, 1
config.model.name, config.model.features, config.model.num_levels = "tiny", 4, 2
config.training.batch_size, config.training.num_steps = 8, 20
config.training.checkpoint_every, config.training.log_every, config.training.sample_every = 10, 10, 0
config.sampling.steps_per_level, config.sampling.num_samples, config.sampling.batch_size = 2, 8, 8
config.inpainting.num_images, config.inpainting.num_completions = 2, 2
run_lib.train("""


def read(name):
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())


def code_cells(name):
    return ["".join(c["source"]) for c in read(name)["cells"] if c["cell_type"] == "code"]


def execute(cells, replace=None, namespace=None):
    """Runs cells, after replacing texts that each occur exactly once; returns what they define."""
    namespace = {} if namespace is None else namespace
    text = "\n".join(cells)
    for old, new in (replace or {}).items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    exec(compile(text, "<notebook>", "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def front_end(monkeypatch):
    """What a notebook's process has: a working directory, a search path, a display for pictures.

    Most time goes into compiling, so XLA optimizes little.
    """
    shown = []
    display = types.ModuleType("IPython.display")
    display.Image = lambda data: pathlib.Path(data).read_bytes() if isinstance(data, str) else data
    display.display = lambda *pictures: shown.extend(pictures)
    module = types.ModuleType("IPython")
    module.version_info, module.get_ipython = (9, 0, 0), lambda: None
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(ROOT / "notebooks")
    jax.config.update("jax_disable_most_optimizations", True)
    yield shown
    jax.config.update("jax_disable_most_optimizations", False)


def test_first_code_cells_are_identical_and_hold_the_address():
    assert len(PATHS) == 3
    first = {code_cells(path.stem)[0] for path in PATHS}
    assert len(first) == 1
    assert first.pop().splitlines()[1] == 'ADDRESS = ""  # @param {type:"string"}'
    for path in PATHS:
        assert "ADDRESS" not in "\n".join(code_cells(path.stem)[1:])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_is_kept_with_clean_outputs(path):
    """Executed in order, or not at all; no error, and nothing that names a machine."""
    assert path.stat().st_size < 700_000
    notebook = read(path.stem)
    title = "".join(notebook["cells"][0]["source"])
    assert title.startswith("# ") and "**Runtime:**" in title and "**Time:**" in title
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info", "accelerator"}
    assert [cell["metadata"] for cell in notebook["cells"]] == [{}] * len(notebook["cells"])

    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    counts = [cell["execution_count"] for cell in cells]
    if path.stem not in WITH_OUTPUTS:
        assert "outputs are not shown, because" in title
        assert not outputs and set(counts) == {None}
        return
    assert counts == list(range(1, len(cells) + 1)) and outputs
    for output in outputs:
        assert output["output_type"] in ("stream", "display_data")
        assert output.get("name", "stdout") == "stdout"
        assert set(output.get("data", {})) <= {"image/png", "text/plain"}
        text = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        assert "\r" not in text
        assert not re.search(r"(?<![\w.:/<])/\w[\w.-]*/", text), text


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Commands that are recorded in place of being run, outside the repository."""
    commands = []

    def run(command, **options):
        commands.append(command)
        if command[:2] == ("git", "clone"):
            if command[2] == "nowhere":
                return subprocess.CompletedProcess(command, 128, "", "fatal: no such repository\n")
            (tmp_path / "ncsn_jax").mkdir()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_clones_and_installs_outside_the_repository(outside, tmp_path, monkeypatch):
    """Also after the runtime has restarted, where the clone is there already."""
    cell, empty = code_cells("digits")[:1], 'ADDRESS = ""'
    execute(cell, {empty: 'ADDRESS = "https://host/repository"'})
    monkeypatch.chdir(tmp_path)
    execute(cell, {empty: 'ADDRESS = "https://host/repository"'})
    clone = str(tmp_path / "ncsn_jax")
    install = (sys.executable, "-m", "pip", "install", "-q", "-r", f"{clone}/requirements.txt")
    assert outside == [("git", "clone", "https://host/repository", clone), install, install]
    assert sys.path[0] == clone


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "set ADDRESS above, or start Jupyter in the repository"),
        ("nowhere", "git clone nowhere .*ncsn_jax failed: fatal: no such repository"),
    ],
)
def test_stops_with_one_line_without_a_repository(outside, address, message):
    with pytest.raises(SystemExit, match=f"^{message}$"):
        execute(code_cells("digits")[:1], {'ADDRESS = ""': f"ADDRESS = {address!r}"})


def test_digits(front_end, tmp_path, capsys):
    replace = {"run_lib.train(": SMALLER, '"runs/notebook"': repr(str(tmp_path / "run"))}
    found = execute(code_cells("digits"), replace)
    assert len(front_end) == 5 and all(png.startswith(b"\x89PNG") for png in front_end)
    assert 0.1 < found["share"] < 0.3
    out = capsys.readouterr().out
    assert "step 20/20" in out and "in the mode of weight 0.2" in out and "Run(tiny" in out


def test_sampler_tour(monkeypatch, capsys):
    """Few chains and steps: the methods still have their orders."""
    drawn = []
    monkeypatch.setattr(pyplot, "show", lambda: drawn.append(pyplot.gcf()))
    smaller = {
        "CHAINS = 4000": "CHAINS = 100",
        "jax.random.key(9), 1000)": "jax.random.key(9), 100)",
        "(16, 32, 64, 128, 256), (25, 50, 100, 200), 100_000": "(16, 32), (25, 100), 10_000",
    }
    with pyplot.rc_context({"backend": "agg"}):
        found = execute(code_cells("sampler_tour"), smaller)
        drawn[-1].canvas.draw()
    pyplot.close("all")
    assert len(drawn) == 5 and len(found["results"]) == 15
    for name, (x, _) in found["results"].items():
        assert x.shape == (100, 2) and (abs(x) < 100).all(), name
    out = capsys.readouterr().out
    orders = {n: float(o) for n, o in re.findall(r"^(\S.*?) +order (\S+)$", out, re.MULTILINE)}
    expected = {"predictor probability_flow": 1, "Euler": 1, "Heun": 2}
    assert {name: orders.get(name) for name in expected} == pytest.approx(expected, abs=0.25)
    # So few chains estimate these roughly.
    assert 0.5 < orders["reverse_diffusion"] < 1.5 and 0.5 < orders["ancestral"] < 1.5


def test_tpu_trains_on_drive(front_end, tmp_path, monkeypatch, capsys):
    """From the choice of the directory on, on the devices at hand."""
    cells = code_cells("tpu")
    mounted = []
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    drive = {'"/content/drive/': f'"{tmp_path}/', "STEPS = 10_000": "STEPS = 20"}
    execute([cells[0], *cells[3:]], {"run_lib.train(": SMALLER} | drive)
    assert mounted == ["/content/drive"]
    assert (tmp_path / "MyDrive/ncsn_jax/mnist/checkpoints/20").is_dir()
    assert len(front_end) == 3 and all(png.startswith(b"\x89PNG") for png in front_end)
    assert "step 20/20" in capsys.readouterr().out


class Restarted(Exception):
    """The runtime has restarted."""


@pytest.fixture
def machine(monkeypatch):
    """A machine whose devices are fakes: `start(report, files, imported)` runs the cell that installs."""
    commands = []

    def start(report=None, files=(), imported=False, backend="cpu"):
        def run(command, **options):
            commands.append(command)
            code = 9 if (command, report) == ("nvidia-smi", "failed") else 0
            return subprocess.CompletedProcess(command, code, f"| {report} |\n", "")

        def kill(process, number):
            assert number == signal.SIGKILL
            raise Restarted

        with monkeypatch.context() as patch:
            patch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
            patch.setenv("JAX_OPTIMIZATION_LEVEL", "given")
            patch.setattr(shutil, "which", lambda name: report and f"bin/{name}")
            patch.setattr("glob.glob", lambda pattern: [f for f in files if pattern[:9] in f])
            patch.setattr(subprocess, "run", run)
            patch.setattr("os.kill", kill)
            patch.setattr("time.sleep", lambda seconds: None)
            patch.setattr(jax, "default_backend", lambda: backend)
            if not imported:
                patch.delitem(sys.modules, "jax")
            execute([code_cells("tpu")[0], code_cells("tpu")[1]])
        return commands

    return start


@pytest.mark.parametrize(
    ("report", "files", "package"),
    [
        ("CUDA Version: 12.4", [], "jax[cuda12]"),
        ("CUDA Version: 13.0", [], "jax[cuda13]"),
        ("CUDA UMD Version: 13.1", [], "jax[cuda13]"),
        ("CUDA Version: N/A", [], "jax[cuda12]"),
        ("CUDA Version: 13.0", ["/dev/accel0"], "jax[cuda13]"),
        ("failed", ["/dev/accel0"], "jax[tpu]"),
        (None, ["/dev/vfio/0"], "jax[tpu]"),
    ],
)
def test_tpu_picks_the_package(machine, report, files, package):
    install = (sys.executable, "-m", "pip", "install", "-q", "-U", package)
    assert machine(report, files)[-1] == install


def test_tpu_restarts_only_over_an_imported_package(machine, monkeypatch, capsys):
    cuda = "CUDA Version: 13.0"
    with pytest.raises(Restarted):  # jax was imported before it could see the device
        machine(cuda, imported=True)
    assert capsys.readouterr().out.endswith("the runtime restarts now: run all cells again\n")
    assert machine(cuda, imported=True, backend="gpu")[-1] == "nvidia-smi"  # it sees it: as it is
    monkeypatch.setattr(metadata, "version", lambda name: "another")
    with pytest.raises(Restarted):
        machine(cuda, imported=True, backend="gpu")
    with pytest.raises(Restarted):  # numpy was imported, and replaced
        machine(cuda)


def test_tpu_stops_with_one_line_on_a_cpu(machine):
    for report in (None, "failed"):
        with pytest.raises(SystemExit, match=r"^this runtime has only a CPU: choose .* GPU$"):
            machine(report)
    with pytest.raises(SystemExit, match=r"^JAX finds no device although jax\[tpu\] .* runtime$"):
        execute([code_cells("tpu")[2]], namespace={"package": "jax[tpu]"})
