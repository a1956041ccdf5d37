"""Makes command lines, configuration files, and values in a configuration.

The programs run in processes forked from one that has not imported jax, with stubs for their slow parts.
"""

import contextlib
import os
import pathlib
import sys
from unittest import mock

import numpy as np

from tests.hostile import NUMBERS, ROOT, STRINGS, Failure, any_value, entry, listed, mutate

FIELDS = listed(
    "seed|data|data.dataset|data.data_dir|data.image_size|data.channels|data.random_flip|model|model.name|"
    "model.features|model.sigma_begin|training.loss|training.batch_size|training.num_steps|"
    "optim.learning_rate|sampling.clip|sampling.epsilon|sampling.name|inpainting.mask|"
    "inpainting.keep_observed|modle.features|data.x|data.image_size.x||.|..|data.|.data|__class__|"
    "data.__init__|_fields|keys|data.keys|data[0]|sampling.clip[0]|sampling.clip[9]|é|\udcff|a b|a\nb"
)
LITERALS = listed(
    "digits|32|True|false|1e-3|(0, 1)|()|left|ncsn|__import__('os').system('touch harmed')|1_000|0x10|1e5|"
    "١٢|+5| 5 |5;6|{'a': 1}|{}|(1|'(|(0, 'x')|None|nan|inf|-inf|1e999|0,1|localhost:1"
)
FLAGS = listed(
    "--|-|--=|---|-h|--help|--helpfull|--helpxml|-?|--undefok=x|--verbosity=x|--v=99999999999999999999|"
    "--stderrthreshold=x|--alsologtostderr=x|--config_filename=x|-mode|--mode|--mod=train|--MODE=train|"
    "--mode train|—mode=train|--noconfig|--nomode|--noconfig.data.random_flip|--noconfig.seed|--no"
)
_nothing = lambda *_: None
ALONE = (None, None, None)
HOSTS = {"find": lambda *_: ALONE, "start": _nothing, "meet": _nothing, "end": sys.exit}
MODES = "train|sample|inpaint|colorize|interpolate|likelihood|classifier|classconditional|nearest"
MODES += "|restore|suggest|plan"
RUN_LIB = dict.fromkeys(listed(MODES), _nothing)
WORKDIRS = dict.fromkeys(["import_checkpoint", "export"], _nothing)
CONVERT = {"ncsn_jax.convert": {}, "ncsn_jax.app.torch_runs": WORKDIRS}
STUBS = {
    "main.py": {"run_lib": RUN_LIB, "ncsn_jax.app.distributed": HOSTS},
    "ncsn_jax/convert/__main__.py": {**CONVERT, "ncsn_jax.app.distributed": HOSTS},
}


def any_text(rng) -> str:
    """Returns any text as it may stand on a command line."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice([str(rng.choice(NUMBERS))] * 9 + ["1" + "0" * 5000])
    if kind == 1:
        return rng.choice(STRINGS).replace("\x00", "")
    if kind == 2:
        return "".join(chr(rng.choice([*range(1, 128), 233, 0x56F3, 0xDCFF])) for _ in range(9))
    if kind == 3:
        start = rng.choice(["(", "[", "{", "-", "~", "not ", "1+", "((", "[[", "(1,"])
        return start * rng.choice([1, 5, 100, 1000, 30_000])
    return rng.choice(LITERALS)


def _argument(rng, case) -> str:
    text, field = any_text(rng), f"--config.{rng.choice(FIELDS)}"
    path = case.path("flags")
    with contextlib.suppress(FileExistsError), open(path, "xb") as file:
        file.write(rng.choice([b"--mode=train", b"\xff\xfe", b"--flagfile=" + path.encode()]))
    flagfile = rng.choice([path, case.room, "nothing", "", text])
    flag = rng.choice(
        listed("mode|workdir|config|export|v|coordinator|num_processes|process_id|patience")
    )
    some = [f"--{flag}={text}", text, f"--{text}", field, f"--flagfile={flagfile}"]
    return rng.choice([f"{field}={text}"] * 6 + some + rng.sample(FLAGS, 3))


@entry(22)
def make_flags(case):
    """`main.py`, and `python -m ncsn_jax.convert`."""
    rng = case.rng
    argv = [_argument(rng, case) for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 8]))]
    program = rng.choice(["main.py"] * 5 + ["ncsn_jax/convert/__main__.py"])
    usual = [f"--config={ROOT}/configs/digits.py", f"--workdir={case.work}"]
    if program != "main.py":
        usual += rng.sample(["--export=x.npz", "a.pth", "b.pth", ""], rng.randrange(4))
    for argument in usual:
        if rng.random() < 0.85:
            argv.insert(rng.randrange(len(argv) + 1), argument)
    if argv and rng.random() < 0.1:
        argv.append(rng.choice(argv))
    return case.program(program, argv, STUBS[program]), None


@entry(2, "ncsn_jax.app.distributed")
def make_processes(case):
    """Flags and environment variables of a run's processes."""
    from ncsn_jax.app import distributed

    rng = case.rng
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS")
    texts = ["localhost:1", "2", "1", *STRINGS, any_text(rng)]
    given = {
        name: rng.choice(texts).replace("\0", "").encode(errors="ignore").decode()
        for name in names
        if rng.random() < 0.5
    }
    numbers = [None, None, 0, 1, 2, -1, 10**9]
    arguments = (rng.choice([None, *texts]), rng.choice(numbers), rng.choice(numbers))

    def call():
        with mock.patch.dict(os.environ, given):
            found = distributed.find(*arguments)
        if found is not None and len(found) != 3:
            raise Failure(f"found {found}")

    return call, None


START = "from configs import default\ndef get_config(*_):\n  c = default.get_config()\n  "
FUNCTION = "def get_config(): "
SNIPPETS = listed(
    "|import no_such_module|raise|raise KeyError|raise AttributeError()|raise KeyError(3)|1/0|syntax error|"
    "raise Exception('two\\nlines')|raise ValueError('')|raise ValueError('line\\n\\n')|raise MemoryError|"
    "raise OSError(2, 'x')|def f(): f()\nf()|get_config = 5|def get_config(a, b): return a|"
    "class get_config: pass|import dataclasses\n@dataclasses.dataclass\nclass get_config:\n  a: int = 5|"
    f"{FUNCTION}pass|{FUNCTION}return {{}}|{FUNCTION}return 5|{FUNCTION}raise KeyError|"
    f"{FUNCTION}raise AttributeError|{FUNCTION}raise RuntimeError('a\\nb')|"
    f"import ml_collections\n{FUNCTION}return ml_collections.FrozenConfigDict()|"
    f"import ml_collections\n{FUNCTION}return ml_collections.ConfigDict()|"
    f"{START}del c.data\n  return c|{START}c.data = None\n  return c|{START}return c.to_json()|"
    f"{START}c.lock()\n  c.nothing = 5\n  return c|{START}c.data.image_size = 'x'\n  return c|"
    f"{START}c.x = c\n  return c|\0|{'#' * 10**6}|{'(' * 1000}|{'-' * 30_000}1|\xff\xfe"
)


@entry(8)
def make_config_file(case):
    """Configuration files, which are the user's programs."""
    rng = case.rng
    path = case.path(rng.choice(["c.py", "c", "é.py", "a b.py", "a:b.py", "\udcff.py", "json.py"]))
    digits = (ROOT / "configs" / "digits.py").read_bytes()
    contents = [mutate(rng, digits), rng.randbytes(1000)] + [rng.choice(SNIPPETS).encode()] * 6
    if rng.random() < 0.1:
        rng.choice([os.mkdir, lambda p: os.symlink("no", p)])(path)
    else:
        pathlib.Path(path).write_bytes(rng.choice(contents))
    argument = rng.choice([path] * 6 + [path + ":string", path + "/", case.path("no.py"), ""])
    argv = [f"--config={argument}", f"--workdir={case.work}"]
    if rng.random() < 0.3:
        argv.append(f"--config.{rng.choice(FIELDS)}={any_text(rng)}")
    return case.program("main.py", argv, STUBS["main.py"]), None


CHOICES = [*STRINGS, "ncsnv2", "ncsn_simplified", "ssm", "sm", "instance", "normal"]


@entry(20, "ncsn_jax.app.schema")
def make_config(case):
    """Any value in any field, and the use of that configuration."""
    from ml_collections import ConfigDict

    from configs import default, digits, ncsnv2_cifar10
    from ncsn_jax.app import build, samplers, schema, workdirs

    rng = case.rng
    config = rng.choice([default, digits, digits, ncsnv2_cifar10]).get_config()
    names = sorted(schema.flatten(config)) * 4
    names += [*config, "extra", "data.x.y", "model.", "data.a b"]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        parent, _, name = rng.choice(names).rpartition(".")
        section = config.get(parent.split(".")[0]) if parent else config
        if not isinstance(section, ConfigDict):
            continue
        old = section.get(name)
        usual = NUMBERS if type(old) in (int, float) else CHOICES if type(old) is str else ()
        with section.ignore_type(), contextlib.suppress(ValueError, OverflowError):
            if name in section and rng.random() < 0.03:
                del section[name]
            elif usual and rng.random() < 0.7:
                section[name] = rng.choice(usual)
            else:
                section[name] = rng.choice([any_value(rng)] * 19 + [ConfigDict({"a": 1})])

    def call():
        schema.check(config)
        ladder = np.asarray(build.make_sigmas(config))
        if not (np.isfinite(ladder).all() and len(ladder) == config.model.num_levels):
            raise Failure(f"a ladder of {ladder}")
        model = build.make_model(config)
        build.make_optimizer(config)
        build.make_objective(config)
        assert model is not None and len(build.image_shape(config)) == 3
        samplers.make(config)
        workdirs.make(case.work)
        workdirs.write_config(config, case.work)
        if not workdirs.compare(config, case.work):
            raise Failure("its own config.json is not found")

    return call, None
