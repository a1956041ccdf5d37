"""The commands in README.md and on the pages in docs: each would be accepted."""

import ast
import importlib.util
import re
import shlex

import pytest

import ncsn_jax
import run_lib
from ncsn_jax.app import schema
from tests.running import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

FLAGS = {"config", "workdir", "mode", "version"}
FLAGS |= {"coordinator", "num_processes", "process_id", "patience"}
PROGRAMS = {"cd", "git", "tensorboard", "tar", "mkdocs", "pre-commit", ".ci/run", "..."}

# What a page means by a run that another command on it began.
BEGAN = {
    "runs/kelvin": "image_folder",
    "runs/mine": "image_folder",
    "runs/authors": "ncsnv2_cifar10",
    "runs/averages": "digits",
    "runs/averages/averages/step_5000_width_0.07": "digits",
}


def commands(page):
    """Returns the lines of a page's shell code, split into words."""
    text = re.sub(r"^ {3}", "", page.read_text(), flags=re.MULTILINE)  # in lists
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        assert language in {"", "python", "text", "bibtex"}, language
        if language:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.partition("#")[0].split("&&"):
                if words := shlex.split(part):
                    yield [w for w in words if not re.fullmatch(r"[A-Z_]+=\S+", w)]


def literal(text):
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def check_run(flags):
    """Checks the flags of `main.py` as far as they can be checked without data."""
    given = dict(flag.removeprefix("--").partition("=")[::2] for flag in flags)
    assert all(flag.startswith("--") for flag in flags)
    overrides = {n.removeprefix("config."): v for n, v in given.items() if n.startswith("config.")}
    given = {n: v for n, v in given.items() if not n.startswith("config.")}
    assert given.keys() <= FLAGS and given.get("mode", "train") in run_lib.__all__
    if "version" in given:
        return
    name = given.get("workdir", "").removeprefix("runs/")
    path = given.get("config", f"configs/{BEGAN.get(given.get('workdir'), name)}.py")
    if path == "configs/mine.py" or path == "CONFIG":
        return
    spec = importlib.util.spec_from_file_location("config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    is_text = {n: schema.FIELDS[n].types == (str,) for n in overrides if n in schema.FIELDS}
    values = {n: v if is_text.get(n) else literal(v) for n, v in overrides.items()}
    config.update_from_flattened_dict(values)
    schema.check(config, num_devices=1)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_of_a_page_name_files_modules_modes_and_fields_that_exist(page):
    for program, *words in commands(page):
        if [program, words[:1]] == ["python", ["main.py"]]:
            check_run(words[1:])
        elif [program, words[:1]] == ["python", ["-m"]]:
            assert importlib.util.find_spec(words[1]), words
        elif program == "pip":
            for name in (w for w in words if w.endswith(".txt")):
                assert (ROOT / name).exists(), name
        else:
            assert program in PROGRAMS, program


def test_every_field_that_a_page_names_exists_and_may_hold_the_value():
    sections = "|".join(filter(None, schema.SECTIONS))
    pattern = rf"`(?:--)?(?:config\.)?(({sections})\.(\w+))(?:=([^` ]+))?[` ]"
    for page in PAGES:
        for field, module, name, value in re.findall(pattern, page.read_text()):
            of_module = hasattr(getattr(ncsn_jax, module, None), name)
            assert field in schema.FIELDS or of_module or name == "png", f"{page.name}: {field}"
            if value == "midpoint":  # the sampler of the worked example
                continue
            if value and not re.fullmatch("[A-Z]+", value.rpartition(".")[0] or value):
                holds = all(limit(literal(value)) for limit, _ in schema.FIELDS[field].limits)
                assert holds, f"{page.name}: {field}={value}"


def test_the_page_of_commands_lists_every_flag_and_mode():
    page = (ROOT / "docs" / "commands.md").read_text()
    assert set(re.findall(r"`--(\w+)[`=]", page)) >= FLAGS
    modes = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(modes) == sorted(run_lib.__all__)
