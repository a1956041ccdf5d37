"""What `tests.fuzz` tries: for every public entry point a generator of malformed inputs.

An entry point's `make(case)` writes what it needs to the case's room and returns (call, path): a function
without arguments, and the path that a refusal has to name, or None. All randomness is the case's own.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import pickle
import re
import runpy
import signal
import stat
import struct
import subprocess
import sys
import types
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = pathlib.Path(__file__).parent / "data"


@dataclasses.dataclass
class Entry:
    """An entry point.

    Attributes:
      make: the generator.
      weight: its share of the cases.
      modules: what its process imports before the first case; none for those that fork.
      kind: "application" or "library", which refuse differently.
      limit: seconds for a case.
    """

    make: Callable
    weight: float
    modules: tuple[str, ...] = ()
    kind: str = "application"
    limit: float = 20


ENTRIES: dict[str, Entry] = {}


def _entry(weight, *modules, **options):
    def register(make):
        ENTRIES[make.__name__.removeprefix("make_")] = Entry(make, weight, modules, **options)
        return make

    return register


class Failure(Exception):
    """What is wrong with a case that came back."""


def judge_message(text: str, path: str | None) -> None:
    """Raises Failure unless a message is one line that names the path."""
    if not text.strip() or not text.isprintable():
        raise Failure(f"the message is not one printable line: {text!r}")
    if len(text) > 6000:
        raise Failure(f"the message has {len(text)} characters: {text[:200]!r} ...")
    if text.rstrip().endswith((":", "(", ";")):
        raise Failure(f"the message ends in the middle: {text!r}")
    shown = {path, repr(path)[1:-1], ascii(path)[1:-1]}
    if path and len(path) < 500 and not any(form in text for form in shown):
        raise Failure(f"the message does not name {path!r}: {text!r}")


# Raw material.

NAMES = [
    "a.png",
    "b.jpg",
    "c.jpeg",
    "D.PNG",
    "..png",
    "...png",
    "-rf.png",
    "--help.png",
    "new\nline.png",
    "tab\tand\rreturn.png",
    "escape\x1b[31m.png",
    "\udcff\udcfe.png",
    "ünïcödé 図.png",
    "\u202egnp.exe.png",
    "%s%n{0}.png",
    "$(touch x).png",
    "a'b\"c`.png",
    " .png",
    "x" * 250 + ".png",
    "*.png",
    "\\.png",
    ".hidden.png",
    "notes.txt",
    "no suffix",
    "~.png",
    "#.png",
    "con.png",
    "a:b.png",
]

STRINGS = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\n",
    "two\nlines",
    "\ud800",
    "\udcff",
    "é図",
    "\x1b[31m",
    ".",
    "..",
    "../outside",
    "../../outside/below",
    "/",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "~",
    "~nobody/x",
    "$HOME",
    "%s",
    "{0}",
    "None",
    "nan",
    "x" * 300,
    "x" * 5000,
    "-1",
    "--help",
    "'",
    '"',
]

NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    8,
    -1,
    -2,
    2**31 - 1,
    2**31,
    2**32,
    2**63,
    2**64,
    10**9,
    10**18,
    10**400,
    10**5000,
    -(10**5000),
    0.0,
    -0.0,
    0.5,
    1.0,
    1.5,
    -1.0,
    1e-300,
    5e-324,
    1e-45,
    1e-20,
    1e20,
    3.5e38,
    1e300,
    1 - 1e-12,
    float("inf"),
    float("-inf"),
    float("nan"),
]


def _value(rng):
    """Returns any Python value."""
    kind = rng.randrange(12)
    if kind < 5:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(STRINGS)
    return rng.choice(
        [
            None,
            True,
            False,
            (),
            [],
            {},
            (0.0, 1.0),
            (1.0, 0.0),
            (0.0, float("nan")),
            (0, 1, 2),
            ("a", "b"),
            [0, 1],
            ((0, 1), 2),
            b"bytes",
            1j,
            object(),
            float,
            range(3),
            {"a": 1},
            {1, 2},
            np.float32(0.5),
            np.float64(0.5),
            np.int64(8),
            np.bool_(True),
            np.arange(3),
            np.zeros(()),
        ]
    )


def _mutate(rng, data: bytes) -> bytes:
    """Returns damaged bytes."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 2, 4, 16, 100])
        kind = rng.randrange(9)
        if kind == 0:
            del data[at:]
        elif kind == 1 and data:
            for _ in range(rng.choice([1, 1, 4, 50])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 3:
            data[at:at] = rng.randbytes(length)
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at : at + length] = bytes(length)
        elif kind == 6:
            data[at : at + length] = b"\xff" * length
        elif kind == 7:
            data[at:at] = data[at : at + length] * rng.choice([1, 2, 100])
        else:
            other = rng.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def _special(rng, path: str) -> None:
    """Makes something at a path that is no ordinary file."""
    kind = rng.randrange(8)
    if kind == 0:
        os.mkdir(path)
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        os.symlink("nowhere", path)
    elif kind == 3:
        os.symlink(os.path.basename(path), path)
    elif kind == 4:
        os.symlink(rng.choice(["/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem"]), path)
    elif kind == 5:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == 6:
        pathlib.Path(path).write_bytes(b"")
    else:
        pathlib.Path(path).write_bytes(rng.randbytes(rng.choice([1, 100, 10_000])))


def _write(path: str, data: bytes) -> None:
    pathlib.Path(path).write_bytes(data)


# Command lines. Their processes are forked from one that has not imported jax.

FIELDS = [
    "seed",
    "data",
    "data.dataset",
    "data.data_dir",
    "data.image_size",
    "data.channels",
    "data.random_flip",
    "model",
    "model.name",
    "model.features",
    "model.sigma_begin",
    "training.loss",
    "training.batch_size",
    "training.num_steps",
    "optim.learning_rate",
    "sampling.clip",
    "sampling.epsilon",
    "sampling.name",
    "inpainting.mask",
    "inpainting.keep_observed",
    "modle.features",
    "data.x",
    "data.image_size.x",
    "",
    ".",
    "..",
    "data.",
    ".data",
    "__class__",
    "data.__init__",
    "_fields",
    "keys",
    "data.keys",
    "data[0]",
    "sampling.clip[0]",
    "sampling.clip[9]",
    "é",
    "\udcff",
    "a b",
    "a\nb",
]


def _texts(rng) -> str:
    """Returns any text as it may stand on a command line."""
    kind = rng.randrange(6)
    if kind == 0:
        try:
            return str(rng.choice(NUMBERS))
        except ValueError:  # more than 4300 digits
            return "1" + "0" * 5000
    if kind == 1:
        return rng.choice(STRINGS).replace("\x00", "")
    if kind == 2:
        return "".join(chr(rng.choice([*range(1, 128), 233, 0x56F3, 0xDCFF])) for _ in range(9))
    if kind == 3:
        return rng.choice(["(", "[", "{", "-", "~", "not ", "1+", "((", "[[", "(1,"]) * rng.choice(
            [1, 5, 100, 1000, 30_000]
        )
    if kind == 4:
        return rng.choice(["digits", "32", "True", "false", "1e-3", "(0, 1)", "()", "left", "ncsn"])
    return rng.choice(
        [
            "__import__('os').system('touch harmed')",
            "1_000",
            "0x10",
            "1e5",
            "١٢",
            "+5",
            " 5 ",
            "5;6",
            "{'a': 1}",
            "{}",
            "(1",
            "'(",
            "(0, 'x')",
            "None",
            "nan",
            "inf",
            "-inf",
            "1e999",
            "0,1",
        ]
    )


def _argument(rng, case) -> str:
    kind = rng.randrange(14)
    if kind < 6:
        return f"--config.{rng.choice(FIELDS)}={_texts(rng)}"
    if kind == 6:
        return f"--{rng.choice(['mode', 'workdir', 'config', 'export', 'v'])}={_texts(rng)}"
    if kind == 7:
        return f"--config.{rng.choice(FIELDS)}"
    if kind == 8:
        return f"--no{rng.choice(['config', 'mode', 'config.data.random_flip', 'config.seed', ''])}"
    if kind == 9:
        return _texts(rng)
    if kind == 10:
        return f"--{_texts(rng)}"
    if kind == 11:
        return rng.choice(
            ["--", "-", "--=", "---", "-h", "--help", "--helpfull", "--helpxml", "-?"]
        )
    if kind == 12:
        path = case.path("flags")
        if not os.path.lexists(path):
            _write(path, rng.choice([b"--mode=train", b"\xff\xfe", b"--flagfile=" + path.encode()]))
        return f"--flagfile={rng.choice([path, case.room, 'nothing', '', _texts(rng)])}"
    return rng.choice(
        [
            "--undefok=x",
            "--verbosity=x",
            "--v=99999999999999999999",
            "--stderrthreshold=x",
            "--alsologtostderr=x",
            "--config_filename=x",
            "-mode",
            "--mode",
            "--mod=train",
            "--MODE=train",
            "--mode train",
            "—mode=train",
        ]
    )


def _fork(run: Callable[[], None]) -> tuple[int, str, str]:
    """Runs a function in a process of its own: (status, standard output, standard error)."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 70
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            os.close(reading)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(writing, 2)
            os.dup2(os.open("../tmp/output", os.O_RDWR | os.O_CREAT | os.O_TRUNC), 1)
            sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), "utf-8", write_through=True)
            sys.stderr = io.TextIOWrapper(
                os.fdopen(2, "wb"), "utf-8", "backslashreplace", write_through=True
            )
            try:
                run()
                status = 0
            except SystemExit as error:
                status = error.code
                if not isinstance(status, int):
                    print(status, file=sys.stderr) if status is not None else None
                    status = int(status is not None)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                status = 99
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status & 255)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as file:
            errors = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    output = pathlib.Path("../tmp/output").read_bytes()
    return status, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace")


def _judge_process(status: int, output: str, errors: str) -> None:
    """Raises unless a process ended well, or with one line and a status of 1 or 2."""
    from ncsn_jax.errors import UserError

    if "Traceback" in errors or status not in (0, 1, 2):
        raise Failure(f"status {status}: {errors[-300:]!r}")
    # Of absl, about a flagfile that names itself.
    errors = re.sub(r"^Warning: Hit circular.*\n", "", errors, flags=re.M)
    lines = errors.splitlines()
    if not errors and (status == 0 or output):  # such as --help
        return
    if len(lines) != 1 or status == 0:
        raise Failure(f"status {status} with {len(lines)} lines: {errors[:300]!r}")
    raise UserError(lines[0])


def _program(path: str, argv: list[str], modules: dict[str, types.ModuleType]):
    """Returns a call of a program whose slow modules are replaced."""

    def run():
        sys.modules |= modules
        sys.argv = [path, *argv]
        runpy.run_path(str(ROOT / path), run_name="__main__")

    return lambda: _judge_process(*_fork(run))


def _stub(name: str, *functions: str) -> types.ModuleType:
    module = types.ModuleType(name)
    for function in functions:
        setattr(module, function, lambda *_: str(_))
    return module


def _run_lib() -> dict:
    return {"run_lib": _stub("run_lib", "train", "sample", "inpaint", "nearest", "suggest")}


@_entry(20)
def make_flags(case):
    """`main.py`."""
    rng = case.rng
    argv = [_argument(rng, case) for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 8]))]
    if rng.random() < 0.85:
        argv.insert(rng.randrange(len(argv) + 1), f"--config={ROOT}/configs/digits.py")
    if rng.random() < 0.85:
        argv.insert(rng.randrange(len(argv) + 1), f"--workdir={case.work}")
    if argv and rng.random() < 0.1:
        argv.append(rng.choice(argv))
    return _program("main.py", argv, _run_lib()), None


@_entry(4)
def make_convert_flags(case):
    """`python -m ncsn_jax.convert`."""
    rng = case.rng
    argv = [_argument(rng, case) for _ in range(rng.choice([0, 1, 1, 2]))]
    argv += rng.sample(
        [
            f"--config={ROOT}/configs/mnist.py",
            f"--workdir={case.work}",
            "--export=x.npz",
            "a.pth",
            "b.pth",
            "",
        ],
        rng.randrange(6),
    )
    workdirs = _stub("ncsn_jax.convert.workdirs", "import_checkpoint", "export")
    package = _stub("ncsn_jax.convert")
    package.workdirs = workdirs
    modules = {"ncsn_jax.convert": package, "ncsn_jax.convert.workdirs": workdirs}
    return _program("ncsn_jax/convert/__main__.py", argv, modules), None


@_entry(2)
def make_output_path(case):
    """The path on the command lines of the figures."""
    rng = case.rng
    path = rng.choice([case.path("x.png"), case.path("no", "x.png"), case.path("x"), _texts(rng)])
    if rng.random() < 0.3 and not os.path.lexists(path) and path.startswith(case.room):
        os.makedirs(path)
    argv = ["--", path]

    def run():
        sys.argv = ["figure", *argv]
        from examples import output_path

        output_path("Draws.", "figure.png")

    def call():
        status, output, errors = _fork(run)
        # argparse prints its usage first.
        lines = [line for line in errors.splitlines() if not line.startswith("usage:")]
        _judge_process(status, output, "".join(f"{line}\n" for line in lines))

    return call, None


@_entry(8)
def make_config_file(case):
    """Configuration files, which are programs of the user's."""
    rng = case.rng
    path = case.path(rng.choice(["c.py", "c", "é.py", "a b.py", "a:b.py", "\udcff.py", "json.py"]))
    start = "from configs import default\ndef get_config(*_):\n  c = default.get_config()\n"
    broken = [
        "",
        "import no_such_module",
        "raise",
        "raise KeyError",
        "raise AttributeError()",
        "raise KeyError(3)",
        "raise Exception('two\\nlines')",
        "raise ValueError('')",
        "raise ValueError('line\\n\\n')",
        "raise OSError(2, 'x')",
        "raise MemoryError",
        "1/0",
        "def f(): f()\nf()",
        "syntax error",
        "\x00",
        "get_config = 5",
        "def get_config(): pass",
        "def get_config(): return {}",
        "def get_config(): return 5",
        "def get_config(a, b): return a",
        "def get_config(): raise KeyError",
        "def get_config(): raise AttributeError",
        "def get_config(): raise RuntimeError('a\\nb')",
        "class get_config: pass",
        "import ml_collections\ndef get_config(): return ml_collections.FrozenConfigDict()",
        "import ml_collections\ndef get_config(): return ml_collections.ConfigDict()",
        "import dataclasses\n@dataclasses.dataclass\nclass get_config:\n  a: int = 5",
        start + "  del c.data\n  return c",
        start + "  c.data = None\n  return c",
        start + "  c.lock()\n  c.nothing = 5\n  return c",
        start + "  c.data.image_size = 'x'\n  return c",
        start + "  return c.to_json()",
        start + "  c.x = c\n  return c",
        "#" * 10**6,
        "(" * 1000,
        "-" * 30_000 + "1",
        "\xff\xfe",
    ]
    kind = rng.randrange(5)
    if kind == 0:
        text = (ROOT / "configs" / "digits.py").read_bytes()
        _write(path, _mutate(rng, text))
    elif kind == 1 and rng.random() < 0.5:
        os.mkdir(path)
    elif kind == 2 and rng.random() < 0.5:
        _write(path, rng.randbytes(1000))
    else:
        _write(path, rng.choice(broken).encode())
    argument = rng.choice([path] * 6 + [path + ":string", path + "/", case.path("no.py"), ""])
    argv = [f"--config={argument}", f"--workdir={case.work}"]
    if rng.random() < 0.3:
        argv.append(f"--config.{rng.choice(FIELDS)}={_texts(rng)}")
    return _program("main.py", argv, _run_lib()), None


@_entry(0.24, limit=120)
def make_process(case):
    """`main.py` as a process, all of it."""
    rng = case.rng
    config = f"--config={ROOT}/configs/digits.py"
    folder = case.path("pictures")
    os.mkdir(folder)
    os.mkdir(case.path("run"))
    _write(case.path("run", "config.json"), rng.choice([b"[]", b"{", b"{}", b"[" * 10**5]))
    argvs = [
        ["--mode=train", config, f"--workdir={case.work}", "--config.model.features=1000000000"],
        ["--mode=sample", config, f"--workdir={case.work}", "--config.model.sigma_end=nan"],
        ["--mode=train", config, f"--workdir={case.work}", "--config.data.dataset=/"],
        ["--mode=train", config, f"--workdir={case.path('run')}"],
        ["--mode=sample", config, f"--workdir={case.path('run')}"],
        ["--mode=inpaint", config, f"--workdir={case.path('run')}"],
        ["--mode=nearest", config, f"--workdir={case.work}"],
        ["--mode=suggest", config, "--config.data.dataset=image_folder"],
        [
            "--mode=suggest",
            config,
            "--config.data.dataset=image_folder",
            f"--config.data.data_dir={folder}",
        ],
        ["--mode=suggest", config, "--config.data.image_size=16"],
        ["--mode=train", config, "--workdir=/dev/null/x"],
        ["--mode=train", config, "--workdir=" + "x" * 300],
        ["--mode=train", config, f"--workdir={case.work}", "--config.training.batch_size=0"],
        ["--mode=train", config, f"--workdir={case.room}/\udcff", "--config.seed=-1"],
        ["--mode=maybe", config],
        [config],
        [],
        ["--helpfull"],
    ]
    argv = argvs[case.number % len(argvs)]

    def call():
        result = subprocess.run(
            [sys.executable, ROOT / "main.py", *argv], capture_output=True, stdin=subprocess.DEVNULL
        )
        # Without the progress of tensorflow-datasets, which prepares the digits.
        lines = [line for line in result.stderr.decode().split("\n") if "\r" not in line]
        _judge_process(result.returncode, result.stdout.decode(), "\n".join(lines).lstrip("\n"))

    return call, None


# Configurations.


@_entry(20, "ncsn_jax.config")
def make_config(case):
    """Any value in any field, and what is then made of the configuration."""
    from ml_collections import ConfigDict

    from configs import default, digits, ncsnv2_cifar10
    from ncsn_jax import config as configuration

    rng = case.rng
    module = rng.choice([default, digits, digits, ncsnv2_cifar10])
    config = module.get_config()
    names = sorted(configuration.flatten(config))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        parent, _, name = rng.choice(names).rpartition(".")
        section = config[parent] if parent else config
        kind = rng.randrange(40)
        if not isinstance(section, ConfigDict):
            continue
        with section.ignore_type(), contextlib.suppress(ValueError, OverflowError):
            if kind == 0 and name in section:
                del section[name]
            elif kind == 1:
                section[rng.choice(["extra", "x.y", "", "a b"])] = _value(rng)
            elif kind == 2 and parent and "." not in parent:
                with config.ignore_type():
                    config[parent] = _value(rng)
            elif kind == 3:
                section[name] = ConfigDict({"a": 1})
            elif isinstance(section.get(name), str) and rng.random() < 0.6:
                section[name] = rng.choice(
                    [*STRINGS, "ncsnv2", "ncsn_simplified", "ssm", "sm", "instance", "normal"]
                )
            elif type(section.get(name)) in (int, float) and rng.random() < 0.7:
                section[name] = rng.choice(NUMBERS)
            else:
                section[name] = _value(rng)

    def call():
        configuration.check(config)
        ladder = np.asarray(configuration.make_sigmas(config))
        if not (np.isfinite(ladder).all() and len(ladder) == config.model.num_levels):
            raise Failure(f"a ladder of {ladder}")
        model = configuration.make_model(config)
        configuration.make_optimizer(config)
        configuration.make_loss(config)
        assert model is not None and len(configuration.image_shape(config)) == 3
        configuration.make_workdir(case.work)
        configuration.write_config(config, case.work)
        if not configuration.compare_workdir(config, case.work):
            raise Failure("its own config.json is not found")

    return call, None


def _json_text(rng, valid: dict) -> bytes:
    """Returns the text of a file that should hold `valid`."""
    text = json.dumps(valid).encode()
    kind = rng.randrange(12)
    if kind == 0:
        return _mutate(rng, text)
    if kind == 1:
        return rng.choice([b"[", b'{"a":', b"[[],", b'{"a":[']) * rng.choice(
            [10, 1000, 10**5, 10**6]
        )
    if kind == 2:
        depth = rng.choice([500, 990, 5000])
        return b'{"seed": ' + b"[" * depth + b"]" * depth + b"}"
    if kind == 3:
        return rng.choice(
            [b"", b"null", b"[]", b"5", b'"x"', b"NaN", b"true", b"{}", b"\xff", b"[{}]"]
        )
    if kind == 4:
        return rng.choice(["utf-16", "utf-8-sig", "utf-32"]).join(["", ""]).encode() + text[:-1]
    if kind == 5:
        return text.decode().encode(rng.choice(["utf-16", "utf-8-sig", "utf-32"]))
    changed = dict(valid)
    for _ in range(rng.choice([1, 1, 3])):
        key = rng.choice([*sorted(valid), rng.choice(STRINGS)])
        value = rng.choice(
            [
                rng.choice(NUMBERS[:16] + NUMBERS[18:]),
                rng.choice(STRINGS),
                "y" * 10**6,
                None,
                True,
                [],
                {},
                [[]],
                {"a": {"b": None}},
                list(range(10**4)),
            ]
        )
        if kind == 6:
            changed.pop(key, None)
        else:
            changed[key] = value
    text = json.dumps(changed).encode()
    if kind == 7:
        text = text.replace(b": 1,", b": 1" + b"0" * rng.choice([400, 5000]) + b",")
    return text


def _place_json(rng, path: str, valid: dict) -> None:
    if rng.random() < 0.15:
        _special(rng, path)
    else:
        _write(path, _json_text(rng, valid))


@_entry(9, "ncsn_jax.config")
def make_workdir_json(case):
    """`config.json` and `images.json` of a work directory."""
    from configs import digits
    from ncsn_jax import config as configuration

    rng = case.rng
    config = digits.get_config()
    os.mkdir(case.work)
    images = np.zeros((3, 2, 2, 1), np.uint8)
    if rng.random() < 0.6:
        path = os.path.join(case.work, "config.json")
        _place_json(rng, path, configuration.flatten(config))
        if rng.random() < 0.2:
            _special(rng, os.path.join(case.work, "checkpoints"))

        def call():
            configuration.compare_workdir(config, case.work)
            configuration.require_run(config, case.work)
    else:
        path = os.path.join(case.work, "images.json")
        _place_json(rng, path, {"shape": [3, 2, 2, 1], "crc32_of_a_thousand": zlib.crc32(images)})

        def call():
            read_only = case.rng.random() < 0.5
            configuration.claim_images(images, case.work, read_only=read_only)

    return call, case.work


@_entry(1, "ncsn_jax.config")
def make_workdir(case):
    """The work directory itself: its name, and what is there instead."""
    from configs import digits
    from ncsn_jax import config as configuration

    rng, config = case.rng, digits.get_config()
    workdir = os.path.join(case.work, rng.choice(STRINGS).lstrip("/~").replace("..", "x"))
    kind = rng.randrange(3)
    if kind == 0:
        _special(rng, case.work)
    elif kind == 1:
        os.mkdir(case.work)
        _special(rng, os.path.join(case.work, "lock"))
        workdir = case.work

    def call():
        configuration.compare_workdir(config, workdir)
        configuration.make_workdir(workdir)
        with configuration.lock_workdir(workdir):
            configuration.write_config(config, workdir)
        configuration.require_run(config, workdir)

    return call, None


# Arrays of samples.


def _npy(array_header: dict, payload: bytes) -> bytes:
    """Returns a `.npy` file with any header."""
    text = repr(array_header) if isinstance(array_header, dict) else array_header
    encoded = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(encoded) & 0xFFFF) + encoded + payload


class _Harmful:
    """Would write a file where it must not if it were unpickled."""

    def __reduce__(self):
        return os.system, ("touch harmed ../outside/harmed",)


def _npz(rng, key: str, array: np.ndarray, **others) -> bytes:
    """Returns a `.npz` file that should hold `array`, and does not."""
    buffer = io.BytesIO()
    kind = rng.randrange(9)
    if kind <= 1:
        np.savez_compressed(buffer, **{key: array}, **others)
        return buffer.getvalue() if kind else _mutate(rng, buffer.getvalue())
    if kind == 2:
        np.savez(buffer, **{key: array}, **others)
        return _mutate(rng, buffer.getvalue())
    if kind == 3:
        other = rng.choice(
            [
                np.zeros(3, np.uint8),
                np.zeros((), np.uint8),
                np.zeros((0, *array.shape[1:]), np.uint8),
                np.zeros((2, 5, 5, 1), np.uint8),
                array.astype(float),
                array.astype(bool),
                np.full(array.shape, np.nan),
                array.astype("S3"),
                array.astype("M8[s]"),
                np.zeros(array.shape, [("a", int)]),
                array[..., None],
                array.astype(object),
            ]
        )
        np.savez(buffer, **{key: other}, **others)
        return buffer.getvalue()
    if kind == 4:
        np.savez(buffer, **{rng.choice(["other", "arr_0", key]): array})
        return buffer.getvalue()
    if kind == 5:
        objects = np.empty(2, object)
        objects[:] = _Harmful()
        if rng.random() < 0.5:
            np.savez(buffer, **{key: objects}, **others)
            return buffer.getvalue()
        return pickle.dumps(_Harmful())
    if kind == 6:
        np.save(buffer, array)
        return buffer.getvalue()
    header = {"descr": "|u1", "fortran_order": False, "shape": array.shape}
    if kind == 7:
        # A bomb: gigabytes of zeros that take megabytes, or are not there at all.
        count = rng.choice([2**31, 2**40, 10**15, -1, 2**63, 10**30])
        header["shape"] = (count, *array.shape[1:])
        payload = bytes(rng.choice([0, 1000, 10**7]))
    else:
        header = rng.choice(
            [
                header | {"descr": "|O"},
                header | {"shape": (1.5,)},
                header | {"shape": "x"},
                {},
                "(" * 9000,
                "-" * 9000 + "1",
                "[" * 90,
                "{'descr': '|u1'",
                "",
                header | {"descr": [("a", "|u1")] * 100},
            ]
        )
        payload = array.tobytes()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{key}.npy", _npy(header, payload))
    return buffer.getvalue()


@_entry(9, "ncsn_jax.samples")
def make_sample_store(case):
    """`settings.json`, `samples.npz` and the parts of a directory of samples."""
    from ncsn_jax.samples import SampleStore

    rng = case.rng
    shape = (4, 4, 1)
    settings = {"seed": 0, "sampling.epsilon": 1e-4, "sampling.clip": []}
    directory = os.path.join(case.work, "samples", "step_3")
    samples = np.arange(6 * 16, dtype=np.uint8).reshape(6, *shape)
    if rng.random() < 0.05:
        os.makedirs(os.path.dirname(directory))
        _special(rng, directory)
    else:
        os.makedirs(directory)
        if rng.random() < 0.3:
            _place_json(rng, os.path.join(directory, "settings.json"), settings)
        if rng.random() < 0.5:
            path = os.path.join(directory, "samples.npz")
            if rng.random() < 0.1:
                _special(rng, path)
            else:
                _write(path, _npz(rng, "samples", samples))
        if rng.random() < 0.6:
            parts = os.path.join(directory, "parts")
            if rng.random() < 0.05:
                _special(rng, parts)
            else:
                os.mkdir(parts)
                for i in range(rng.choice([1, 2, 5])):
                    path = os.path.join(parts, rng.choice([f"{i}.npz", f"x{i}", f"\udcff{i}.npz"]))
                    indices = rng.choice(
                        [
                            np.arange(6),
                            np.arange(6) + 10**9,
                            -np.arange(6),
                            np.arange(6) + 0.5,
                            np.zeros(6, int),
                            np.full(6, np.nan),
                            np.arange(5),
                            np.array(3),
                            np.array(["a"] * 6),
                            np.zeros((6, 2), int),
                            np.array([None] * 6),
                        ]
                    )
                    if rng.random() < 0.1:
                        _special(rng, path)
                    else:
                        _write(path, _npz(rng, "samples", samples, indices=indices))

    def call():
        store = SampleStore(directory, settings, shape)
        missing = store.missing(8)
        for indices in (missing[:3], missing[3:]):
            if indices:
                store.add(indices, np.full((len(indices), *shape), 7, np.uint8))
        found = store.finish()
        if found.shape[1:] != shape or found.dtype != np.uint8 or len(found) < 8:
            raise Failure(f"finished with {found.dtype} {found.shape}")
        if len(SampleStore(directory, settings, shape).finish()) != len(found):
            raise Failure("what was written is not what is read")

    return call, case.work


@_entry(0.3, "benchmarks.digits_quality", limit=60)
def make_digits_quality(case):
    """The file of samples that the benchmark judges."""
    from benchmarks import digits_quality

    rng = case.rng
    path = case.path(rng.choice(["samples.npz", "\udcff.npz", "a\nb.npz"]))
    if rng.random() < 0.3:
        _special(rng, path)
    else:
        samples = np.arange(30 * 64, dtype=np.uint8).reshape(30, 8, 8, 1)
        _write(path, _npz(rng, "samples", samples))
    return _exits(lambda: digits_quality.main(path)), path


def _exits(run: Callable[[], None]) -> Callable[[], None]:
    """Turns the SystemExit of a script into a UserError."""

    def call():
        from ncsn_jax.errors import UserError

        try:
            run()
        except SystemExit as error:
            if error.code not in (None, 0):
                raise UserError(str(error.code).removeprefix("error: ")) from None

    return call


# Images.


def _picture(rng, side: int = 8) -> bytes:
    """Returns a picture that can be read."""
    from PIL import Image

    size = rng.choice([(side, side)] * 3 + [(1, 1), (3, 50), (40, 40), (9, 8), (2000, 1)])
    mode = rng.choice(["L", "RGB", "RGBA", "P", "1", "LA", "I;16", "I", "CMYK", "F", "YCbCr"])
    source = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8)
    image = Image.fromarray(source.reshape(size[1], size[0], 3))
    buffer = io.BytesIO()
    if mode in ("CMYK", "YCbCr") or (mode in ("L", "RGB") and rng.random() < 0.6):
        options = {"progressive": rng.random() < 0.5, "quality": rng.choice([1, 50, 100])}
        if rng.random() < 0.5:
            exif = Image.Exif()
            exif[0x0112] = rng.choice([0, 1, 3, 6, 8, 9])
            options["exif"] = exif.tobytes() if rng.random() < 0.7 else rng.randbytes(50)
        image.convert(mode).save(buffer, "JPEG", **options)
    elif mode in ("I;16", "I", "F"):
        deep = (source[: size[0] * size[1]].astype(np.uint16) * 257).reshape(size[1], size[0])
        Image.fromarray(deep).save(buffer, "PNG")
    else:
        options = {"transparency": rng.choice([0, b"\x00\x80"])} if mode == "P" else {}
        image.convert(mode).save(buffer, "PNG", **options)
    return buffer.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _bomb(rng) -> bytes:
    """Returns a small file that says it is a huge picture, or unpacks to much."""
    width, height = rng.choice(
        [
            (2**31 - 1, 2**31 - 1),
            (2**31 - 1, 1),
            (1, 2**31 - 1),
            (50_000, 50_000),
            (12_000, 12_000),
            (9_000, 9_000),
            (0, 0),
            (0, 5),
            (2**32 - 1, 1),
        ]
    )
    if rng.random() < 0.3:
        data = bytearray(_picture(rng))
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        if at > 0:
            data[at + 5 : at + 9] = struct.pack(">HH", min(height, 65535), min(width, 65535))
            return bytes(data)
    depth, kind = rng.choice([(8, 0), (8, 2), (16, 6), (1, 0), (8, 3), (3, 9)])
    header = _chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, rng.choice([0, 1]))
    )
    zeros = zlib.compress(bytes(rng.choice([10, 10**6, 3 * 10**7])))
    extra = rng.choice(
        [
            b"",
            _chunk(b"zTXt", b"k\0\0" + zeros),
            _chunk(b"iCCP", b"k\0\0" + zeros),
            _chunk(b"iTXt", b"k\0\1\0\0\0" + zeros),
            _chunk(b"eXIf", rng.randbytes(100)),
            _chunk(b"tEXt", b"k\0" + b"x" * 10**6) * 3,
            _chunk(b"PLTE", bytes(7)),
            _chunk(b"acTL", struct.pack(">II", 10**9, 0)),
        ]
    )
    return b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", zeros) + _chunk(b"IEND", b"")


def _place_picture(rng, path: str) -> None:
    """Puts a picture at a path, or something that is none."""
    kind = rng.randrange(10)
    if kind < 3:
        _write(path, _picture(rng))
    elif kind < 7:
        _write(path, _mutate(rng, _picture(rng)))
    elif kind == 7:
        _write(path, _bomb(rng))
    else:
        _special(rng, path)


def _fill_folder(rng, folder: str) -> None:
    """Makes a directory tree with pictures and everything else there may be."""
    os.makedirs(folder)
    folders = [folder]
    for _ in range(rng.choice([0, 1, 3])):
        name = rng.choice(["below", "x.png", "new\nline", "\udcff", ".hidden", "--", "é"])
        below = os.path.join(rng.choice(folders), name)
        if not os.path.lexists(below):
            os.mkdir(below)
            folders.append(below)
    for _ in range(rng.choice([0, 1, 2, 5, 10])):
        path = os.path.join(rng.choice(folders), rng.choice(NAMES))
        if not os.path.lexists(path):
            _place_picture(rng, path)
    kind = rng.randrange(12)
    if kind < 3:
        # Links upwards; more than one is a tree of endless breadth.
        for i in range(rng.choice([1, 2, 8])):
            target = rng.choice([".", "..", folder, "../.."])
            path = os.path.join(rng.choice(folders), f"loop{i}")
            os.symlink(target, path)
    elif kind == 3:
        # Doubly linked down: every directory twice in the one before.
        for i in range(25):
            os.mkdir(os.path.join(folder, f"d{i}"))
            for j in range(2):
                os.symlink(f"../d{i + 1}", os.path.join(folder, f"d{i}", f"l{j}"))
    elif kind == 4 and rng.random() < 0.3:
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(folder)
            for _ in range(rng.choice([300, 1200, 3000])):
                os.mkdir("d")
                os.chdir("d")
        finally:
            os.chdir(here)
            os.close(here)


def _folder_case(case):
    rng = case.rng
    folder = case.path(
        rng.choice(["pictures", "\udcff", "new\nline", "é", "-r", "a b", "data.data_dir"])
    )
    if rng.random() < 0.05:
        _special(rng, folder)
    else:
        _fill_folder(rng, folder)
    size, channels = rng.choice([8, 16]), rng.choice([1, 3])
    crop = rng.choice([0, -1, -1, -1, 4, 10**9])
    name = rng.choice([folder] * 15 + STRINGS[:14])
    return name, size, channels, crop


@_entry(8, "ncsn_jax.data")
def make_image_folder(case):
    """A directory of training images."""
    from ncsn_jax import data

    folder, size, channels, crop = _folder_case(case)
    split = case.rng.choice(["train"] * 9 + ["test", "", "\n"])

    def call():
        for _ in range(2):  # the second time from the cache
            x = data.load("image_folder", folder, size, channels, split=split, crop_size=crop)
            if x.shape[1:] != (size, size, channels) or x.dtype != np.uint8 or not len(x):
                raise Failure(f"returned {x.dtype} {x.shape}")

    named = folder if split == "train" and folder.startswith(case.room) else None
    return call, named


@_entry(3, "ncsn_jax.inpainting")
def make_inpainting_images(case):
    """A directory of images to complete."""
    from ncsn_jax import inpainting

    folder, size, channels, crop = _folder_case(case)

    def call():
        x, text = inpainting.read_images(folder, size, channels, crop)
        if x.shape[1:] != (size, size, channels) or x.dtype != np.uint8 or not len(x):
            raise Failure(f"returned {x.dtype} {x.shape}")
        if text:
            judge_message(text, None)

    return call, folder if folder.startswith(case.room) else None


@_entry(8, "ncsn_jax.inpainting")
def make_mask(case):
    """A mask file."""
    from ncsn_jax import inpainting

    rng = case.rng
    path = case.path(rng.choice(NAMES))
    _place_picture(rng, path)
    name = rng.choice([path] * 15 + [case.room, "left", "box", *STRINGS])
    shape = rng.choice([(8, 8, 3), (8, 8, 1), (1, 1, 1), (50, 3, 1)])
    count, seed = rng.choice([1, 2]), rng.choice([0, 5, 2**32 - 1])

    def call():
        masks = inpainting.make_masks(name, shape, count, seed)
        if masks.shape != (count, *shape) or masks.dtype != bool:
            raise Failure(f"returned {masks.dtype} {masks.shape}")

    return call, name if name == path else None


@_entry(1, "ncsn_jax.data")
def make_dataset(case):
    """Names of datasets, and directories of prepared ones."""
    from ncsn_jax import data

    rng = case.rng
    directory = case.path("prepared")
    os.mkdir(directory)
    if rng.random() < 0.3:
        name = rng.choice(["digits", "mnist", "celeb_a"])
        version = os.path.join(directory, name, "1.0.0")
        os.makedirs(version)
        for file in (
            "dataset_info.json",
            "features.json",
            f"{name}-train.array_record-00000-of-00001",
        ):
            path = os.path.join(version, file)
            if rng.random() < 0.8:
                _place_json(rng, path, {"name": name, "version": "1.0.0", "splits": []})
    else:
        name = rng.choice([*STRINGS, "digits/", "a/b", "a:b:c", "no_such", "Digits", "/etc", "."])
    return lambda: data.load(name, directory, 8, 1), None


@_entry(2, "ncsn_jax.data.cache")
def make_cache(case):
    """Files of the cache of images."""
    from ncsn_jax.data import cache

    rng = case.rng
    array = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)
    key = [case.number, rng.random()]
    text = rng.choice(STRINGS)
    cache.images("fuzz", key, lambda: (array, "note"))
    for name in sorted(os.listdir(cache.directory())):
        path = os.path.join(cache.directory(), name)
        if name.startswith("fuzz-") and rng.random() < 0.7:
            content = pathlib.Path(path).read_bytes()
            _write(
                path, rng.choice([b"", _mutate(rng, content), _npy({}, b""), _npy("(" * 9000, b"")])
            )

    def call():
        try:
            found, _ = cache.images("fuzz", key, lambda: (array, "note"))
            again, _ = cache.images("fuzz", [key], lambda: (array, text))
            if not isinstance(found, np.ndarray) or not np.array_equal(again, array):
                raise Failure("returned something else")
        finally:
            for name in os.listdir(cache.directory()):
                if name.startswith("fuzz-"):
                    os.remove(os.path.join(cache.directory(), name))

    return call, None


# PyTorch's files.


def _torch_content(rng):
    """Returns what a small file of the authors holds, changed in some places."""
    import torch

    arrays = {"module.a.weight": torch.ones(3, 2), "module.a.bias": torch.zeros(3)}
    states = {i: {"step": 3, "exp_avg": v, "exp_avg_sq": v} for i, v in enumerate(arrays.values())}
    group = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "amsgrad": False,
        "params": [0, 1],
    }
    content = [arrays, {"state": states, "param_groups": [group]}, 2, 5000, dict(arrays)]

    def value():
        return rng.choice(
            [
                rng.choice(NUMBERS),
                rng.choice(STRINGS),
                None,
                True,
                [],
                {},
                (),
                {"a": 1},
                [arrays] * 3,
                torch.ones(3, 2),
                torch.ones(2, 2, dtype=torch.bfloat16),
                torch.ones(3).to_sparse(),
                torch.ones(3, dtype=torch.complex64),
                torch.full((3,), float("nan")),
                torch.zeros(0),
                torch.zeros(()),
                torch.ones(2, 3).T,
                torch.ones(1).expand(1000, 1000),
                torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
                torch.empty(3, device="meta"),
                torch.nn.Parameter(torch.ones(3)),
                {("a", 1): torch.ones(1)},
                {5: torch.ones(1), "5": torch.ones(1)},
            ]
        )

    for _ in range(rng.choice([0, 1, 1, 2])):
        where = rng.randrange(7)
        if where == 0:
            content[rng.randrange(5)] = value()
        elif where == 1:
            arrays[rng.choice([*arrays, "x", "a.bias", 5, None, "new\nline", "\ud800"])] = value()
        elif where == 2:
            group[rng.choice(sorted(group))] = value()
        elif where == 3:
            states[rng.choice([0, 1])] = value()
        elif where == 4 and isinstance(states[0], dict):
            states[0][rng.choice(["step", "exp_avg", "exp_avg_sq"])] = value()
        elif where == 5:
            content[1] = {"state": value(), "param_groups": rng.choice([[], [group] * 2, value()])}
        else:
            arrays.pop("module.a.bias", None)
    kind = rng.randrange(10)
    if kind == 0:
        return content[: rng.randrange(6)]
    if kind == 1:
        return {"model_state": content[0], "optimizer_state": content[1], "epoch": 3}
    if kind == 2:
        return value()
    if kind == 3:
        return [_Harmful()] if rng.random() < 0.5 else {"model_state": _Harmful()}
    if kind == 4:
        nested = []
        for _ in range(rng.choice([10, 300])):
            nested = [nested]
        return nested
    if kind == 5:
        itself = []
        itself.append(itself)
        return rng.choice([itself, [itself, itself]])
    return content


@_entry(6, "torch", "ncsn_jax.convert.files")
def make_torch_file(case):
    """Checkpoint files of PyTorch, in both formats."""
    import warnings

    import torch

    from ncsn_jax.convert import files

    rng = case.rng
    path = case.path(rng.choice(["c.pth", "\udcff.pth", "new\nline.pth", "c"]))
    if rng.random() < 0.1:
        _special(rng, path)
    elif rng.random() < 0.05:
        _write(path, pickle.dumps(_Harmful()))
    else:
        buffer = io.BytesIO()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.save(
                    _torch_content(rng),
                    buffer,
                    _use_new_zipfile_serialization=rng.random() < 0.5,
                )
        except (
            RuntimeError,
            ValueError,
            RecursionError,
            pickle.PicklingError,
            NotImplementedError,
        ):
            buffer.write(b"what cannot be saved")
        content = buffer.getvalue()
        if rng.random() < 0.1:
            content = (
                DATA / rng.choice(["ncsn_checkpoint_v1_legacy.pth", "ncsnv2_checkpoint.pth"])
            ).read_bytes()
        _write(path, _mutate(rng, content) if rng.random() < 0.5 else content)

    def call():
        found = files.read(path)
        if found.optimizer is not None:
            files.read_adam(path, found)

    return call, path


@_entry(0.9, "ncsn_jax.convert", kind="library")
def make_state_dict(case):
    """State dicts of another network, or of none."""
    from flax import traverse_util

    from ncsn_jax import convert, models

    rng = case.rng
    model = rng.choice([models.NCSN(2, 3), models.SimplifiedNCSN(2, np.ones(3, np.float32))])
    if rng.random() < 0.1:
        model = rng.choice([None, 5, "ncsn", models.NCSN, models])
    names = ["begin_conv.weight", "begin_conv.bias", "end_conv.bias", "normalizer.embed.weight"]
    state = {name: np.zeros((2, 3, 3, 3), np.float32) for name in names}
    if rng.random() < 0.6:
        good = models.NCSN(2, 3)
        shapes = convert.parameter_shapes(good, 3)
        zeros = {path: np.zeros(shape.shape, np.float32) for path, shape in shapes.items()}
        state = convert.to_torch(traverse_util.unflatten_dict(zeros), good)
        model = rng.choice([good, model])
    for _ in range(rng.choice([0, 1, 1, 3])):
        name = rng.choice(
            [*state, "x", "module.x", "module.begin_conv.weight", 5, None, "a\nb", "sigmas"]
        )
        value = rng.choice(
            [
                np.zeros(3, np.float32),
                np.zeros((), np.float32),
                np.zeros((0, 3, 3, 3), np.float32),
                np.zeros((2, 0, 3, 3), np.float32),
                np.zeros((2, 10**6, 1, 1), np.float32),
                np.full((2, 3, 3, 3), np.nan),
                np.full((2, 3, 3, 3), 0.1),
                np.zeros((2, 3, 3, 3), object),
                np.zeros((2, 3, 3, 3), "S2"),
                np.array(["x", "y"]),
                _value(rng),
                state,
            ]
        )
        if rng.random() < 0.2 and name in state:
            del state[name]
        else:
            state[name] = value
    if rng.random() < 0.1:
        state = _value(rng)
    channels = rng.choice([None, None, None, 1, 3, 0, -1, 2.5, "x", 10**9])
    return lambda: convert.to_torch(convert.from_torch(state, model, channels), model), None


# The log of a run.


@_entry(3, "ncsn_jax.images", "matplotlib.figure")
def make_losses_plot(case):
    """`python -m ncsn_jax.images losses`."""
    from ncsn_jax import images

    rng = case.rng
    os.mkdir(case.work)
    path = os.path.join(case.work, "metrics.jsonl")
    lines = []
    for step in range(rng.choice([0, 1, 3, 20])):
        record = {"step": step, "loss": 1.0 / (1 + step), "loss_by_level/0000_sigma_1": 0.5}
        if rng.random() < 0.1:
            key = rng.choice(
                [*record, "loss_by_level/", "loss_by_level/$x^$", "loss_by_level/_\n", "x"]
            )
            record[key] = rng.choice(
                [
                    *NUMBERS[:16],
                    *NUMBERS[18:],
                    None,
                    True,
                    "NaN",
                    "1",
                    "",
                    [],
                    {},
                    "$\\frac$",
                ]
            )
            if rng.random() < 0.3:
                record.pop(rng.choice(sorted(record)))
        line = json.dumps(record).encode()
        if rng.random() < 0.03:
            line = rng.choice(
                [b"", b"[]", b"5", b"null", b"[" * 10**5, b"{", b"\xff", _mutate(rng, line)]
            )
        lines.append(line)
    content = b"\n".join(lines) + rng.choice([b"\n", b"", b"\n", b"\n\n", b"\r\n", b"\x00\n"])
    if rng.random() < 0.15:
        _special(rng, path)
    else:
        _write(path, _mutate(rng, content) if rng.random() < 0.1 else content)
    arguments = ["losses", case.work]
    if rng.random() < 0.1:
        arguments = rng.choice([[], ["losses"], ["x", "y"], ["losses", _texts(rng)], [""] * 3])
    return _exits(lambda: images.main(arguments)), path if arguments == [
        "losses",
        case.work,
    ] else None


# Checkpoints.


@_entry(0.4, "ncsn_jax.checkpoints")
def make_checkpoints(case):
    """Directories of checkpoints with other things in them."""
    from ncsn_jax import checkpoints

    rng = case.rng
    checkpoints.quiet_orbax()
    state = {"a": np.arange(6, dtype=np.float32), "b": np.zeros((), np.int32)}
    folder = os.path.join(case.work, "checkpoints")
    if rng.random() < 0.7:
        with checkpoints.Checkpoints(case.work) as store:
            store.save(3, state)
            if rng.random() < 0.5:
                store.save(5, state)
    else:
        os.makedirs(folder)
    for _ in range(rng.choice([0, 1, 2])):
        name = rng.choice(
            ["7", "07", "-1", "x", "1e3", "9" * 30, "step_5", "4.orbax-checkpoint-tmp", "\udcff"]
        )
        path = os.path.join(folder, name)
        if not os.path.lexists(path):
            if rng.random() < 0.5:
                os.mkdir(path)
            else:
                _special(rng, path)
    files = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file() and not p.is_symlink())
    for path in rng.sample(files, min(len(files), rng.choice([0, 0, 1, 3]))):
        content = path.read_bytes()
        kind = rng.randrange(3)
        path.unlink()
        if kind == 0:
            path.write_bytes(_mutate(rng, content))
        elif kind == 1:
            # Not a pipe or a device, which orbax reads as if they were files.
            rng.choice([os.mkdir, lambda p: os.symlink("nowhere", p)])(path)

    def call():
        with checkpoints.Checkpoints(case.work, read_only=rng.random() < 0.5) as store:
            store.restore_latest(state)

    return call, None


# The library.


def _array(rng):
    """Returns something in place of an array."""
    shape = rng.choice(
        [(), (0,), (1,), (2,), (3,), (2, 2), (0, 2), (2, 0), (2, 2, 1), (1, 1, 1, 1)]
    )
    # Not float64, of which jax itself warns.
    kind = rng.choice(["f4", "f4", "f4", "f2", "i4", "u1", "?"])
    array = np.ones(shape, kind)
    if kind[0] == "f" and rng.random() < 0.3:
        array = array * _extreme(rng)
    return rng.choice([array] * 6 + [None, 1.0, (), [1.0], float("nan")])


def _extreme(rng):
    """Returns a number for an array of floats."""
    return np.float32(rng.choice([0, -1, np.nan, np.inf, -np.inf, 1e-38, 1e38]))


@_entry(9, "ncsn_jax.scheduler", "ncsn_jax.losses", "ncsn_jax.scores", kind="library")
def make_library(case):
    """Functions of the library with arguments that are none."""
    import jax
    import jax.numpy as jnp

    from ncsn_jax import losses, sampling, scheduler, scores, sigmas

    rng = case.rng
    good = {
        "key": jax.random.key(0),
        "x": jnp.ones((2, 2)),
        "ladder": jnp.array([1.0, 0.5, 0.1]),
        "sigma": jnp.ones(2),
        "scheduler": scheduler.AnnealedLangevinDynamicsScheduler(3, 2, 0.1, 1.0, 1e-3),
    }

    def score(x, sigma):
        return -x

    # Every argument as it should be; some are then replaced.
    number, count = 0.1, 2
    calls = {
        sigmas.geometric: ([1.0, 0.1, 3], {}),
        sigmas.suggest: (
            [np.random.default_rng(0).random((4, 6))],
            {"sigma_end": 0.01, "steps_per_level": 5, "overlap": 0.5},
        ),
        sigmas.largest_distance: ([np.eye(3)], {}),
        sigmas.level_ratio: ([64, 0.5], {}),
        sigmas.step_size: ([0.1, 1.5, 5], {}),
        sampling.langevin: (
            [good["key"], lambda x: -x, good["x"]],
            {"step_size": number, "num_steps": count, "return_info": True, "num_frames": 1},
        ),
        sampling.annealed_langevin: (
            [good["key"], score, good["x"], good["ladder"]],
            {
                "epsilon": number,
                "steps_per_level": count,
                "denoise": True,
                "clip": (0.0, 1.0),
                "return_info": False,
                "num_frames": None,
                "steps": (0, 3),
            },
        ),
        sampling.inpaint: (
            [good["key"], score, good["x"], good["ladder"], good["x"], jnp.zeros((2, 2))],
            {"epsilon": number, "steps_per_level": count, "scheme": "paper", "clip": None},
        ),
        sampling.initial_samples: (
            [good["key"], (2, 2), "data"],
            {"scale": 1.0, "data": good["x"]},
        ),
        losses.sample_levels: ([good["key"], good["ladder"], 2], {}),
        losses.denoising_score_matching: ([good["key"], score, good["x"], good["sigma"]], {}),
        losses.sliced_score_matching: ([good["key"], score, good["x"], good["sigma"], 1], {}),
        losses.score_matching: ([score, good["x"], good["sigma"]], {}),
        scores.gaussian_mixture: ([np.ones((2, 2)), np.ones(2), np.ones(2)], {}),
        scheduler.AnnealedLangevinDynamicsScheduler: ([3, 2, 0.1, 1.0, 1e-3], {}),
        good["scheduler"].set_timesteps: ([3], {"sampling_eps": None}),
        good["scheduler"].set_sigmas: (
            [3],
            {"sigma_min": 0.1, "sigma_max": 1.0, "sampling_eps": 1e-3},
        ),
        good["scheduler"].step: ([good["key"], good["x"], 1, good["x"]], {}),
        good["scheduler"].add_noise: ([good["x"], good["x"], jnp.array([0, 1])], {}),
    }
    function = rng.choice(list(calls))
    arguments, options = calls[function]
    for _ in range(rng.choice([1, 1, 1, 2])):
        at = rng.choice([*range(len(arguments)), *options])
        holder = options if isinstance(at, str) else arguments
        if callable(holder[at]):
            holder[at] = rng.choice(
                [lambda *a: a[0][:1], lambda *a: jnp.zeros(()), lambda *a: a[0] * jnp.nan, score]
            )
        elif isinstance(holder[at], np.ndarray | jax.Array) or rng.random() < 0.3:
            holder[at] = _array(rng)
        else:
            holder[at] = _value(rng)
        if holder is arguments and at == 0 and rng.random() < 0.3:
            holder[at] = jax.random.split(jax.random.key(0), rng.choice([1, 2, 3]))

    def call():
        result = function(*arguments, **options)
        jax.block_until_ready(result)

    return call, None
