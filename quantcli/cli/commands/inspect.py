"""`quantize inspect`: the metadata and tensors of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from quantcli.cli import gguf_description, imatrix_description
from quantcli.cli.commands import described
from quantcli.cli.local_models import local_model
from quantcli.cli.options import file_argument, json_option
from quantcli.cli.output import columns, heading, print_json, show
from quantcli.cli.text_tables import Table, Text, View
from quantcli.core.display import binary_size, decimal_count, printable
from quantcli.core.errors import FormatError, ValueRangeError, clipped
from quantcli.formats.gguf import vocabulary
from quantcli.formats.gguf.reader import GGUFFile, open_gguf
from quantcli.formats.gguf.spec import MAGIC, Field, ValueType
from quantcli.tensors.files import InputFile
from quantcli.tensors.tensor import StoredTensor

if TYPE_CHECKING:
    from quantcli.formats.imatrix import Imatrix

_TEMPLATE_LINES: Final = 6
_TEMPLATE_WIDTH: Final = 110
_OTHER: Final = "norms, biases and others"


@described("inspect")
@file_argument
@click.option("--tensors", is_flag=True, help="List all tensors: name, shape, type, size, file offset.")
@click.option("--metadata", is_flag=True, help="List all metadata: key, type, value.")
@json_option("Print everything as one JSON document, arrays in full.")
def command(file: Path, tensors: bool, metadata: bool, as_json: bool) -> None:
    """Without options, prints a summary: hyperparameters, tensor types, tokenizer, chat template. Shapes are in GGUF order:
    the row length first. FILE may be the first shard of a split model, or an importance matrix in either layout.

    \b
    quantize inspect model.gguf
    quantize inspect model.gguf --tensors | grep ffn_down
    quantize inspect model.gguf --json | jq -r '.metadata["tokenizer.chat_template"]'
    """
    file = local_model(file)
    if (legacy := _legacy_imatrix(file)) is not None:
        if as_json:
            print_json({"path": str(file), "importance": imatrix_description.document(legacy, None)})
        else:
            show(*imatrix_description.legacy_views(legacy))
        return
    with open_gguf(file, allow_shard=True) as opened:
        kind = opened.get("general.type")
        is_imatrix = isinstance(kind, str) and kind == "imatrix"
        if as_json:
            importance = {"importance": imatrix_description.document_of(file)} if is_imatrix else {}
            print_json(document(opened) | importance)
            return
        views: list[View] = []
        if metadata:
            views += [heading("Metadata"), metadata_view(opened)]
        if tensors:
            views += [heading("Tensors"), tensors_view(opened)]
        described = imatrix_description.views_of if is_imatrix else lambda path: summary(opened)
        show(*(views or described(file)))


def _legacy_imatrix(path: Path) -> Imatrix | None:
    """The importance matrix of a file in the older layout, which has no mark of its own; None if it is something else."""
    with InputFile(path) as file:
        if file.read(0, min(file.size, len(MAGIC))) == MAGIC:
            return None
    from quantcli.formats.imatrix import read_imatrix

    try:
        return read_imatrix(path)
    except (FormatError, ValueRangeError):
        return None


def document(file: GGUFFile) -> dict[str, Any]:
    """The JSON document. Shapes are in GGUF order; `offset` counts from the start of the file.

    For a split model, `parts` are the shards' paths, and `part` is the number of the shard that a tensor's `offset` is in.

    JSON has no bytes and no infinities: bytes that are not UTF-8 become U+FFFD, and numbers that are not finite null.
    """
    shards = {path: number for number, path in enumerate(file.paths, 1)} if len(file.paths) > 1 else {}
    return {
        "path": str(file.path),
        **({"parts": list(map(str, shards))} if shards else {}),
        "version": file.version,
        "architecture": file.architecture,
        "alignment": file.alignment,
        "file_bytes": file.file_bytes,
        "parameters": gguf_description.parameters(file),
        "bits_per_weight": gguf_description.bits_per_weight(file),
        "metadata": {_valid_text(key): _json_value(field) for key, field in file.metadata.items()},
        "tensors": [
            {
                "name": _valid_text(tensor.name),
                "shape": list(reversed(tensor.shape)),
                "type": tensor.type.name,
                "offset": tensor.offset,
                "bytes": tensor.nbytes,
                **({"part": shards[tensor.file.path]} if shards else {}),
            }
            for tensor in file.tensors.values()
        ],
    }


def _json_value(field: Field) -> Any:
    if field.type == ValueType.STRING:
        return _valid_text(field.value)
    if field.type != ValueType.ARRAY:
        return field.value if math.isfinite(field.value) else None
    if field.element == ValueType.STRING:
        return _all_valid_text(field.elements())
    return [value if math.isfinite(value) else None for value in field.elements()]


def _all_valid_text(texts: list[str]) -> list[str]:
    """`_valid_text` for many strings. A single encoding checks whether all are UTF-8, as in nearly all vocabularies."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return [_valid_text(text) for text in texts]
    return texts


def _valid_text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def summary(file: GGUFFile) -> list[View]:
    """What is shown without options."""
    title, place = printable(str(file.get("general.name", file.path.name))), printable(str(file.path))
    facts = columns("", "")
    for label, text in gguf_description.describe(file):
        facts.add_row(label, text)
    views: list[View] = [Text(title, "title"), Text(f"{place}\n", "aside"), facts]
    if file.tensors:
        views += [heading("Tensor types"), _types_view(file)]
    if file.tensors and file.architecture:
        views += [heading("Tensors by role"), _roles_view(file)]
    template = file.get(vocabulary.CHAT_TEMPLATE)
    if isinstance(template, str):
        views += [heading("Chat template"), _template_view(template)]
    return views


def _types_view(file: GGUFFile) -> Table:
    right = ("Bits", "Tensors", "Weights", "Size", "Share")
    table = columns("Type", *right, right=right)
    total = sum(tensor.nbytes for tensor in file.tensors.values()) or 1
    grouped = _grouped(file.tensors.values(), lambda tensor: tensor.type.name)
    for name, group in sorted(grouped.items(), key=lambda item: -_bytes(item[1])):
        table.add_row(
            name,
            f"{group[0].type.bits_per_weight:g}",
            f"{len(group):,}",
            decimal_count(sum(tensor.size for tensor in group)),
            binary_size(_bytes(group)),
            f"{_bytes(group) / total:.1%}",
        )
    return table


def _roles_view(file: GGUFFile) -> Table:
    from quantcli.conversion.roles import known_roles, role_of

    roles = known_roles()
    labels = [role.label for role in roles.values()] + [_OTHER]

    def label(tensor: StoredTensor) -> str:
        role = role_of(tensor.name, roles)
        return role.label if role else _OTHER

    right = ("Tensors", "Weights", "Size")
    table = columns("Role", *right, "Types", right=right)
    for name, group in sorted(_grouped(file.tensors.values(), label).items(), key=lambda item: labels.index(item[0])):
        by_type = _grouped(group, lambda tensor: tensor.type.name)
        types = ", ".join(f"{kind} x{len(some)}" if len(by_type) > 1 else kind for kind, some in by_type.items())
        weights = decimal_count(sum(tensor.size for tensor in group))
        table.add_row(name.removeprefix("the "), f"{len(group):,}", weights, binary_size(_bytes(group)), types)
    return table


def _template_view(template: str) -> Text:
    lines = template.splitlines()
    shown = [clipped(line, _TEMPLATE_WIDTH) for line in islice(lines, _TEMPLATE_LINES)]
    rest = len(lines) - len(shown)
    said = f"({len(template):,} characters" + (f", {rest} more lines)" if rest > 0 else ")")
    return Text("\n".join([*shown, said]), "aside")


def metadata_view(file: GGUFFile) -> Table:
    """A row for every metadata key."""
    table = columns("Key", "Type", "Value")
    for key, field in file.metadata.items():
        table.add_row(key, gguf_description.type_name(field), gguf_description.short_value(field))
    return table


def tensors_view(file: GGUFFile) -> Table:
    """A row for every tensor."""
    right = ("Bytes", "Offset")
    table = columns("Name", "Shape", "Type", *right, right=right)
    for tensor in file.tensors.values():
        shape = " x ".join(str(length) for length in reversed(tensor.shape)) or "scalar"
        table.add_row(tensor.name, shape, tensor.type.name, f"{tensor.nbytes}", f"{tensor.offset}")
    return table


def _grouped(tensors: Iterable[StoredTensor], key: Callable[[StoredTensor], str]) -> dict[str, list[StoredTensor]]:
    groups: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        groups.setdefault(key(tensor), []).append(tensor)
    return groups


def _bytes(tensors: Iterable[StoredTensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
