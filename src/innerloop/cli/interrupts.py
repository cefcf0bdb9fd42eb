"""Interrupts (Ctrl-C) that Python would ignore are sent again.

Python raises ``KeyboardInterrupt`` wherever the program happens to be. Inside a finaliser or a callback of the garbage
collector nothing can catch it: Python reports it as ignored and goes on. JAX has such a callback, which runs often
(measured: it swallowed 4 of 120 interrupts at random moments of ``reproduce``, each of which would have trained on to
the end).
"""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PAUSE = 0.05
"""Seconds until a swallowed interrupt comes again: long enough to be out of what swallowed it."""


@contextmanager
def interrupts_arrive() -> Iterator[None]:
    """While the body runs, sends an interrupt that was swallowed again, until one is raised where it can be caught."""
    report = sys.unraisablehook

    def send_again(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            threading.Timer(_PAUSE, _interrupt).start()
        else:
            report(unraisable)

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = report


def _interrupt() -> None:
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:  # a signal also wakes a main thread that waits for another
        os.kill(os.getpid(), signal.SIGINT)
