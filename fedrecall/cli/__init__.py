"""The command line. ``main`` is the console entry point; each file holds one group of commands."""

from fedrecall.cli.app import main

__all__ = ["main"]
