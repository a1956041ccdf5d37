"""SIGTERM and Ctrl-C, sent to processes of their own."""

import signal
import subprocess
import sys

import pytest

from ncsn_jax.app import signals
from tests.running import ROOT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_deferred_signal_ends_the_process_in_at_once_where_nobody_reads_standard_error(number):
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


def test_a_signal_that_nobody_asks_for_ends_the_process_with_the_deferring_block():
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


def test_an_exception_in_the_deferring_block_comes_before_its_signal():
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
