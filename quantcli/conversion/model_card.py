"""The model card of quantized files, for the Hugging Face hub: what the files say of themselves, and what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantcli.conversion.roles import file_type_names
from quantcli.core.display import binary_size, decimal_count
from quantcli.core.errors import FormatError, ModelError
from quantcli.formats.gguf.reader import GGUFFile
from quantcli.formats.gguf.spec import ValueType
from quantcli.formats.gguf.vocabulary import CHAT_TEMPLATE
from quantcli.formats.hub.upload import MARK

_HUB: Final = re.compile(r"https?://huggingface\.co/([\w.-]+/[\w.-]+?)/?")
_SOURCES: Final = ("general.source.repo_url", "general.source.url", "general.base_model.0.repo_url", "general.repo_url")
"""Keys with the address of the model that a file was made from, the most exact first."""


@dataclass(frozen=True)
class Measured:
    """A result of `eval --json` for a file: the text, the base file, and figures that may be absent."""

    text: str
    base: str | None
    perplexity: float | None
    divergence: float | None
    same_top: float | None


@dataclass(frozen=True)
class CardFile:
    """A file to be described."""

    name: str
    type: str
    file_bytes: int
    bits_per_weight: float
    measured: tuple[Measured, ...]


def read_results(path: Path) -> dict[str, list[Measured]]:
    """The results in a file of `quantize eval --json`, by the names of the files.

    Raises:
        FormatError: if it is not such a file.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        rows = document.get("results", [document])
        found: dict[str, list[Measured]] = {}
        for row in rows:
            divergence = row.get("kl_divergence") or {}
            measured = Measured(
                text=Path(str(row.get("text", ""))).name,
                base=None if document.get("base") is None else Path(str(document["base"])).name,
                perplexity=row.get("perplexity"),
                divergence=divergence.get("mean"),
                same_top=row.get("same_top"),
            )
            found.setdefault(Path(row["path"]).name, []).append(measured)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(path, "not the output of `quantize eval --json`") from error
    return found


def card_file(file: GGUFFile, results: Mapping[str, Sequence[Measured]]) -> CardFile:
    """What a card says of an open file."""
    weights = sum(tensor.size for tensor in file.tensors.values())
    bits = 8 * sum(tensor.nbytes for tensor in file.tensors.values()) / max(1, weights)
    number = file.get("general.file_type")
    name = file_type_names().get(number, "mixed") if isinstance(number, int) else "mixed"
    return CardFile(file.path.name, name, file.file_bytes, bits, tuple(results.get(file.path.name, ())))


def model_card(
    files: Sequence[GGUFFile],
    repository: str,
    results: Mapping[str, Sequence[Measured]],
    *,
    base_model: str | None = None,
    license_: str | None = None,
    command: str | None = None,
) -> str:
    """The text of README.md.

    Args:
        files: the open files, all of one model.
        repository: `ORG/NAME`, where they will be.
        results: what was measured, by file names.
        base_model: `ORG/NAME` of the model that was quantized; by default what the files say.
        license_: its licence; by default what the files say.
        command: the command that made the files.

    Raises:
        ModelError: if the files are not of one architecture.
    """
    names = {file.architecture for file in files}
    if len(names) > 1:
        raise ModelError(f"files of several architectures: {', '.join(sorted(map(str, names)))}")
    first = files[0]
    base = base_model or _base_model(first)
    cards = [card_file(file, results) for file in files]
    parts = [
        _front_matter(first, base, license_, packed=any(_is_packed(file) for file in files)),
        MARK,
        "",
        f"# {_text(first, 'general.name') or repository.partition('/')[2]}, GGUF",
        "",
        _about(first, base),
        "",
        *_table(cards),
        *_imatrix(files),
        *_made_by(command, base, cards, files),
        *_use(repository, first, cards),
    ]
    text = "\n".join(parts).rstrip() + "\n"
    return text.encode("utf-8", "backslashreplace").decode()


def _text(file: GGUFFile, key: str) -> str | None:
    """A string of the metadata; None where there is none."""
    value = file.get(key)
    return value if isinstance(value, str) and value else None


def _texts(file: GGUFFile, key: str) -> list[str]:
    """The strings of an array of the metadata; none where there is no such array."""
    field = file.metadata.get(key)
    return field.elements() if field is not None and field.element is ValueType.STRING else []


def _base_model(file: GGUFFile) -> str | None:
    """The model on the hub that a file was made from."""
    for key in _SOURCES:
        found = _HUB.fullmatch(str(file.get(key, "")))
        if found:
            return found[1]
    return None


def _is_packed(file: GGUFFile) -> bool:
    return any(tensor.type.is_quantized for tensor in file.tensors.values())


def _front_matter(file: GGUFFile, base: str | None, license_: str | None, *, packed: bool) -> str:
    """The YAML at the top, which the hub reads. Every string is in JSON's quotes, which YAML has too."""
    tags, languages = (_texts(file, f"general.{name}") for name in ("tags", "languages"))
    chats = ["conversational"] if CHAT_TEMPLATE in file.metadata else []
    fields: dict[str, Any] = {
        "license": license_ or _text(file, "general.license"),
        "license_name": None if license_ else _text(file, "general.license.name"),
        "license_link": None if license_ else _text(file, "general.license.link"),
        "base_model": base,
        "base_model_relation": "quantized" if base is not None and packed else None,
        "library_name": "gguf",
        "language": languages or None,
        "tags": list(dict.fromkeys(["gguf", *(["quantized"] if packed else []), *chats, *tags])),
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value is not None]
    return "\n".join(["---", *lines, "---", ""])


def _about(file: GGUFFile, base: str | None) -> str:
    weights = decimal_count(sum(tensor.size for tensor in file.tensors.values()))
    source = "" if base is None else f", made from [{base}](https://huggingface.co/{base})"
    return f"GGUF files of a {file.architecture} model with {weights} parameters{source}."


def _table(cards: Sequence[CardFile]) -> list[str]:
    """The files, with figures where there are any. Each text has its own row."""
    texts = [measured for card in cards for measured in card.measured]
    columns = ["File", "Type", "Size", "Bits per weight"]
    some = {
        "KL divergence": any(measured.divergence is not None for measured in texts),
        "Same top token": any(measured.same_top is not None for measured in texts),
        "Perplexity": any(measured.perplexity is not None for measured in texts),
        "Text": any(measured.text for measured in texts),
    }
    shown = [name for name, there in some.items() if there]
    lines = [_row([*columns, *shown]), _row(["---"] * 2 + ["---:"] * (2 + len(shown)))]
    for card in cards:
        own = [card.name, card.type, binary_size(card.file_bytes), f"{card.bits_per_weight:.2f}"]
        for measured in card.measured or (Measured("", None, None, None, None),):
            figures = {
                "KL divergence": _number(measured.divergence, "{:.5f}"),
                "Same top token": _number(measured.same_top, "{:.2%}"),
                "Perplexity": _number(measured.perplexity, "{:.4f}"),
                "Text": measured.text,
            }
            lines.append(_row([*own, *(figures[name] for name in shown)]))
    bases = sorted({measured.base for measured in texts if measured.base and measured.divergence is not None})
    note = ["", f"KL divergence and the share of equal top tokens are relative to {', '.join(bases)}."] if bases else []
    return [*lines, *note, ""]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _imatrix(files: Sequence[GGUFFile]) -> list[str]:
    """What importance matrices the files were quantized with."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for file in files:
        name = _text(file, "quantize.imatrix.file")
        if name is not None:
            chunks = file.get("quantize.imatrix.chunks_count")
            key = Path(name).name, Path(_text(file, "quantize.imatrix.dataset") or "").name, str(chunks or "")
            found.setdefault(key, []).append(file.path.name)
    lines = []
    for (name, text, chunks), names in found.items():
        what = f"the importance matrix `{name}`" + (f" of the text `{text}`" if text else "")
        amount = f", {chunks} chunks" if chunks else ""
        whose = "All files" if len(names) == len(files) else ", ".join(names)
        lines.append(f"{whose}: quantized with {what}{amount}.")
    return [*lines, ""] if lines else []


def _made_by(
    command: str | None, base: str | None, cards: Sequence[CardFile], files: Sequence[GGUFFile]
) -> list[str]:
    """The command that was given, or else one for the recorded types, where the files record all of its options."""
    if command is None:
        types = list(dict.fromkeys(card.type for card in cards))
        with_imatrix = any(file.get("quantize.imatrix.file") is not None for file in files)
        if base is None or "mixed" in types or with_imatrix:
            return []
        command = f"quantize {base} --type {','.join(types)}"
        return ["These types are made by:", "", "```", command, "```", ""]
    return ["Made with:", "", "```", command, "```", ""]


def _use(repository: str, file: GGUFFile, cards: Sequence[CardFile]) -> list[str]:
    chats = CHAT_TEMPLATE in file.metadata
    name = cards[0].name
    return [
        "```",
        f"hf download {repository} {name} --local-dir .",
        f"quantize run {name}{' --chat' if chats else ' --prompt TEXT'}",
        f"llama-cli -m {name}",
        "```",
    ]
