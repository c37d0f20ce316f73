"""Continues an interrupted evaluation: `quantize eval --resume FILE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantcli.quality.journal import Steps


def resumed(
    journal: Path | None, models: Sequence[Path], texts: Sequence[tuple[str, str]], options: Mapping[str, object]
) -> AbstractContextManager[Steps]:
    """The steps of an evaluation: with those that the file `journal` has, or for None all of them computed.

    Args:
        journal: the file of `--resume`.
        models: the files that are evaluated and compared.
        texts: names, by which a text is refused, and texts.
        options: by name, all else that the results depend on.

    Raises:
        FormatError, OutputError: as `journal.open_journal`, also within the context.
    """
    from quantcli.conversion.resuming import this_version
    from quantcli.formats.journal import digest
    from quantcli.quality.journal import computed, open_journal

    if journal is None:
        return nullcontext(computed)
    subject = [this_version()]
    subject += [(str(path), _identity(path)) for path in models]
    subject += [(name, digest(text.encode("utf-8", "surrogateescape"))) for name, text in texts]
    subject += [(name, str(value)) for name, value in options.items()]
    return open_journal(journal, subject)


def _identity(model: Path) -> str:
    """What tells a file, or the shards of one, from another without reading the weights: names, sizes, times of change."""
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.formats.journal import digest

    with open_gguf(model) as file:
        facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in file.paths]
    return digest(repr(facts).encode())
