"""The `dengine-sm` command; see `dengine-sm --help`."""

from dengine_sm.cli.commands import main

__all__ = ["main"]
