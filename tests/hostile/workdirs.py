"""Makes work directories: JSON files, samples, log, checkpoints, and the directory itself."""

import copy
import io
import json
import os
import pathlib
import pickle
import struct
import zipfile
import zlib

import numpy as np

from tests.hostile import NUMBERS, STRINGS, Failure, Harmful, alter, entry, mutate, place, special
from tests.hostile.commands import any_text


def json_text(rng, valid: dict) -> bytes:
    """Returns the text of a file that should hold `valid`."""
    text = json.dumps(valid).encode()
    others = ["y" * 10**6, None, True, [], {}, [[]], {"a": {"b": None}}, [*range(10**4)]]
    start, count = rng.choice([b"[", b'{"a":', b"[[],", b'{"a":[']), rng.choice([10, 1000, 10**6])
    depth, zeros = rng.choice([500, 990, 5000]), rng.choice([400, 5000])
    changed = json.loads(text)
    for _ in range(rng.choice([1, 1, 3])):
        value = rng.choice([rng.choice([*NUMBERS, *STRINGS]), *others])
        alter(rng, changed, lambda value=value: copy.deepcopy(value))
    wrong = [
        mutate(rng, text),
        start * count,
        b'{"seed": ' + b"[" * depth + b"]" * depth + b"}",
        rng.choice(b'|null|[]|5|"x"|NaN|true|{}|\xff|[{}]'.split(b"|")),
        text[: rng.randrange(len(text))],
        text.decode().encode(rng.choice(["utf-16", "utf-8-sig", "utf-32"])),
        text.replace(b": 1,", b": 1" + b"0" * zeros + b","),
    ]
    return rng.choice([json.dumps(changed).encode()] * 6 + wrong)


@entry(10, "ncsn_jax.app.schema")
def make_workdir(case):
    """`config.json`, `images.json`, the other files of a work directory, and the directory itself."""
    from configs import digits
    from ncsn_jax.app import data, schema, workdirs

    rng, config = case.rng, digits.get_config()
    images = np.zeros((3, 2, 2, 1), np.uint8)
    contents = {
        "config.json": schema.flatten(config),
        "images.json": {"shape": [3, 2, 2, 1], "crc32_of_a_thousand": zlib.crc32(images)},
    }
    name = rng.choice([*contents] * 5 + ["lock", "checkpoints", ""])
    workdir = case.work
    if name:
        os.mkdir(workdir)
        path, p = os.path.join(workdir, name), 0.15 if name in contents else 1
        place(rng, path, lambda: json_text(rng, contents[name]), p)
    else:
        workdir = os.path.join(workdir, rng.choice(STRINGS).lstrip("/~").replace("..", "x"))
        if rng.random() < 0.5:
            special(rng, case.work)
    read_only = rng.random() < 0.5

    def call():
        workdirs.compare(config, workdir)
        workdirs.make(workdir)
        with workdirs.lock(workdir):
            workdirs.claim_images(data.Images(images), workdir, read_only=read_only)
            workdirs.write_config(config, workdir)
        workdirs.require_run(config, workdir)

    return call, workdir if name in contents else None


def npy(header: dict | str, payload: bytes) -> bytes:
    """Returns a `.npy` file with any header."""
    text = str(header).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) & 0xFFFF) + text + payload


def npz(rng, key: str, array: np.ndarray, **others) -> bytes:
    """Returns a `.npz` file that should hold `array` but mostly does not."""
    buffer = io.BytesIO()
    save = rng.choice([np.savez, np.savez_compressed])
    objects = np.full(2, Harmful())
    kind = rng.randrange(9)
    if kind < 3:
        save(buffer, **{key: array}, **others)
        return mutate(rng, buffer.getvalue()) if kind else buffer.getvalue()
    if kind == 3:
        shapes = [(3,), (), (0, *array.shape[1:]), (2, 5, 5, 1), (*array.shape, 1)]
        types = [float, bool, object, "S3", "M8[s]", [("a", int)]]
        arrays = [np.zeros(shape, np.uint8) for shape in shapes] + [array.astype(t) for t in types]
        save(buffer, **{key: rng.choice([*arrays, np.full(array.shape, np.nan)])}, **others)
    elif kind == 4:
        save(buffer, **{rng.choice(["other", "arr_0", key]): array})
    elif kind == 5:
        save(buffer, **{key: objects}, **others)
    elif kind == 6:
        rng.choice([lambda: np.save(buffer, array), lambda: pickle.dump(objects, buffer)])()
    else:
        # A bomb: gigabytes of zeros that take megabytes or are absent; or a different header.
        header = {"descr": "|u1", "fortran_order": False, "shape": array.shape}
        counts = [2**31, 2**40, 10**15, -1, 2**63, 10**30]
        changes = [{"shape": (count, *array.shape[1:])} for count in counts] if kind == 7 else []
        changes = changes or [{"descr": "|O"}, {"shape": 1.5}, {"descr": [("a", "|u1")] * 100}]
        texts = ["(" * 9000, "-" * 9000 + "1", "[" * 90, "{'descr': '|u1'", "", "{}"]
        header = rng.choice([header | c for c in changes] + (texts if kind == 8 else []))
        payload = array.tobytes() if kind == 8 else bytes(rng.choice([0, 1000, 10**7]))
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{key}.npy", npy(header, payload))
    return buffer.getvalue()


@entry(9, "ncsn_jax.app.sample_store")
def make_sample_store(case):
    """`settings.json`, `samples.npz` and the parts of a directory of samples."""
    from ncsn_jax.app.sample_store import SampleStore

    rng = case.rng
    shape = (4, 4, 1)
    settings = {"seed": 0, "sampling.epsilon": 1e-4, "sampling.clip": []}
    directory = os.path.join(case.work, "samples", "step_3")
    parts = os.path.join(directory, "parts")
    samples = np.arange(6 * 16, dtype=np.uint8).reshape(6, *shape)
    some = np.arange(6)
    # fmt: off
    indices = [
        some, some + 10**9, -some, some + 0.5, np.zeros(6, int), np.full(6, np.nan), np.arange(5),
        np.array(3), np.array(["a"] * 6), np.zeros((6, 2), int), np.array([None] * 6),
    ]
    # fmt: on
    unusual = rng.choice([directory, parts] + [None] * 20)
    os.makedirs(os.path.dirname(unusual) if unusual else parts)
    if unusual:
        special(rng, unusual)
    if unusual != directory and rng.random() < 0.3:
        path = os.path.join(directory, "settings.json")
        place(rng, path, lambda: json_text(rng, settings), 0.15)
    if unusual != directory and rng.random() < 0.5:
        place(rng, os.path.join(directory, "samples.npz"), lambda: npz(rng, "samples", samples))
    for i in range(0 if unusual else rng.choice([0, 0, 1, 2, 5])):
        path = os.path.join(parts, rng.choice([f"{i}.npz", f"x{i}", f"\udcff{i}.npz"]))
        place(rng, path, lambda: npz(rng, "samples", samples, indices=rng.choice(indices)))

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


def _classifier():
    """Returns the parameters of a small classifier by name, and its description."""
    from flax import traverse_util

    from configs import digits_ve
    from ncsn_jax import models
    from ncsn_jax.app import classifier_file

    meta = classifier_file.describe(digits_ve.get_config(), models.NoisyClassifier(3, 4, (1,)))
    flat = traverse_util.flatten_dict(classifier_file.rebuild(meta)[1], sep="/")
    return {name: np.ones(like.shape, np.float32) for name, like in flat.items()}, meta


@entry(2, "ncsn_jax.app.classifier_file")
def make_classifier(case):
    """The file of a classifier."""
    from ncsn_jax.app import classifier_file

    rng = case.rng
    arrays, meta = _classifier()
    expected = meta | rng.choice([{}, {}, {"dataset": "x"}])
    text = json.dumps(meta)
    if rng.random() < 0.4:
        text = json_text(rng, meta).decode("latin-1")
    if rng.random() < 0.2:
        name = rng.choice(sorted(arrays))
        others = [np.zeros(()), arrays[name] * np.float32(np.nan), arrays[name].astype("f2")]
        arrays[name] = rng.choice([*others, arrays[name][None], np.full(2, "x")])
    if rng.random() < 0.2:
        del arrays[rng.choice(sorted(arrays))]
    name = rng.choice(sorted(arrays))
    array = arrays.pop(name)
    path = case.path(rng.choice(["c.npz", "\udcff.npz", "new\nline.npz", "c"]))
    place(rng, path, lambda: npz(rng, name, array, meta=np.asarray(text), **arrays))

    def call():
        params, found = classifier_file.load(path, expected)
        if set(params) != {"params"} or found["num_classes"] != 3:
            raise Failure("returned something else")
        classifier_file.save(case.work, params, found)
        classifier_file.load(case.work, expected)

    return call, path


@entry(3, "ncsn_jax.app.pictures", "matplotlib.figure")
def make_losses_plot(case):
    """`metrics.jsonl`, as `python -m ncsn_jax.app.pictures losses` reads it."""
    from ncsn_jax.app import pictures
    from ncsn_jax.errors import UserError

    rng = case.rng
    keys = ["loss_by_level/0_sigma_1"] * 9
    keys += ["loss_by_level/", "loss_by_level/$x^$", "loss_by_level/_\n"]
    values = [*NUMBERS, None, True, "NaN", "1", "", [], {}, "$\\frac$"]
    others = [b"", b"[]", b"5", b"null", b"[" * 10**5, b"{", b"\xff"]
    lines = []
    for step in range(rng.choice([0, 1, 3, 20])):
        record = {"step": step, "loss": 1.0 / (1 + step), rng.choice(keys): 0.5}
        if rng.random() < 0.1:
            alter(rng, record, lambda: rng.choice(values))
        line = json.dumps(record).encode()
        lines.append(line if rng.random() < 0.97 else rng.choice([*others, mutate(rng, line)]))
    content = b"\n".join(lines) + rng.choice([b"\n", b"", b"\n", b"\n\n", b"\r\n", b"\x00\n"])
    if rng.random() < 0.1:
        content = mutate(rng, content)
    path = os.path.join(case.work, "metrics.jsonl")
    os.mkdir(case.work)
    place(rng, path, lambda: content, 0.15)
    usual = ["losses", case.work]
    unusual = [[], ["losses"], ["x", "y"], ["losses", any_text(rng)], [""] * 3]
    arguments = rng.choice([usual] * 40 + unusual)

    def call():
        try:
            pictures.main(arguments)
        except SystemExit as error:
            if error.code not in (None, 0):
                raise UserError(str(error.code).removeprefix("error: ")) from None

    return call, path if arguments == usual else None


@entry(0.5, "ncsn_jax.app.checkpoints")
def make_checkpoints(case):
    """Checkpoint directories with damaged and foreign files."""
    from ncsn_jax.app import checkpoints

    rng = case.rng
    state = {"a": np.arange(6, dtype=np.float32), "b": np.zeros((), np.int32)}
    folder = pathlib.Path(case.work, "checkpoints")
    with checkpoints.Checkpoints(case.work) as store:
        for step in rng.choice([[], [3], [3], [3, 5]]):
            store.save(step, state)
    names = ["7", "07", "-1", "x", "1e3", "9" * 30, "step_5", "4.orbax-checkpoint-tmp", "\udcff"]
    for name in rng.sample(names, rng.choice([0, 1, 2])):
        rng.choice([os.mkdir, lambda path: special(rng, path)])(str(folder / name))
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    for path in rng.sample(files, min(len(files), rng.choice([0, 0, 1, 3]))):
        content = path.read_bytes()
        path.unlink()
        if rng.random() < 0.8:
            place(rng, str(path), lambda content=content: mutate(rng, content), 0.5)
    read_only = rng.random() < 0.5

    def call():
        with checkpoints.Checkpoints(case.work, read_only=read_only) as store:
            store.load(state)

    return call, None
