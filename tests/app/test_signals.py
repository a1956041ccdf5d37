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


def test_a_deferred_signal_raises_stopped_at_the_end_and_is_forgotten():
    script = """
import os, signal, time
from ncsn_jax.app import signals
signals.install("")
try:
    with signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        while not signals.requested():
            time.sleep(0.01)
except signals.Stopped as stopped:
    print(stopped.status, stopped.alone)
with signals.deferred():
    print(signals.requested())
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "75 True\nNone\n", result.stderr
