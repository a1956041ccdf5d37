"""The notebook, executed from top to bottom on a small network, and the pictures that it shows."""

import json
import subprocess
import sys

from tests.running import ROOT, quickly_compiling

# Before the cells: what a notebook's front end provides. After the configuration: smaller numbers.
PRELUDE = """
import sys, types
shown = []
display = types.ModuleType("IPython.display")
display.Image = lambda data: open(data, "rb").read() if isinstance(data, str) else data
display.display = lambda *pictures: shown.extend(pictures)
front_end = types.ModuleType("IPython")
front_end.version_info, front_end.get_ipython = (9, 0, 0), lambda: None
sys.modules |= {"IPython": front_end, "IPython.display": display}
"""
SMALLER = """
import tests.tiny
config.model.name, config.model.features, config.model.num_levels = "tiny", 4, 2
config.training.batch_size, config.training.num_steps = 8, 60
config.training.checkpoint_every, config.training.log_every, config.training.sample_every = 10, 20, 0
config.sampling.steps_per_level, config.sampling.num_samples = 2, 12
config.sampling.batch_size, config.sampling.preview_samples = 8, 8
config.inpainting.num_images, config.inpainting.num_completions = 2, 2
"""
CHECKS = """
assert len(shown) == 4 and all(png.startswith(b"\\x89PNG") for png in shown)
assert 0.1 < share < 0.3
"""


def test_runs_from_top_to_bottom(tmp_path):
    notebook = json.loads((ROOT / "notebooks" / "digits.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    code = "\n".join([PRELUDE, *cells, CHECKS])
    assert code.count("run_lib.train(") == 1
    code = code.replace("run_lib.train(", SMALLER + "\nrun_lib.train(")
    code = code.replace("runs/notebook", str(tmp_path / "run"))
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=quickly_compiling(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "step 60/60" in result.stdout and "in the mode of weight 0.2" in result.stdout
