"""Saying that kernels are being compiled: it happens once on a machine, and takes a while in which nothing else is seen."""

from __future__ import annotations

from functools import cache
from typing import Any

import click


@cache
def announce_compiling() -> None:
    """From now on, say so on stderr when a first kernel has to be compiled; not where all are in the cache on disk.

    numba tells of it as it begins. What will be needed cannot be told beforehand: a prompt of one token takes other kernels
    than a longer one.
    """
    from numba.core import event

    from quantcli.kernels.jit import cache_directory, keeps_kernels

    class Announcement(event.Listener):  # type: ignore[misc]
        said = False

        def on_start(self, event: Any) -> None:
            if not self.said:
                self.said = True
                once = "once" if keeps_kernels() else f"they cannot be kept in {cache_directory()}"
                click.echo(f"compiling kernels for this machine ({once}) ...", err=True)

        def on_end(self, event: Any) -> None:
            pass

    event.register("numba:compile", Announcement())
