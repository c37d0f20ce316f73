"""`--debug`: tracebacks, and the tensor whose inputs are the first that are not finite."""

from __future__ import annotations

from typing import Final

import click

DEBUGGING: Final = "debug"
"""The object of the commands' context under `--debug`."""


def is_debugging() -> bool:
    """Whether the command line has `--debug`."""
    context = click.get_current_context(silent=True)
    return context is not None and context.obj is DEBUGGING
