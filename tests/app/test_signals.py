"""Tests SIGTERM and Ctrl-C, sent to separate processes."""

import signal
import subprocess
import sys

import pytest

from ncsn_jax.app import signals
from tests.running import ROOT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_deferred_signal_ends_the_process_even_if_standard_error_is_closed(number):
    script = f"""
import os, signal, time
from ncsn_jax.app import signals
signals.install("")
reading, writing = os.pipe()
os.dup2(writing, 2)
os.close(writing)
os.close(reading)
with signals.deferred():
    os.kill(os.getpid(), {int(number)})
    while not signals.requested():
        time.sleep(0.01)
    os.write(1, b"deferred")
    try:
        with signals.at_once():
            pass
    finally:
        os.write(1, b"never")
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)
    assert (result.returncode, result.stdout) == (signals.STATUS[number], b"deferred")


def test_an_unhandled_signal_ends_the_process_after_the_deferring_block():
    script = """
import os, signal, time
from ncsn_jax.app import signals
signals.install("good-bye")
with signals.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    while not signals.requested():
        time.sleep(0.01)
    os.write(1, b"deferred")
os.write(1, b"never")
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (75, "deferred")
    assert result.stderr == "SIGTERM: saving after this step\nSIGTERM: good-bye\n"


def test_an_exception_in_the_deferring_block_takes_precedence_over_a_signal():
    script = """
import os, signal, time
from ncsn_jax.app import signals
signals.install("")
try:
    with signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        while not signals.requested():
            time.sleep(0.01)
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
with signals.deferred():
    print(signals.requested())
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "None\n"), result.stderr


def test_a_second_interrupt_reports_the_last_checkpoint():
    script = """
import os, signal, time
from ncsn_jax.app import signals
signals.install("good-bye")
with signals.deferred(lambda: "the last checkpoint is that of step 7"):
    os.kill(os.getpid(), signal.SIGINT)
    while not signals.requested():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 130
    assert result.stderr.splitlines() == [
        "Ctrl-C: saving after this step; press again to stop at once",
        "this step is not saved; the last checkpoint is that of step 7",
        "Ctrl-C: good-bye",
    ]


def test_a_notebook_interrupt_is_deferred_and_then_raised():
    script = """
import os, signal
from ncsn_jax.app import signals
before = signal.getsignal(signal.SIGINT)

def interrupted(work):
    try:
        with signals.deferred(lambda: "none"):
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.requested() == signal.SIGINT
            work()
        return False
    except KeyboardInterrupt:
        assert signal.getsignal(signal.SIGINT) is before
        return True

print(interrupted(lambda: signals.stop(signals.requested())))
print(interrupted(lambda: None))
print(interrupted(lambda: os.kill(os.getpid(), signal.SIGINT)))
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "True\n" * 3), result.stderr
