"""Announces the compilation of kernels, which happens once per machine and takes a while without other output."""

from __future__ import annotations

from functools import cache
from typing import Any

import click


@cache
def announce_compiling() -> None:
    """Print a line to stderr when the first kernel is compiled. Nothing is printed if all are in the cache on disk.

    This listens to numba's events, because the kernels needed are not known in advance: a prompt of one token uses others
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
