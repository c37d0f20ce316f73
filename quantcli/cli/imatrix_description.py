"""Importance matrices in words and tables: what they are made from, what each layer has, which experts had few tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantcli.cli.output import columns, heading
from quantcli.cli.text_tables import Table, View
from quantcli.core.listing import counted, listed
from quantcli.formats.gguf.spec import layer_number

if TYPE_CHECKING:
    from quantcli.formats.imatrix import Imatrix
    from quantcli.formats.imatrix_sums import ImatrixSums


def expert_notes(sums: ImatrixSums) -> Iterator[tuple[str, str]]:
    """Which experts had no tokens or few, and what follows: the layer, or the tensor, and a sentence."""
    from quantcli.formats.imatrix_sums import FEW_TOKENS

    yield from _noted(sums.unused(), "no token reached {}: quantized without importance")
    few = f"fewer than {FEW_TOKENS} tokens reached {{}}: their importance is uncertain, and more text would help"
    yield from _noted(sums.scarce(), few)


def _noted(experts: Mapping[str, list[int]], note: str) -> Iterator[tuple[str, str]]:
    """The note for each layer where all its tensors have the same experts, else for each tensor."""
    layers: dict[Any, dict[str, list[int]]] = defaultdict(dict)
    for name, which in experts.items():
        number = layer_number(name)
        layers[name if number is None else number][name] = which
    for number, found in layers.items():
        alike = len({tuple(which) for which in found.values()}) == 1 and isinstance(number, int)
        for name, which in [(f"layer {number}", next(iter(found.values())))] if alike else found.items():
            what = "expert" if len(which) == 1 else "experts"
            yield name, note.format(f"{what} {listed([str(expert) for expert in which])}")


def summary(sums: ImatrixSums, path: Path) -> Table:
    """What an importance matrix is made from, and what is wrong with it."""
    facts = columns("", "")
    facts.add_row("Importance matrix", str(path))
    facts.add_row("Texts", listed(sums.datasets))
    chunks = f"{counted(sums.chunks, 'chunk')} of {sums.chunk_size}"
    facts.add_row("Tokens", f"{sums.chunks * sums.chunk_size:,} in {chunks}")
    facts.add_row("Tensors", f"{len(sums.entries):,}")
    for label, note in expert_notes(sums):
        facts.add_row(label.capitalize() if label.startswith("layer") else label, note)
    return facts


def views_of(path: Path) -> list[View]:
    """The summary of a file in the GGUF layout, and a row for each layer."""
    from quantcli.formats.imatrix_sums import read_sums

    sums = read_sums(path)
    return [summary(sums, path), heading("Importance by layer"), _layers(sums.means(str(path)), _counts(sums))]


def legacy_views(imatrix: Imatrix) -> list[View]:
    """The same of a file in the older layout, which has no counts."""
    facts = columns("", "")
    facts.add_row("Importance matrix", imatrix.path)
    facts.add_row("Layout", "the older one, without the tokens of single experts")
    facts.add_row("Texts", listed(imatrix.datasets) or "unknown")
    facts.add_row("Chunks", f"{imatrix.chunks:,}" if imatrix.chunks else "unknown")
    facts.add_row("Tensors", f"{len(imatrix.entries):,}")
    return [facts, heading("Importance by layer"), _layers(imatrix, {})]


def document_of(path: Path) -> dict[str, Any]:
    """The JSON document of a file in the GGUF layout."""
    from quantcli.formats.imatrix import read_imatrix
    from quantcli.formats.imatrix_sums import read_sums

    return document(read_imatrix(path), read_sums(path))


def document(imatrix: Imatrix, sums: ImatrixSums | None) -> dict[str, Any]:
    """The JSON document of an importance matrix: of each tensor the sum of its mean squares, and what had few tokens."""
    counts = {} if sums is None else _counts(sums)
    return {
        "datasets": list(imatrix.datasets),
        "chunks": imatrix.chunks,
        "chunk_size": None if sums is None else sums.chunk_size,
        "unused_experts": {} if sums is None else sums.unused(),
        "scarce_experts": {} if sums is None else sums.scarce(),
        "tensors": [
            {
                "name": name,
                "values": values.size,
                "sum": float(values.sum(dtype="f8")),
                "largest": float(values.max()),
                "tokens": counts.get(name),
            }
            for name, values in imatrix.entries.items()
        ],
    }


def _counts(sums: ImatrixSums) -> dict[str, list[int]]:
    """The tokens of each of a tensor's stacked matrices."""
    return {name: [int(count) for count in entry.counts] for name, entry in sums.entries.items()}


def _layers(imatrix: Imatrix, counts: Mapping[str, list[int]]) -> Table:
    """A row for each layer, and one for each tensor outside of them."""
    right = ("Tensors", "Tokens", "Sum", "Share", "Largest column")
    table = columns("Layer", *right, right=right)
    rows: dict[str, list[str]] = defaultdict(list)
    for name in sorted(imatrix.entries, key=lambda name: (layer_number(name) is None, layer_number(name) or 0, name)):
        number = layer_number(name)
        rows[name if number is None else str(number)].append(name)
    sums = {name: float(values.sum(dtype="f8")) for name, values in imatrix.entries.items()}
    total = sum(sums.values()) or 1.0
    for label, names in rows.items():
        own = sum(sums[name] for name in names)
        tokens = [count for name in names for count in counts.get(name, [])]
        largest = max(float(imatrix.entries[name].max()) / (sums[name] or 1.0) for name in names)
        table.add_row(label, f"{len(names)}", _range(tokens), f"{own:,.4g}", f"{own / total:.1%}", f"{largest:.1%}")
    return table


def _range(tokens: list[int]) -> str:
    """The lowest and the highest number of tokens."""
    if not tokens:
        return "unknown"
    low, high = min(tokens), max(tokens)
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"
