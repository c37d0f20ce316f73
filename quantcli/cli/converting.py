"""What the commands that convert a model have in common: changes to it, and the progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from quantcli.cli.output import byte_progress, count_running_time
from quantcli.formats.gguf.spec import Metadata, replace_keys

if TYPE_CHECKING:
    from quantcli.conversion.convert import Progress
    from quantcli.conversion.model_changes import Changes


def changes(override_kv: Sequence[str], prune_layers: str | None) -> Changes:
    """The changes of --override-kv and --prune-layers.

    Raises:
        UsageError: for values that cannot be read.
    """
    from quantcli.conversion.metadata.output import parse_metadata_override
    from quantcli.conversion.model_changes import Changes
    from quantcli.conversion.prune import parse_layers

    # Of several values for one key, the last counts, at its own position.
    metadata: Metadata = {}
    for text in override_kv:
        key, entry = parse_metadata_override(text)
        replace_keys(metadata, {key: entry})
    return Changes(metadata=metadata, prune_layers=() if prune_layers is None else parse_layers(prune_layers))


@contextmanager
def conversion_progress(doing: str) -> Iterator[tuple[Progress, Callable[[str, int], Callable[[int], Any]]]]:
    """A progress bar in bytes, for the download and the conversion, and in chunks, for the collecting in between.

    `doing` is what is done with the bytes, such as "quantizing".
    """
    from quantcli.conversion.convert import Progress

    with byte_progress(doing) as bar:

        def begin(what: str, total: int, unit: str = "B") -> Callable[[int], Any]:
            bar.set_description(what, refresh=False)
            bar.unit, bar.unit_scale = unit, unit == "B"
            bar.reset(total)
            return bar.update  # type: ignore[no-any-return]

        def running(what: str, chunks: int) -> Callable[[int], Any]:
            count_running_time(bar)
            return begin(what, chunks, "chunk")

        yield Progress(partial(begin, "downloading"), partial(begin, doing), bar.update), running
