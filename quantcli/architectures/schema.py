"""The schema of architecture files: their tables as frozen dataclasses.

Files are validated here, when they are read, so that a mistake in a data file is reported with the file's name.
"""

from __future__ import annotations

import string as string_module
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from quantcli.architectures.expressions import Call, Expression
from quantcli.architectures.gguf_fields import FIELD_TYPES
from quantcli.architectures.graph import Graph
from quantcli.architectures.hf_config import OrNull
from quantcli.architectures.tables import class_defaults, merged_tables
from quantcli.architectures.transforms import GATHERS, GENERATORS, TRANSFORMS
from quantcli.core.errors import FormatError
from quantcli.formats.gguf.spec import MAX_NAME_LENGTH

_FILE_KEYS: Final = {
    "gguf",
    "title",
    "classes",
    "enclosing_classes",
    "model_types",
    "when",
    "classless",
    "base_prefix",
    "drop_prefixes",
    "drop_from_names",
    "replace_in_names",
    "rename_endings",
    "refused",
    "ignore",
    "store_as_float32",
    "indices",
    "derived_indices",
    "kinds",
    "optional_kind",
    "values",
    "metadata",
    "metadata_order",
    "metadata_last",
    "vocabulary",
    "generated",
    "tensors",
    "graph",
    "defaults",
    "export",
}
Row = TypeVar("Row")

_ALWAYS: Final = Expression("True")
_NEVER: Final = Expression("False")


@dataclass(frozen=True)
class MetadataRow:
    """A GGUF key, the expression for its value, and when it is written. `{arch}` in the key is the GGUF architecture."""

    key: str
    type: str
    value: Expression
    when: Expression = _ALWAYS
    required: bool = False
    map: Mapping[str, Any] | None = None
    """Maps the value in config.json to the value in GGUF."""

    early: bool = False
    """Whether the reference converter writes it with the tensors, before the general metadata."""

    in_place: Expression | None = None
    """For a row of `metadata_last`: whether the reference converter writes it in its place first, and updates it later."""


@dataclass(frozen=True)
class TensorRow:
    """A GGUF tensor, the checkpoint tensors it is made of, and how.

    - `sources` are name patterns. A placeholder such as `{expert}` that the GGUF name lacks runs over all its indices.
    - `shape` is the shape each source must have. A dimension that evaluates to None is not checked.
    - Tensors of one `group` are written together, at the position of the last of their sources.
    - `alternatives` are other layouts of the same tensor in checkpoints. The first whose sources exist is used.
    - The tensor is left out if its source has the same data as the source of the GGUF tensor `unless_equal`.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[Expression, ...] | None
    gather: str | None = None
    transforms: tuple[Call, ...] = ()
    when: Expression = _ALWAYS
    required: Expression = _ALWAYS
    group: str | None = None
    unless_equal: str | None = None
    exported: Expression = _NEVER
    """Of an alternative: whether `quantize export` writes this layout, and not that of the row."""
    alternatives: tuple[TensorRow, ...] = ()


@dataclass(frozen=True)
class IgnoreRow:
    """Tensors of a checkpoint that a GGUF file does not need."""

    pattern: str
    """A glob of names. `{name}` in it is replaced by a value."""

    why: str
    if_zero: bool = False
    """Whether they are ignored only where all their elements are zero."""

    @classmethod
    def parse(cls, pattern: str, given: str | dict[str, Any]) -> Self:
        """The row of an entry of `[ignore]`; a string is the reason. Raises ValueError for unbalanced braces."""
        placeholders(pattern)
        return cls(pattern=pattern, **({"why": given} if isinstance(given, str) else given))


@dataclass(frozen=True)
class GeneratedRow:
    """A GGUF tensor that is computed from config.json alone."""

    name: str
    generator: Call
    when: Expression = _ALWAYS


@dataclass(frozen=True)
class VocabularyRules:
    """What the reference converter does to the vocabularies of this architecture only.

    Roles of special tokens are those of `quantcli.formats.gguf.vocabulary`: `bos`, `eos`, `eot` ...
    """

    copy_space_prefix: bool = False
    """Whether `add_prefix_space` of tokenizer_config.json is written."""

    late_space_prefix: bool = False
    """Whether the same is done, but after the tokens."""

    copy_dummy_prefix: bool = False
    """Whether `add_dummy_prefix` of tokenizer.model is written as add_space_prefix."""

    space_prefix: bool | None = None
    """A fixed value of add_space_prefix."""

    flat_scores: bool = False
    """Whether the reference converter gives all tokens the same score where there is a tokenizer.json but no
    tokenizer.model. Texts are then not tokenized as in training, so this is done only to reproduce the reference."""

    literal_added: bool = False
    """Whether added tokens of tokenizer.model are control tokens only where marked as special, and keep their spelling.
    Those of tokenizer.json count too."""

    piece_texts: Mapping[str, str] = field(default_factory=dict)
    """Pieces of tokenizer.model that are written as another string."""

    unused_pieces: str = ""
    """The prefix of unused pieces in tokenizer.model."""

    unigram: bool = False
    """Whether a SentencePiece unigram model is written as such. Otherwise the reference converter writes it as BPE."""

    fairseq_ids: bool = False
    """Whether the ids of a unigram model's pieces are those of fairseq: `<s> <pad> </s> <unk>` for the first three."""

    missing_texts: Mapping[str, int] = field(default_factory=dict)
    """Control tokens that such a model lacks: string -> id."""

    token_type_count: bool = False
    """Whether the number of token types (segments) of BERT, `type_vocab_size`, is written with the vocabulary."""

    usual_tokenizer: str | None = None
    """The tokenizer to add to checkpoints that often come without one: `tokenizer.json of ORG/NAME`."""

    special: Mapping[str, int] = field(default_factory=dict)
    """Role -> id, for special tokens that the checkpoint does not set."""

    special_texts: Mapping[str, str] = field(default_factory=dict)
    """Role -> string of an added token, for special tokens that the checkpoint does not set. In a file also a
    list of pairs, which replaces what is inherited."""

    replaced_texts: Mapping[str, str] = field(default_factory=dict)
    """Role -> string of a token, which overrides the checkpoint where it has such a token."""

    replaced: Mapping[str, int | str] = field(default_factory=dict)
    """Role -> id, or name of a hyperparameter with the id, which overrides the checkpoint."""

    chat_template: str = ""
    """The chat template that replaces the checkpoint's."""

    first_end: str = ""
    """The role of the first `eos_token_id` in generation_config.json, where that is a list of several."""

    special_by_size: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """Vocabulary size -> role -> id, for models that only the size of their vocabulary identifies."""

    add: Mapping[str, bool] = field(default_factory=dict)
    """Role -> whether the token is added to a text, unless the checkpoint says otherwise."""

    add_by_size: Mapping[int, Mapping[str, bool]] = field(default_factory=dict)
    """Vocabulary size -> role -> whether the token is added to a text, which overrides the checkpoint."""

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """The rules in a table `[vocabulary]`.

        Raises:
            TypeError, ValueError: for an unknown key, or a size that is not a number.
        """
        by_size = {
            name: {int(size): roles for size, roles in entries.items()}
            for name, entries in table.items()
            if name.endswith("_by_size")
        }
        return cls(**{**table, **by_size, "special_texts": dict(table.get("special_texts", {}))})


@dataclass(frozen=True)
class Declaration:
    """An architecture file, merged with those it extends."""

    path: Path
    name: str
    gguf: str
    title: str
    classes: tuple[str, ...]
    when: Expression
    classless: Expression
    base_prefix: str
    drop_prefixes: tuple[str, ...]
    drop_from_names: tuple[str, ...]
    replace_in_names: Mapping[str, str]
    rename_endings: Mapping[str, str]
    refused: Mapping[str, Expression]
    ignore: tuple[IgnoreRow, ...]
    store_as_float32: tuple[str, ...]
    indices: Mapping[str, Expression]
    derived_indices: Mapping[str, Expression]
    values: Mapping[str, Expression]
    metadata: tuple[MetadataRow, ...]
    vocabulary: VocabularyRules
    generated: tuple[GeneratedRow, ...]
    tensors: tuple[TensorRow, ...]
    graph: Graph | None
    defaults: Mapping[str, Mapping[str, Any]] = field(repr=False)
    export: Mapping[str, Expression] = field(default_factory=dict)
    """Keys of config.json that GGUF does not record, as its graph has one value for them."""


def read_declaration(path: Path) -> Declaration | None:
    """Read an architecture file, and the files of the package it extends.

    None for a file without `gguf`: one that only others extend, or another kind of table.

    Raises:
        FormatError: if a file is missing, is not TOML, or does not follow the schema.
    """
    merged = merged_tables(path)
    if "gguf" not in merged:
        return None
    if unknown := sorted(merged.keys() - _FILE_KEYS):
        raise FormatError(path, f"not a valid architecture file: unknown keys {', '.join(unknown)}")
    try:
        return _declaration(path, merged)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise FormatError(path, f"not a valid architecture file: {what}") from error


def _declaration(path: Path, tables: dict[str, Any]) -> Declaration:
    metadata = _rows(tables["metadata"], _metadata_row)
    if (order := tables.get("metadata_order")) is not None:
        rows = {row.key: row for row in metadata}
        metadata = tuple(rows[key] for key in order)
    if (last := tables.get("metadata_last")) is not None:
        rows = {row.key: row for row in metadata}
        metadata = (*_in_their_places(metadata, last), *(rows[key] for key in last))
    indices = {name: _expression(source) for name, source in tables.get("indices", {}).items()}
    derived = {name: _expression(source) for name, source in tables.get("derived_indices", {}).items()}
    kinds = {name: _expression(source).source for name, source in tables.get("kinds", {}).items()}
    optional = kinds.get(tables.get("optional_kind", ""), "False")
    tensors = _rows(tables["tensors"], partial(_tensor_row, kinds=kinds, optional=optional))
    for row in tensors:
        _check_placeholders(row, indices.keys(), derived.keys())
    return Declaration(
        path=path,
        name=path.stem,
        gguf=_text("gguf", tables["gguf"]),
        title=_text("title", tables.get("title", path.stem)),
        classes=(*_texts("classes", tables), *_texts("enclosing_classes", tables)),
        when=_expression(tables.get("when", "True")),
        classless=_expression(tables.get("classless", "False")),
        base_prefix=_text("base_prefix", tables.get("base_prefix", "")),
        drop_prefixes=_texts("drop_prefixes", tables),
        drop_from_names=_texts("drop_from_names", tables),
        replace_in_names={old: _text(old, new) for old, new in tables.get("replace_in_names", {}).items()},
        rename_endings={old: _text(old, new) for old, new in tables.get("rename_endings", {}).items()},
        refused={what: _expression(test) for what, test in tables.get("refused", {}).items() if test is not False},
        ignore=tuple(
            IgnoreRow.parse(pattern, given) for pattern, given in tables.get("ignore", {}).items() if given is not False
        ),
        store_as_float32=_texts("store_as_float32", tables),
        indices=indices,
        derived_indices=derived,
        values={name: _expression(source) for name, source in tables.get("values", {}).items()},
        metadata=metadata,
        vocabulary=VocabularyRules.parse(tables.get("vocabulary", {})),
        generated=_rows(tables.get("generated", {}), _generated_row),
        tensors=tensors,
        graph=Graph.parse(tables["graph"]) if "graph" in tables else None,
        export={name: _expression(source) for name, source in tables.get("export", {}).items()},
        defaults=_defaults(_texts("model_types", tables), tables.get("defaults", {})),
    )


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {value!r}, expected a text")
    return value


def _texts(key: str, tables: Mapping[str, Any]) -> tuple[str, ...]:
    values = tables.get(key, [])
    if not isinstance(values, list):
        raise ValueError(f"{key!r} is {values!r}, expected a list of texts")
    return tuple(_text(key, value) for value in values)


def _expression(source: Any) -> Expression:
    if not isinstance(source, str):
        raise ValueError(f"{source!r} is not an expression, which is a text")
    return Expression(source)


def _rows(table: dict[str, Any], make: Callable[[str, dict[str, Any]], Row]) -> tuple[Row, ...]:
    """One row per entry."""
    rows = []
    for name, entry in table.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{name!r} is {entry!r}, expected a table")
        try:
            rows.append(make(name, dict(entry)))
        except KeyError as error:
            raise ValueError(f"{name!r} lacks {error.args[0]!r}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{name!r}: {error}") from error
    return tuple(rows)


def _in_their_places(rows: Sequence[MetadataRow], last: Sequence[str]) -> Iterator[MetadataRow]:
    """All rows but those in `last`, and of these the ones that are written in place first."""
    for row in rows:
        if row.key not in last:
            yield row
        elif row.in_place is not None:
            yield replace(row, when=Expression(f"({row.in_place.source}) and ({row.when.source})"))


def _metadata_row(key: str, entry: dict[str, Any]) -> MetadataRow:
    _one_of(entry["type"], FIELD_TYPES, "type")
    if "in_place" in entry:
        entry["in_place"] = _expression(entry["in_place"])
    return MetadataRow(**{**entry, "key": key, "value": _expression(entry["value"]), "when": _condition(entry, "when")})


def _tensor_row(name: str, entry: dict[str, Any], kinds: Mapping[str, str], optional: str) -> TensorRow:
    """The row of an entry. No tensor of a layer for which the expression `optional` is true is required."""
    entry = _without_false(entry)
    others = entry.pop("or", ())
    alternatives = tuple(_tensor_row(name, {**entry, **other}, kinds, optional) for other in others)
    if (kind := entry.pop("kind", None)) is not None:
        _one_of(kind, kinds, "kind of layer")
        entry["when"] = f"({kinds[kind]}) and ({_condition(entry, 'when').source})"
    if "layer" in placeholders(name) and optional != "False":
        entry["required"] = f"({_condition(entry, 'required').source}) and not ({optional})"
    given = entry.pop("from")
    sources = tuple(given) if isinstance(given, list) else (given,)
    transforms = tuple(Call.parse(source) for source in entry.pop("transforms", ()))
    shape = entry.pop("shape", None)
    row = TensorRow(
        **{
            **entry,
            "name": name,
            "sources": sources,
            "shape": None if shape is None else tuple(_expression(extent) for extent in shape),
            "transforms": transforms,
            "when": _condition(entry, "when"),
            "required": _condition(entry, "required"),
            "exported": _condition(entry, "exported", default=False),
            "alternatives": alternatives,
        }
    )
    for call in transforms:
        _one_of(call.name, TRANSFORMS, "transform")
        signature(TRANSFORMS[call.name].apply).bind("tensor", *call.arguments)
    if row.gather is not None:
        _one_of(row.gather, GATHERS, "gather")
    return row


def _without_false(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without keys that are set to false to remove them. Conditions may be false."""
    return {key: value for key, value in entry.items() if value is not False or key in ("when", "required")}


def _generated_row(name: str, entry: dict[str, Any]) -> GeneratedRow:
    generator = Call.parse(entry["generator"])
    _one_of(generator.name, GENERATORS, "generator")
    signature(GENERATORS[generator.name].apply).bind(*generator.arguments)
    return GeneratedRow(name, generator, _condition(entry, "when"))


def _condition(entry: dict[str, Any], key: str, *, default: bool = True) -> Expression:
    given = entry.get(key, default)
    return Expression(given if isinstance(given, str) else repr(bool(given)))


def _one_of(name: str, vocabulary: Mapping[str, Any], kind: str) -> None:
    if name not in vocabulary:
        raise ValueError(f"unknown {kind} {name!r}, expected one of {', '.join(sorted(vocabulary))}")


def _defaults(kinds: Sequence[str], own: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The defaults of each model type: those of its configuration class, overridden by those in the file."""
    of_classes = {kind: class_defaults(kind) for kind in kinds}
    return {
        kind: {key: _default_value(value) for key, value in {**of_classes.get(kind, {}), **own.get(kind, {})}.items()}
        for kind in dict.fromkeys([*kinds, *own])
    }


def _default_value(value: Any) -> Any:
    """The default in an entry: a constant, or the table form of an `Expression` or `OrNull`."""
    match value:
        case {"value": str(source), **others} if not others:
            return Expression(source)
        case {"or_null": constant, **others} if not others:
            return OrNull(constant)
        case {"or_null": constant, "null": str(source), **others} if not others:
            return OrNull(constant, Expression(source))
        case _:
            return value


def placeholders(pattern: str) -> frozenset[str]:
    """The names in braces of a name pattern."""
    return frozenset(name for _, name, _, _ in string_module.Formatter().parse(pattern) if name is not None)


def _check_placeholders(row: TensorRow, indices: Set[str], derived: Set[str]) -> None:
    if len(row.name) > MAX_NAME_LENGTH:
        raise ValueError(f"{row.name!r} is longer than the {MAX_NAME_LENGTH} bytes GGUF allows")
    used = placeholders(row.name).union(*(placeholders(source) - derived for source in row.sources))
    if undeclared := sorted(used - indices):
        raise ValueError(f"{row.name!r} uses the undeclared index {undeclared[0]!r}")
    gathers = len(row.sources) > 1 or any(placeholders(source) - placeholders(row.name) - derived for source in row.sources)
    if gathers != (row.gather is not None):
        raise ValueError(f"{row.name!r} is made of {'several tensors' if gathers else 'one tensor'}: see `gather`")
    for alternative in row.alternatives:
        _check_placeholders(alternative, indices, derived)
