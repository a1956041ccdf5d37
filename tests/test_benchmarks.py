"""The benchmark command: its table, its arguments and its processes. Nothing here depends on a clock."""

import inspect
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import __main__ as command
from benchmarks import machine, original, rows, startup, table, workers
from benchmarks import session as session_module
from benchmarks.session import Options, Session

_OPTIONS = Options(reference=None, rounds=2, devices=None, sampler_steps=1000, warm_up_steps=5)

# A module for `python -m` that serves a subject without jax or torch.
_FAKE = """
import os
from benchmarks import workers

class Fake:
    def __init__(self, start):
        if start < 0:
            raise ValueError("start\\nmust be >= 0")
        self.value = start

    def add(self, amount):
        print("what a library prints")
        self.value += amount
        return self.value

    def fail(self):
        raise RuntimeError("no\\nluck")

    def end(self):
        os.write(2, b"the reason\\n\\n")
        os._exit(7)

workers.serve(Fake)
"""


@pytest.fixture
def fake(tmp_path):
    """Returns a function that starts a worker of `_FAKE`."""
    (tmp_path / "fake_subject.py").write_text(_FAKE)
    path = os.pathsep.join([str(tmp_path), str(workers.ROOT)])

    def start(**settings):
        return workers.Worker("fake_subject", settings, {**os.environ, "PYTHONPATH": path})

    return start


def test_a_worker_answers_fails_and_ends(fake):
    with fake(start=3) as worker:
        assert worker.ask("add", amount=4) == 7
        with pytest.raises(workers.MeasurementError, match="^RuntimeError: no luck$"):
            worker.ask("fail")
        assert worker.ask("add", amount=1) == 8, "a failure leaves the worker as it was"
        with pytest.raises(workers.MeasurementError, match="ended with 7: the reason$"):
            worker.ask("end")
        with pytest.raises(workers.MeasurementError, match="ended with 7"):
            worker.ask("add", amount=1)


def test_a_worker_that_does_not_start_says_why(fake):
    with pytest.raises(workers.MeasurementError, match="^ValueError: start must be >= 0$"):
        fake(start=-1)
    with pytest.raises(workers.MeasurementError, match="No module named benchmarks.absent"):
        workers.Worker("benchmarks.absent", {})


def test_answers_are_lines_of_json():
    requests = [
        json.dumps({"command": "start", "arguments": {"makers": {}}}),
        json.dumps({"command": "prepare", "arguments": {"task": "absent"}}),
    ]
    replies = io.StringIO()
    workers.answer(workers.Subject, requests, replies)
    assert [json.loads(line) for line in replies.getvalue().splitlines()] == [
        {"result": None},
        {"error": "KeyError: 'absent'"},
    ]


def test_a_subject_makes_a_task_once_and_times_calls(monkeypatch):
    calls = []
    now = iter(range(100))
    monkeypatch.setattr(workers.time, "perf_counter", lambda: next(now))

    def make():
        calls.append("make")
        return lambda: calls.append("call")

    subject = workers.Subject({"task": make})
    # Every call takes one second of this clock.
    assert subject.time("task", warm_up=2, seconds=3) == [1, 1, 1]
    assert calls == ["make"] + ["call"] * (1 + 2 + 3)
    assert subject.time("task", warm_up=0, seconds=0) == [1]
    assert calls.count("make") == 1

    calls.clear()
    subject = workers.Subject({"task": make})
    subject.prepare("task", calls=4)
    subject.prepare("task", calls=4)
    assert calls == ["make"] + ["call"] * 4
    assert subject.peak_memory() > 1e6


def test_the_ratio_is_the_median_of_paired_ratios():
    # The machine slows down from round to round; the ratio of the medians is 0.6.
    row = table.compare("x", [1.0, 4.0, 3.0], [2.0, 5.0, 10.0], unit=table.duration)
    assert row == table.Row("x", "3 s", "original: 5 s", "0.5", "0.3 to 0.8")
    one = table.compare("x", [0.25], [1.0], unit=table.duration, name="empty cache")
    assert one == table.Row("x", "250 ms", "empty cache: 1 s", "0.25")
    assert table.compare("x", [3.0, 1.0, 2.0], unit=table.number) == table.Row("x", "2")
    with pytest.raises(ValueError, match="zip"):
        table.compare("x", [1.0], [1.0, 2.0], unit=table.number)


def test_units():
    assert table.duration(0.01234) == "12.3 ms"
    assert table.duration(123.4) == "123 s"
    assert table.megabytes(1.5e9) == "1,500 MB"
    assert table.speed(3e9, 0.1, 120e9) == "30 of 120, 25%"


def test_the_table_is_markdown():
    found = table.markdown(
        [table.Row("a | b", "1 ms"), table.failure("c", ValueError("first\nsecond"))]
    ).splitlines()
    assert len(found) == 4
    assert found[2] == "| a \\| b | 1 ms |  |  |  |  |"
    assert found[3] == "| c | failed: first second |  |  |  |  |"
    # As many cells in each line.
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in found} == {7}


def test_only_what_is_between_the_markers_is_replaced():
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    replaced = table.replace(text, "new")
    assert replaced == f"before\n{table.BEGIN}\n\nnew\n\n{table.END}\nafter\n"
    assert table.replace(replaced, "new") == replaced
    for wrong in ("", table.BEGIN, f"{table.END}{table.BEGIN}", text + text):
        with pytest.raises(ValueError, match="must have one line"):
            table.replace(wrong, "new")


def test_the_own_readme_has_a_place_for_the_table():
    readme = (workers.ROOT / "benchmarks" / "README.md").read_text()
    assert table.replace(readme, "new") != readme
    for name in rows.NAMES:
        assert f"| `{name}` |" in readme


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds=0"], "must be an integer >= 1, got '0'"),
        (["--shapes=16,17"], "must be from 16,32,64,128, got '17'"),
        (["--only=train,nothing"], "got 'nothing'"),
        (["--sampler-steps=15"], "--sampler-steps=15 must be a multiple of 10"),
        (["--reference={tmp}"], "has no models/cond_refinenet_dilated.py"),
        (["--warm-up-steps=0"], "must be an integer >= 1, got '0'"),
        (["--write={tmp}/absent.md"], "absent.md: No such file or directory"),
        (["--write={tmp}/plain.md"], "plain.md: must have one line"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rows, "plan", lambda *plan: pytest.fail("it would measure"))
    (tmp_path / "plain.md").write_text("no markers\n")
    with pytest.raises(SystemExit) as caught:
        command.main([a.format(tmp=tmp_path) for a in arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def checkout(tmp_path):
    """Returns a directory with the files that a checkout of the authors' code must have."""
    for name in original.FILES:
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return str(tmp_path / "checkout")


def test_a_missing_torch_is_one_line(checkout, monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command.main([f"--reference={checkout}"])
    assert capsys.readouterr().err.endswith("error: --reference needs PyTorch: pip install torch\n")


def test_the_plan_has_the_rows_asked_for():
    everything = rows.plan(list(rows.NAMES), list(rows.SHAPES), _OPTIONS)
    assert {job.name for job in everything} == set(rows.NAMES)
    assert len({job.title for job in everything}) == len(everything)
    compared = rows.plan(["train"], [16, 64], _OPTIONS._replace(reference="checkout"))
    assert [job.title.partition("batch ")[2] for job in compared] == [
        "32",
        "32, PyTorch flushing denormals",
        "8",
        "8, PyTorch flushing denormals",
    ]
    few = rows.plan(["evaluate", "start"], [32], _OPTIONS)
    assert [job.name for job in few] == ["evaluate", "start", "start"]
    assert few[0].title == "network evaluation, 32 features, 28x28x1, batch 32"


class _FakeWorker:
    """Answers as a worker does, always the same; notes who was asked to run what."""

    def __init__(self, name, times, asked):
        self._name, self._times, self._asked = name, times, asked

    def ask(self, command, **arguments):
        if command == "time":
            self._asked.append((self._name, arguments["task"]))
            return self._times[arguments["task"]]
        if arguments.get("calls", 1) > 1:
            self._asked.append((self._name, arguments["task"], arguments["calls"]))
        return {"prepare": None, "operations": 10**9, "matmul_operations": 10**9}[command]

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def session(monkeypatch):
    """Returns a function that makes a session whose workers are fake, and what they were asked."""
    lines = []

    def make(reference):
        asked = []
        monkeypatch.setattr(machine, "busy_cores", lambda seconds: 1.5)
        times = {"train": [0.1, 0.3, 0.2], "evaluate": [0.1], "matmul": [0.05, 0.02]}
        ours = _FakeWorker("ours", times, asked)
        theirs = _FakeWorker("original", {"train": [0.4], "evaluate": [0.4]}, asked)

        class FakeSession(Session):
            def start_ours(self, *args, **kwargs):
                return ours

            def start_original(self, network, sampler_steps, flush_denormals=False):
                self.flushing.append(flush_denormals)
                return theirs if self.options.reference else None

        FakeSession.flushing = []
        return FakeSession(_OPTIONS._replace(reference=reference), lines.append), asked

    return make


def test_both_sides_take_turns(session):
    made, asked = session("checkout")
    job, flushing = rows.plan(["train"], [16], made.options)
    row = rows.measure(made, job)
    assert row[1:] == ("200 ms", "original: 400 ms", "0.5", "0.5 to 0.5", "5 of 50, 10%")
    before = [("ours", "train", 5), ("original", "train", 5)]
    turn = [("ours", "train"), ("original", "train"), ("ours", "matmul")]
    assert asked == before + 2 * turn
    assert made.flushing == [False]
    rows.measure(made, flushing)
    assert asked == 2 * (before + 2 * turn)
    assert made.flushing == [False, True]


def test_only_training_warms_up(session):
    made, asked = session("checkout")
    (job,) = rows.plan(["evaluate"], [16], made.options)
    rows.measure(made, job)
    assert asked == [("ours", "evaluate"), ("original", "evaluate")] * 2


def test_without_a_checkout_there_is_nothing_to_compare_with(session):
    made, _ = session(None)
    (job,) = rows.plan(["train"], [16], made.options)
    assert rows.measure(made, job)[1:] == ("200 ms", "", "", "", "5 of 50, 10%")


def test_a_row_that_fails_says_why(session):
    made, _ = session("checkout")
    job = rows.Job("train", "title", lambda session, title: session.pair(rows.SHAPES[16])[2])
    assert rows.measure(made, job).ours == "failed: tuple index out of range"


def test_options_reach_the_session_and_the_head(file, monkeypatch, checkout, capsys):
    seen = []

    def measure(session, job):
        seen.append(session.options)
        return table.Row(job.title, "1 ms")

    monkeypatch.setattr(rows, "measure", measure)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: True)
    arguments = ["--only=train", "--shapes=16", f"--reference={checkout}", "--rounds=2"]
    counts = ["--devices=3", "--sampler-steps=40", "--warm-up-steps=7"]
    assert command.main(arguments + counts) == 0
    assert seen == [Options(checkout, 2, 3, 40, 7)] * 2
    assert "training steps before the rounds of the rows 'train': 7\n" in capsys.readouterr().out


def test_the_authors_code_is_given_what_it_takes(checkout, monkeypatch):
    started = []
    monkeypatch.setattr(
        session_module, "Worker", lambda module, settings, environment: started.append(settings)
    )
    made = Session(_OPTIONS._replace(reference=checkout), print)
    for flush in (False, True):
        made.start_original(rows.SHAPES[16], 1000, flush)
    parameters = inspect.signature(original.Original).parameters.keys()
    assert all(settings.keys() == parameters for settings in started)
    assert [settings["flush_denormals"] for settings in started] == [False, True]
    assert {settings["reference"] for settings in started} == {checkout}


# A checkout whose network has one weight, and whose loss says what becomes of a denormal number.
_NETWORK = """
import torch

class CondRefineNetDilated(torch.nn.Module):
    made = []

    def __init__(self, config):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.made.append(self)

    def forward(self, x, labels):
        return self.weight * x
"""
_LOSS = """
import torch

products = []

def anneal_dsm_score_estimation(network, x, labels, sigmas):
    products.append(float(torch.full((8,), 1e-30).mul(1e-10).sum()))
    return network(x, labels).square().mean()
"""


@pytest.fixture
def make_original(checkout, monkeypatch):
    """Returns a function that makes an `Original` of `_NETWORK` and `_LOSS`."""
    torch = pytest.importorskip("torch")
    for name, text in zip(original.FILES, (_NETWORK, _LOSS), strict=True):
        (pathlib.Path(checkout) / name).write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    yield lambda flush: original.Original(
        checkout, 4, 2, 1, 3, 0.1, [1.0, 0.1], 1e-5, 2, threads, flush_denormals=flush
    )
    torch.set_flush_denormal(False)
    for name in ("models", "models.cond_refinenet_dilated", "losses", "losses.dsm"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("flush", [False, True])
def test_tasks_of_the_authors_code_have_weights_of_their_own(make_original, flush):
    subject = make_original(flush)
    for task, calls in (("train", 2), ("evaluate", 1), ("sample", 1)):
        subject.prepare(task, calls)
    made = sys.modules["models.cond_refinenet_dilated"].CondRefineNetDilated.made
    trained, *others = (float(network.weight.detach()) for network in made)
    # Adam's first steps are of the size of the learning rate.
    assert abs(trained - 0.8) < 0.02
    assert others == [1.0, 1.0]
    products = sys.modules["losses.dsm"].products
    assert [product == 0.0 for product in products] == [flush] * 2


def test_the_authors_code_draws_the_same_in_every_process(make_original):
    import torch

    def draw():
        make_original(False)
        return float(torch.rand(()))

    assert draw() == draw()


def test_a_processor_that_cannot_flush_denormals_is_told(make_original, monkeypatch):
    monkeypatch.setattr("torch.set_flush_denormal", lambda mode: False)
    make_original(False)
    with pytest.raises(ValueError, match="^PyTorch cannot flush denormal numbers on this proc"):
        make_original(True)


def _fail_second(session, job):
    if job.name == "evaluate":
        raise KeyboardInterrupt
    return table.Row(job.title, "1 ms")


@pytest.fixture
def file(monkeypatch, tmp_path):
    """A file to write the table to, where rows take no time and Ctrl-C comes with the second."""
    monkeypatch.setattr(rows, "measure", _fail_second)
    monkeypatch.setattr(command.signal, "signal", lambda *args: None)
    path = tmp_path / "table.md"
    path.write_text(f"{table.BEGIN}\nold\n{table.END}\n")
    return path


def test_ctrl_c_prints_what_was_measured(file, capsys):
    assert command.main(["--only=train,evaluate", "--shapes=16", f"--write={file}"]) == 130
    output = capsys.readouterr()
    assert "| train step, 16 features, 28x28x1, batch 32 | 1 ms |" in output.out
    assert output.err.endswith(f"interrupted after 1 of 2 rows; {file} is unchanged\n")
    assert "old" in file.read_text()


def test_a_failed_row_is_a_failure_and_nothing_is_written(file, monkeypatch, capsys):
    monkeypatch.setattr(rows, "measure", lambda session, job: table.failure(job.title, OSError()))
    assert command.main(["--only=start", f"--write={file}"]) == 1
    output = capsys.readouterr()
    assert output.out.count("| failed: OSError |") == 2
    assert output.err.endswith(f"2 of 2 rows failed; {file} is unchanged\n")
    assert "old" in file.read_text()


def test_a_table_that_cannot_be_printed_or_written_is_not_lost(file):
    """In a process of its own, whose standard output nobody reads any more."""
    code = (
        "import os, sys; from benchmarks import __main__ as command, rows, table\n"
        "def measure(session, job):\n"
        "    if len(sys.argv) > 1: os.remove(sys.argv[1])\n"
        "    return table.Row(job.title, '1 ms')\n"
        "rows.measure = measure\n"
        f"sys.exit(command.main(['--only=input', {f'--write={file}'!r}]))"
    )

    def run(*arguments):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as unread:
            return subprocess.run(
                [sys.executable, "-c", code, *arguments],
                stdout=unread,
                stderr=subprocess.PIPE,
                text=True,
                cwd=workers.ROOT,
            )

    done = run()
    assert done.returncode == 1
    assert "| making a batch, configs/digits.py | 1 ms |" in done.stderr
    assert done.stderr.endswith("\nstandard output: Broken pipe\n")
    assert "1 ms" in file.read_text()
    done = run(str(file))
    assert done.returncode == 1
    assert "| making a batch, configs/digits.py | 1 ms |" in done.stderr
    reasons = "No such file or directory; standard output: Broken pipe\n"
    assert done.stderr.endswith(f"--write={file}: {reasons}")


def test_the_table_is_written_with_its_header(file, capsys):
    assert command.main(["--only=train", "--rounds=7", f"--write={file}"]) == 0
    printed = capsys.readouterr().out
    assert "- rounds: 7; CPU devices: as many as the application takes; training" in printed
    assert "steps before the rounds of the rows 'train': 32\n" in printed
    assert file.read_text() == f"{table.BEGIN}\n\n{printed}\n{table.END}\n"
    assert "old" not in printed


def test_other_processes_are_noticed(monkeypatch):
    lines = []
    loads = iter([0.0, 1.25, None])
    monkeypatch.setattr(machine, "busy_cores", lambda seconds: next(loads))
    made = Session(_OPTIONS._replace(rounds=3), lines.append)
    assert list(made.rounds("x")) == [0, 1, 2]
    assert lines == [
        "x: round 1 of 3",
        "x: round 2 of 3, other processes use 1.2 cores",
        "x: round 3 of 3",
    ]
    assert made.others == [0.0, 1.25]


def test_busy_cores_count_all_but_idle_and_waiting(monkeypatch):
    ticks = iter(
        ["cpu  100 10 20 5000 700 1 2 7 0 0\ncpu0 1", "cpu  150 20 30 9000 900 2 4 8 0 0\n"]
    )
    now = iter([10.0, 12.0])
    monkeypatch.setattr(machine.pathlib.Path, "read_text", lambda self: next(ticks))
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: None)
    # 74 hundredths of a second in two.
    assert machine.busy_cores(2.0) == pytest.approx(0.37)


def test_a_run_that_does_not_start_says_why(tmp_path, monkeypatch):
    (tmp_path / "main.py").write_text("import sys\nprint('step 0')\nsys.exit('error: no images')\n")
    monkeypatch.setattr(startup, "ROOT", pathlib.Path(tmp_path))
    with pytest.raises(workers.MeasurementError, match="^main.py ended with 1: error: no images$"):
        startup.seconds_to_first_step([], str(tmp_path))
    starts = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit({}))\n"
        "print('step 1/9  loss', flush=True)\n"
        "time.sleep(600)\n"
    )
    (tmp_path / "main.py").write_text(starts.format(75))
    assert startup.seconds_to_first_step([], str(tmp_path)) > 0
    (tmp_path / "main.py").write_text(starts.format("'error: not saved'"))
    with pytest.raises(workers.MeasurementError, match="^main.py ended with 1: error: not saved$"):
        startup.seconds_to_first_step([], str(tmp_path))
    (tmp_path / "main.py").write_text(starts.format("time.sleep(600)"))
    monkeypatch.setattr(startup, "_PATIENCE", 0.5)
    with pytest.raises(workers.MeasurementError, match="did not end within 0.5 s of SIGTERM"):
        startup.seconds_to_first_step([], str(tmp_path))


def test_the_command_itself_imports_neither_jax_nor_torch():
    code = "import sys, benchmarks.__main__; sys.exit(bool({'jax', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=workers.ROOT).returncode == 0


# `python -m benchmarks.input` that reads images in its own process, which starts sooner.
_INPUT = """
import os, runpy, time
from benchmarks import reader, session, workers

class Here(reader.Reader):
    ask = lambda self, command, **arguments: getattr(self, command)(**arguments)
    __enter__ = lambda self: self
    __exit__ = lambda self, *_: time.sleep(0.1)  # what is being read arrives before the server ends

def start(module, settings, environment=None, worker=workers.Worker):
    os.environ.update(environment or {})
    return Here(**settings) if module == "benchmarks.reader" else worker(module, settings)

workers.Worker = start  # after `session`, which names it in types
runpy.run_module("benchmarks.input", run_name="__main__")
"""


def test_the_input_is_measured_from_every_source(tmp_path):
    pytest.importorskip("gcsfs")
    flags = ["--count=6", "--seconds=0.01", f"--directory={tmp_path}", "--side=12"]
    flags += ["--config.data.image_size=8", "--config.data.crop_size=-1"]
    flags += ["--config.training.batch_size=8"]
    done = subprocess.run(
        [sys.executable, "-c", _INPUT, "--config=configs/cifar10.py", *flags],
        capture_output=True,
        text=True,
        cwd=workers.ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^\| (.+?) \| ([\d,]+) \|.*MB \([\d,]+ MB\) \|$", done.stdout, re.MULTILINE)
    assert [title for title, _ in found] == [
        "array in memory",
        "decoded once, mapped",
        *("array_record", "image folder", "tar file", "zip file"),
        *("array_record on `gs://`", "image folder on `gs://`", "tar file on `gs://`"),
    ], done.stdout
    assert "- pictures of 12x12, JPEG of" in done.stdout
    assert "it is too large to be measured here, and --topology is not given" in done.stdout
