"""Ctrl-C stops a command even where Python cannot raise it."""

import subprocess
import sys

import pytest

COMMAND = """
import gc, signal, sys, threading
import innerloop.cli.list
from innerloop.cli import main

def swallow(*_):
    gc.callbacks.remove(swallow)
    {swallowed}

def run(_):
    gc.callbacks.append(swallow)
    gc.collect()
    threading.Event().wait({wait})
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in the background ignores interrupts
innerloop.cli.list.run = run
sys.exit(main(["list"]))
"""


def _ended(swallowed: str, wait: float) -> subprocess.CompletedProcess:
    """A command that waits, and before that a callback of the garbage collector that raises."""
    script = COMMAND.format(swallowed=swallowed, wait=wait)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_that_a_callback_swallows_comes_again():
    ended = _ended("signal.raise_signal(signal.SIGINT)", wait=600)  # must be woken: the timeout is shorter
    assert ended.returncode == 130
    assert "interrupted" in ended.stderr
    assert "ignored" not in ended.stderr


def test_other_errors_that_nothing_can_catch_are_still_reported():
    ended = _ended("raise ValueError('from a callback')", wait=0)
    assert ended.returncode == 0
    assert "from a callback" in ended.stderr
