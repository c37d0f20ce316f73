"""Announces the compilation of kernels, which happens once per machine and takes a while without other output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache

import click

from quantcli.core.listing import counted


def announce_compiling() -> None:
    """Announce compilation from now on. Nothing is printed if all kernels are in the cache on disk."""
    from quantcli.kernels.compilation import use_report

    use_report(_compiling)


@cache
def _say_once(text: str) -> None:
    """Write a line to stderr, once per process: kernels are compiled in several batches."""
    click.echo(text, err=True)


def _compiling(count: int) -> Callable[[], None]:
    """Say on stderr that `count` kernels are compiled: on a terminal with a counter, which stays with the time it took.

    Returns a function to call after each of them.
    """
    from quantcli.kernels.kernel_cache import cache_directory, keeps_kernels

    keeps, started, done, shown = keeps_kernels(), time.perf_counter(), 0, 0
    nowhere = f"they cannot be kept in {cache_directory()}"
    if not sys.stderr.isatty():
        _say_once(f"compiling kernels for this machine ({'once' if keeps else nowhere}) ...")
        return lambda: None
    kept = "kept for the next time" if keeps else "not kept"

    def show(text: str) -> None:
        # Spaces clear what was there, also on terminals without escape sequences. The cursor goes back to the beginning of
        # the line, where an error message would begin.
        nonlocal shown
        click.echo(f"\r{text:{shown}}\r", nl=False, err=True)
        shown = len(text)

    def advance() -> None:
        nonlocal done
        done += 1
        if done < count:
            show(f"compiling kernels {done}/{count} ... {kept}")
        else:
            show("")
            took = f"{time.perf_counter() - started:.1f} s"
            click.echo(f"compiled {counted(count, 'kernel')} in {took}, {kept if keeps else nowhere}", err=True)

    show(f"compiling kernels 0/{count} ... {kept}")
    return advance
