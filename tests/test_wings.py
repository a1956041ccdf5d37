"""Import rules: the library never imports the application, and examples import nothing private."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "ncsn_jax"
EXAMPLES = PACKAGE.parent / "examples"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
LIBRARY = sorted(name for name in FILES if not name.startswith("app/"))

# Only `load_run` and the command-line programs lead into the application.
DOORS = {"__init__.py", "compare.py", "convert/__main__.py"}


def imports(source: str, package: str = "ncsn_jax") -> set[str]:
    """Returns the full name of every module, or name in a module, that source text imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            module = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def reaches_app(names: set[str]) -> bool:
    return any(f"{name}.".startswith("ncsn_jax.app.") for name in names)


@pytest.mark.parametrize("name", sorted(set(LIBRARY) - DOORS))
def test_library_does_not_import_the_application(name):
    package = ".".join(["ncsn_jax", *name.split("/")[:-1]])
    assert not reaches_app(imports(FILES[name].read_text(), package))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_examples_import_nothing_private(path):
    names = {name for name in imports(path.read_text()) if name.startswith("ncsn_jax.")}
    assert not [name for name in names if "._" in name]


def test_only_devices_uses_pmap():
    """Looks for an attribute or an import; comments and docstrings may name it."""
    users = set()
    for name, path in FILES.items():
        source = path.read_text()
        used = {
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute | ast.Name)
        } | {imported.rsplit(".", 1)[-1] for imported in imports(source)}
        users |= {name} if "pmap" in used else set()
    assert users == {"app/devices.py"}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ncsn_jax.app", True),
        ("import ncsn_jax.app.cli as c", True),
        ("from ncsn_jax import app", True),
        ("def f():\n    from ncsn_jax.app.build import make_sde", True),
        ("from . import app", True),
        ("from .app import cli", True),
        ("from ncsn_jax import losses\nimport ncsn_jax.apples", False),
    ],
)
def test_imports_recognises_every_form_of_import(source, found):
    assert reaches_app(imports(source)) is found
