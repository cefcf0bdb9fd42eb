"""The command line."""

from innerloop.cli.main import main

__all__ = ["main"]
