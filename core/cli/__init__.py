"""The command line, the one part of `core` that knows `marl` and `safe`: it builds what a configuration names."""

from core.cli.main import main

__all__ = ["main"]
