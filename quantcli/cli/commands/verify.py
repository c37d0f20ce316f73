"""`quantize verify FILE...`: whether GGUF files are whole and undamaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.commands import described
from quantcli.cli.compiling import announce_compiling
from quantcli.cli.options import PATH, json_option, overwrite_option, threads_option
from quantcli.cli.output import byte_progress, print_json, say
from quantcli.core.errors import FormatError, UnsupportedError, UsageError
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.formats.gguf.reader import GGUFFile


@dataclass
class Result:
    """What was checked of a file, in words, and what is wrong."""

    path: Path
    checked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@described("verify")
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True)
@click.option("--save", is_flag=True, help="Write the checksums of each FILE to FILE.sha256.")
@click.option("--source", metavar="MODEL", help="Derive rows from the model again, and compare them.")
@click.option("--full", is_flag=True, help="With --source: all rows. Default: some of each tensor.")
@click.option("--imatrix", type=PATH, metavar="F", help="With --source: the importance matrix that FILE was made with.")
@overwrite_option
@threads_option
@json_option()
def command(files: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Checks the structure of a GGUF file, that all weights and scales are finite, and the checksums in FILE.sha256 where
    there is one. These find any changed bit. The first line of FILE.sha256 is one of sha256sum, and its comments are the
    checksums of tensors, so that damage has a place. FILE may be the first shard of a split model.

    With --source, rows of each tensor are derived again from the model that FILE was made from. The status is 1 if
    something is wrong.

    \b
    quantize verify model-Q4_K_M.gguf
    quantize verify model-Q4_K_M.gguf --save && sha256sum -c model-Q4_K_M.gguf.sha256
    quantize verify model-Q4_K_M.gguf --source ORG-model/ --full
    """
    for name in (name for name in ("full", "imatrix") if options[name] and options["source"] is None):
        raise UsageError(f"--{name} needs --source")
    results = [_verified(file, options) for file in files]
    if as_json:
        print_json([{"path": str(each.path), "checked": each.checked, "faults": each.faults} for each in results])
    else:
        for each in results:
            for fault in each.faults:
                say(f"{each.path}: {fault}", err=True)
            if not each.faults:
                say(f"{each.path}: {', '.join(each.checked)}")
    if any(each.faults for each in results):
        raise click.exceptions.Exit(1)


def _verified(path: Path, options: dict[str, Any]) -> Result:
    from quantcli.conversion.convert import working_threads
    from quantcli.conversion.verify import not_finite
    from quantcli.formats.gguf.reader import open_gguf

    result, threads = Result(path), working_threads(options["threads"])
    with _as_fault(result), open_gguf(path) as file:
        with _bar("verifying", file.file_bytes) as advance:
            result.faults += not_finite(file, advance)
        result.checked += [counted(len(file.tensors), "tensor"), "all numbers finite"]
        _check_sums(result, file, threads, options)
        if options["source"] is not None:
            _check_source(result, file, threads, options)
    return result


@contextmanager
def _as_fault(result: Result) -> Iterator[None]:
    """Let a file that cannot be read be a fault of its own: the others are checked too."""
    try:
        yield
    except (FormatError, UnsupportedError) as error:
        if not error.message.startswith(f"{result.path}: "):
            raise
        result.faults.append(error.message.removeprefix(f"{result.path}: "))


def _check_sums(result: Result, file: GGUFFile, threads: int, options: dict[str, Any]) -> None:
    from quantcli.conversion.verify import checksums_of, differing
    from quantcli.formats.checksums import checksum_path, read_checksums, write_checksums

    path = checksum_path(result.path)
    if not options["save"] and not path.exists():
        result.checked.append("no checksums, so that its metadata were not checked (--save writes them)")
        return
    with _bar("checksums", 2 * file.file_bytes) as advance:
        found = checksums_of(file, threads, advance)
    if options["save"]:
        if not result.faults:
            write_checksums(path, found, overwrite=options["overwrite"])
            result.checked.append(f"checksums written to {path}")
        else:
            result.faults.append("no checksums were written, since the file is damaged")
        return
    result.faults += differing(found, read_checksums(path))
    result.checked.append(f"checksums as in {path}")


def _check_source(result: Result, file: GGUFFile, threads: int, options: dict[str, Any]) -> None:
    from quantcli.conversion.request import Request
    from quantcli.conversion.verify import unlike_source
    from quantcli.formats.imatrix import read_imatrix

    announce_compiling()
    imatrix = None if options["imatrix"] is None else read_imatrix(options["imatrix"])
    request = Request(model=options["source"], types=(), imatrix=imatrix)
    with _bar("comparing", file.file_bytes) as advance:
        result.faults += unlike_source(file, request, full=options["full"], threads=threads, advance=advance)
    result.checked.append(f"{'all' if options['full'] else 'sampled'} rows as {options['source']} gives them")


@contextmanager
def _bar(what: str, total: int) -> Iterator[Any]:
    with byte_progress(what, total) as bar:
        yield bar.update
