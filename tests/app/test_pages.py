"""Runs the Python of README.md and of the pages in docs, and the examples that use or train a network."""

import dataclasses
import functools
import os
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

import ncsn_jax
import run_lib
from examples import few_fourier_samples, super_resolution, two_moons, use_a_run
from ncsn_jax import inverse, models, scores
from ncsn_jax.app import build, schema
from tests.running import ROOT, python_of


class Beginning(nn.Module):
    """A network whose score is 0, as a new NCSN's nearly is."""

    @nn.compact
    def __call__(self, x, level):
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(x)


@pytest.fixture
def beside_a_run(uninterrupted, tmp_path, monkeypatch):
    """Changes to a directory with a run, as a user would have it."""
    (tmp_path / "runs").mkdir()
    os.symlink(uninterrupted(1)[0], tmp_path / "runs" / "digits")
    np.savez(tmp_path / "weights.npz", **{"model/w": np.zeros(3, np.float32)})
    monkeypatch.chdir(tmp_path)


def run_page(page, **names):
    """Runs the Python of a page, as a reader does from top to bottom, and returns its names."""
    for block in python_of(page):
        exec(block, names)
    return names


@pytest.fixture
def one_run(beside_a_run, monkeypatch):
    """Shares the run and its compiled sampler among the pages that open it."""
    monkeypatch.setattr(ncsn_jax, "load_run", functools.cache(ncsn_jax.load_run))


def test_the_code_in_the_readme_and_the_library_page_runs(one_run, capsys, monkeypatch):
    names = run_page("README.md")
    assert names["run"].step == 60
    assert names["images"].shape == names["score"].shape == (16, 8, 8, 1)
    share = float(capsys.readouterr().out)
    assert abs(share - 0.2) < 0.03  # 10,000 samples; the sampler's bias is more than their error

    # The network of two convolutions compiles in a second. Its scores start near 0.
    monkeypatch.setattr(models, "NCSN", lambda features, num_levels: Beginning())
    opened, continuous, posterior, operators, network = python_of("docs/library.md")
    names = {}
    exec(opened, names)
    assert names["images"].shape == names["score"].shape == (16, 8, 8, 1)
    assert names["nats"].shape == (16,) and np.isfinite(names["nats"]).all()
    names = {}
    exec(continuous, names)
    assert names["x"].shape == (1000, 2) and names["nats"].shape == (1000,)
    assert np.isfinite(names["nats"]).all()
    names = {}
    exec(posterior, names)
    assert names["samples"].shape == (16, 8, 8, 1) and np.isfinite(names["samples"]).all()
    run, x, given_y = (names[name] for name in ("run", "start", "given_y"))
    sigma = run.sigmas[:1]
    residual = names["y"] - x.reshape(16, 4, 2, 4, 2, 1).mean((2, 4))
    likelihood = (residual / 4).repeat(2, 1).repeat(2, 2) / (0.05**2 + sigma[0] ** 2 / 4)
    found = given_y(x, sigma.repeat(16)) - run.score_fn(x, sigma.repeat(16))
    np.testing.assert_allclose(found, likelihood, rtol=1e-4, atol=1e-4)
    exec(operators, names)
    assert names["rows"].apply(x).shape == (16, 8, 1)
    assert names["magnitudes"].apply(x).shape == x.shape
    names = {}
    exec(network, names)
    assert names["images"].shape == (8, 28, 28, 1)
    *evaluations, loss = map(float, capsys.readouterr().out.splitlines())
    assert evaluations == [35, 12]
    assert abs(loss / 392 - 1) < 4 * np.sqrt(2 / (8 * 784))  # half a chi square of 784, eight times


def test_the_page_on_the_first_sampler_does_what_it_says(capsys):
    run_page("docs/first_sampler.md")
    start, shape, spread, alone, end = re.split(r"\n(?! )", capsys.readouterr().out.strip())
    spread = [float(s) for s in spread.strip("[]").split()]
    assert shape == "(10, 4000, 2)" and 9 < spread[0] < 12
    assert float(alone) < 1e-5 and end.split()[1] == "35"
    # 8,000 numbers; the chain's bias is larger than their standard error, 0.8 %.
    assert all(abs(float(s) - 1) < 0.05 for s in (start, spread[-1], end.split()[0]))


def test_the_page_on_likelihood_gives_the_densities_and_latents_that_it_names():
    names = run_page("docs/likelihood.md")
    exact = norm.logpdf(names["x"], 0.5, 0.1).sum(1)
    np.testing.assert_allclose(names["nats"], exact, atol=0.1)
    np.testing.assert_allclose(names["z"], names["noise"], atol=1e-2)
    np.testing.assert_allclose(names["between"][0], names["x"][0], atol=1e-3)
    np.testing.assert_allclose(names["between"][-1], names["x"][1], atol=1e-3)
    in_bits = -exact / (16 * np.log(2)) + 8
    np.testing.assert_allclose(names["bits"], in_bits, atol=0.1)


def test_the_page_on_checkpoints_writes_a_file_in_the_format_of_the_authors(beside_a_run):
    torch = pytest.importorskip("torch")
    run_page("docs/checkpoints.md")["arrays"].close()
    (state,) = torch.load("checkpoint.pth")
    assert state["w"].shape == (3,)


def test_the_page_on_images_starts_a_run_on_an_array(monkeypatch):
    """`test_array_runs.py` tests the training."""
    started = []
    monkeypatch.setattr(run_lib, "train", lambda *args, images: started.append((*args, images)))
    array = np.full((4, 24, 40, 5), 280, np.float32)
    run_page("docs/images.md", array=array)
    ((config, workdir, images),) = started
    schema.check(config, num_devices=1)
    assert workdir == "runs/kelvin" and images is array
    assert build.image_shape(config) == array.shape[1:]


def test_every_page_with_python_is_run():
    pages = {p.stem for p in (ROOT / "docs").glob("*.md") if python_of(f"docs/{p.name}")}
    # Other modules run `classes.md`, `conditioning.md` and `extending.md`.
    known = {"classes", "library", "checkpoints", "images", "conditioning", "likelihood"}
    assert pages == known | {"first_sampler", "extending"}


def anchors(text):
    """Returns the anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def links(page):
    """Returns the files and anchors of this repository that a page links to."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path if path else page).resolve(), anchor


def test_links_between_pages_lead_somewhere():
    folders = (ROOT, ROOT / "docs", ROOT / "benchmarks")
    for page in [page for folder in folders for page in folder.glob("*.md")]:
        for path, anchor in links(page):
            assert path.exists(), f"{page.name}: {path}"
            if anchor and path.suffix != ".py":  # `mkdocs build` checks the lines of code
                assert anchor in anchors(path.read_text()), f"{page.name}: {path}#{anchor}"


def test_messages_on_the_page_of_troubleshooting_are_those_of_the_code():
    code = "".join(p.read_text() for p in (ROOT / "ncsn_jax").rglob("*.py"))
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quotes = re.findall(r'^\| "([^"]+)"', page, re.MULTILINE)
    assert len(quotes) == 4 and all(quote in code for quote in quotes)


def test_notebooks_and_site_name_the_same_repository():
    (address,) = re.findall(r'^repo_url: "(.*)"$', (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f'ADDRESS = \\"{address}\\"' in notebook.read_text(), notebook.name


def test_something_leads_to_every_file_in_docs():
    """A page or the site's configuration; and the navigation of the site to every page."""
    docs, site = ROOT / "docs", (ROOT / "mkdocs.yml").read_text()
    linked = {path for page in [ROOT / "README.md", *docs.glob("*.md")] for path, _ in links(page)}
    for path in filter(pathlib.Path.is_file, docs.rglob("*")):
        name = str(path.relative_to(docs))
        if name.startswith("results/"):  # read by a test of the table
            continue
        assert name in site or (path.suffix != ".md" and path in linked), name


def test_the_example_on_using_a_run_runs(beside_a_run, capsys):
    use_a_run.main("runs/digits", "x.png")
    assert "Run(tiny, " in capsys.readouterr().out
    picture = np.asarray(Image.open("x.png"))
    scale = picture.shape[1] // (8 * 9 + 1)
    tiles = picture[::scale, ::scale][1:, 1:].reshape(5, 9, 8, 9)[:, :8, :, :8].swapaxes(1, 2)
    images, noisy, _, known, completed = tiles.astype(int)
    np.testing.assert_array_equal(known[:, :4], images[:, :4])
    assert np.all(abs(known[:, 4:] - 128) <= 1)
    assert abs(completed[:, :4] - images[:, :4]).max() < abs(noisy - images).max()


@pytest.mark.parametrize("example", [super_resolution, few_fourier_samples])
def test_the_examples_on_inverse_problems_are_as_near_as_theory_says(
    example, beside_a_run, monkeypatch, capsys
):
    """For the normal distribution with the digits' mean and covariance the posterior is known."""
    run = ncsn_jax.load_run("runs/digits")
    data = np.asarray(run.prepare(build.load_images(run.config, "train"))).reshape(-1, 64)
    mean, covariance = data.mean(axis=0), np.cov(data.T)
    values, vectors = np.linalg.eigh(covariance)

    def score_fn(x, sigma):
        along = (x.reshape(-1, 64) - mean[None]) @ vectors
        return -(along / (values[None] + sigma[:, None] ** 2) @ vectors.T).reshape(x.shape)

    opened, measured = dataclasses.replace(run, score_fn=score_fn), []
    monkeypatch.setattr(ncsn_jax, "load_run", lambda workdir: opened)

    def measure(key, operator, x, noise):
        y = inverse_measure(key, operator, x, noise)
        measured.append((operator, x, y, noise))
        return y

    inverse_measure = inverse.measure
    monkeypatch.setattr(inverse, "measure", measure)
    example.main("runs/digits", "x.png")
    assert pathlib.Path("x.png").read_bytes().startswith(b"\x89PNG")

    ((operator, x, y, noise),) = measured
    matrix = np.asarray(operator.apply(jnp.eye(64).reshape(64, 8, 8, 1)).reshape(64, -1)).T
    x, y = (np.asarray(a, float).reshape(len(a), -1) for a in (x, y))
    projected = matrix @ covariance
    gain = np.linalg.solve(projected @ matrix.T + noise**2 * np.eye(len(matrix)), projected).T
    best, spread = mean + (y - mean @ matrix.T) @ gain.T, covariance - gain @ projected
    out = capsys.readouterr().out
    for name, among in ("mean", super_resolution.SAMPLES), ("sample 1", 1):
        # The error is |d + e|^2 with a constant d and e ~ N(0, v).
        d, v = best - x, spread / among
        error = (d**2).sum(axis=1) + np.trace(v)
        deviation = np.sqrt(2 * np.sum(v**2) + 4 * np.sum(d @ v * d, axis=1)) / error
        expected = -10 * np.log10(error / 64).mean()
        tolerance = 10 / np.log(10) * 4 * np.sqrt(np.mean(deviation**2) / len(x))
        found = float(re.search(f"{name}: PSNR (.*) dB", out)[1])
        assert abs(found - expected) < tolerance + 0.2, name  # 0.2 for the finite steps


def test_the_two_moons_example_learns(tmp_path, monkeypatch, capsys):
    """A few steps suffice for the density that needs no knowledge of the shape."""
    monkeypatch.setattr(two_moons, "COUNT", 50)
    two_moons.main(str(tmp_path / "moons.png"), num_steps=150)
    assert (tmp_path / "moons.png").read_bytes().startswith(b"\x89PNG")
    nats = float(re.search(r"data: (\S+) nats", capsys.readouterr().out)[1])
    x = two_moons.moons(jax.random.key(0), 1000)
    normal = scores.gaussian_mixture([x.mean(0)], [float(x.std())], [1.0])
    baseline = float(normal.log_prob(x, jnp.full(1000, 1e-3)).mean())
    assert nats > baseline + 0.5
