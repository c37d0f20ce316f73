"""The `general.*` metadata of a GGUF file: the model's name, its origin, its recommended sampling parameters.

They are read from the model card's front matter, config.json, the directory's name and generation_config.json. Precedence,
keys, types and order are those of `gguf-py/gguf/metadata.py` of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from quantcli.architectures.gguf_fields import FIELD_TYPES, plain_value
from quantcli.conversion.metadata.model_id import ModelId, count_parameters, parse_model_id, title
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.gguf.spec import Metadata, ValueType, array, string, u32
from quantcli.tensors.tensor import TensorInfo

MAX_CARD: Final = 1 << 20
"""Bytes of a model card that are read; the front matter is at its start."""

_SAMPLING: Final[Mapping[str, tuple[tuple[str, ...], str]]] = MappingProxyType(
    {
        "sequence": (("sequence",), "string"),
        "top_k": (("top_k",), "i32"),
        "top_p": (("top_p",), "f32"),
        "min_p": (("min_p",), "f32"),
        "xtc_probability": (("xtc_probability",), "f32"),
        "xtc_threshold": (("xtc_threshold",), "f32"),
        "temp": (("temperature",), "f32"),
        "penalty_last_n": (("penalty_last_n",), "i32"),
        "penalty_repeat": (("penalty_repeat", "repetition_penalty"), "f32"),
        "mirostat": (("mirostat",), "i32"),
        "mirostat_tau": (("mirostat_tau",), "f32"),
        "mirostat_eta": (("mirostat_eta",), "f32"),
    }
)
"""KEY of `general.sampling.KEY` -> the keys of generation_config.json it is taken from, and its type."""

_CARD: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "name": ("name", "model_name"),
        "author": ("author", "model_author", "model_creator"),
        "version": ("version", "model_version"),
        "organization": ("organization", "model_organization"),
        "finetune": ("finetune", "model_finetune"),
        "basename": ("basename", "model_basename", "model_type"),
        "description": ("description", "model_description"),
        "size_label": ("size_label", "model_size_label"),
        "license": ("license",),
        "license.name": ("license_name",),
        "license.link": ("license_link",),
        "source.url": ("url", "model_url"),
        "source.doi": ("doi", "model_doi"),
        "source.uuid": ("uuid", "model_uuid"),
        "source.repo_url": ("repo_url", "model_repo_url"),
    }
)
"""KEY of `general.KEY`, in the order of writing -> the keys of the model card's front matter it is taken from."""

_RELATED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "base_model": ("base_model", "base_models", "base_model_sources"),
        "dataset": ("datasets", "dataset", "dataset_sources"),
    }
)
"""KEY of `general.KEY.count` and `general.KEY.N.*` -> the keys of the model card's list."""

_RELATED_FIELDS: Final = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")

_LISTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "tags": ("tags", "pipeline_tag"),
        "languages": ("languages", "language"),
    }
)
"""KEY of `general.KEY` -> the keys of the model card whose entries it collects."""

_HUB_URL: Final = re.compile(r"https?://huggingface.co/([^/]+/[^/]+)$")


def general_metadata(
    checkpoint: Checkpoint,
    architecture: str,
    tensors: Sequence[TensorInfo],
    *,
    model_id: str | None = None,
    adapter: str | None = None,
    as_reference: bool = False,
) -> Metadata:
    """Everything under `general.` but the file type and the quantization version, in llama.cpp's order.

    Args:
        checkpoint: has the model card and the configurations.
        architecture: the value of `general.architecture`.
        tensors: the tensors of the GGUF file, for the size label. For an adapter: the weights that it adapts.
        model_id: the name of the model, where the directory's name is another (`ORG/NAME` of the hub).
        adapter: the kind of an adapter, such as `lora`; None for a model.
        as_reference: read the model card as llama.cpp does, where words such as `on` are booleans.
    """
    parameters, size_label = count_parameters(tensors)
    if adapter:
        parameters = -parameters
    card = read_model_card(checkpoint.file("README.md"), as_reference=as_reference)
    texts = _described(checkpoint, card, model_id, parameters)
    texts["name"] = texts["name"] or checkpoint.directory.name
    texts["size_label"] = texts["size_label"] or (size_label if parameters > 0 else None)
    metadata: Metadata = {"general.architecture": string(architecture)}
    if adapter:
        metadata |= {"general.type": string("adapter"), "adapter.type": string(adapter)}
    else:
        metadata["general.type"] = string("model")
    metadata |= _sampling(checkpoint)
    metadata |= {f"general.{key}": string(text) for key, text in texts.items() if text}
    for key, card_keys in _RELATED.items():
        if any(card_key in card for card_key in card_keys):
            metadata |= _related(key, _first(card, card_keys), parameters)
    for key, card_keys in _LISTS.items():
        entries = [text for card_key in card_keys for text in _texts(_entries(card.get(card_key)))]
        if entries:
            metadata[f"general.{key}"] = array(ValueType.STRING, entries)
    return metadata


def read_model_card(path: Path | None, *, as_reference: bool = False) -> dict[str, Any]:
    """The YAML front matter of a model card; empty where there is none or it cannot be parsed, since nothing depends on it.

    Booleans are those of YAML 1.2, `true` and `false`: `no` and `on` are strings. With `as_reference` they are those of
    YAML 1.1, except that a list entry `no` is a string.
    """
    if path is None:
        return {}
    with path.open("rb") as file:
        text = file.read(MAX_CARD).decode("utf-8-sig", errors="replace")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    text = "\n".join(lines[1:end]) + "\n"
    text = text.replace("- no\n", '- "no"\n').replace("\t", "  ")  # as llama.cpp does; YAML forbids tabs
    import yaml  # type: ignore[import-untyped]

    loader = yaml.SafeLoader if as_reference else _loader_of_yaml_1_2(yaml)
    try:
        card = yaml.load(text, loader)
    except Exception:  # for a value with a wrong tag PyYAML raises errors of any class
        return {}
    return card if isinstance(card, dict) else {}


def _loader_of_yaml_1_2(yaml: Any) -> Any:
    """A safe loader whose only booleans are `true` and `false`."""
    boolean = "tag:yaml.org,2002:bool"
    loader: Any = type("CoreLoader", (yaml.SafeLoader,), {})
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != boolean]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    loader.add_implicit_resolver(boolean, re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))
    return loader


def _first(table: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((table[key] for key in keys if table.get(key) is not None), None)


def _entries(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) else []


def _described(
    checkpoint: Checkpoint, card: Mapping[str, Any], model_id: str | None, parameters: int
) -> dict[str, str | None]:
    """The strings of `_CARD`, from the model card or else from the model's names."""
    texts: dict[str, str | None] = {key: _text(_first(card, card_keys)) for key, card_keys in _CARD.items()}
    for name in _names(checkpoint, model_id):
        parsed = _titled(parse_model_id(name, parameters))
        for key, text in asdict(parsed).items():
            if texts[key] is None:
                texts[key] = text
    return texts


def _names(checkpoint: Checkpoint, model_id: str | None) -> list[str]:
    """The names of the model, the most trusted first."""
    configured = checkpoint.config.get("_name_or_path")
    trusted = [configured] if isinstance(configured, str) and configured.count("/") <= 1 else []
    return [*trusted, model_id or checkpoint.directory.name or checkpoint.directory.resolve().name]


def _titled(parsed: ModelId) -> ModelId:
    return replace(
        parsed,
        name=None if parsed.name is None else title(parsed.name),
        organization=None if parsed.organization is None else title(parsed.organization),
    )


def _text(value: Any) -> str | None:
    """A value of the model card as a string. A list, such as one of licenses, is joined by commas."""
    return ",".join(_texts(value if isinstance(value, list) else [value])) or None


def _texts(values: Sequence[Any]) -> list[str]:
    """The values that are a string, a number or a date, as strings. Tables and lists are dropped."""
    return [_joined(str(value)) for value in values if isinstance(value, str | int | float | date)]


def _joined(text: str) -> str:
    """A string with surrogate pairs, as JSON writes an emoji, joined to characters. Lone surrogates become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _sampling(checkpoint: Checkpoint) -> Metadata:
    generation, found = checkpoint.generation_config(), Metadata()
    for key, (names, kind) in _SAMPLING.items():
        value = _first(generation, names)
        # generation_config.json only recommends: values of a wrong type are skipped.
        with suppress(TypeError, ValueError, OverflowError):
            if value != "":
                found[f"general.sampling.{key}"] = FIELD_TYPES[kind](value)
    return found


def generation_parameters(metadata: Metadata) -> dict[str, Any]:
    """The sampling parameters that the metadata recommend, under their names in generation_config.json."""
    found = {names[-1]: metadata.get(f"general.sampling.{key}") for key, (names, _) in _SAMPLING.items()}
    return {name: plain_value(field) for name, field in found.items() if field is not None}


def _related(key: str, value: Any, parameters: int) -> Metadata:
    entries = [_related_entry(entry, parameters) for entry in _entries(value)]
    metadata: Metadata = {f"general.{key}.count": u32(len(entries))}
    for number, entry in enumerate(entries):
        metadata |= {
            f"general.{key}.{number}.{name}": string(text) for name in _RELATED_FIELDS if (text := _text(entry.get(name)))
        }
    return metadata


def _related_entry(entry: Any, parameters: int) -> Mapping[str, Any]:
    """A base model or a dataset: a table as it is, a name or a URL parsed."""
    if isinstance(entry, dict):
        return entry
    if not isinstance(entry, str):
        return {}
    address = entry.startswith(("http://", "https://", "ssh://"))
    hub = _HUB_URL.match(entry) if address else None
    if address and hub is None:
        return {"repo_url": entry}
    parsed = parse_model_id(hub.group(1) if hub else entry, parameters)
    titled = _titled(parsed)
    known = {"name": titled.name, "organization": titled.organization, "version": parsed.version}
    if address:
        return {**known, "repo_url": entry}
    if parsed.organization is None:
        return known
    return {**known, "repo_url": f"https://huggingface.co/{parsed.organization}/{parsed.name}"}
