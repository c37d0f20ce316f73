"""The shape of an architecture file: its tables as frozen rows.

Everything is checked here, when a file is read, so that a mistake in a data file is reported with the file's name and never
surfaces as a strange conversion.
"""

from __future__ import annotations

import string as string_module
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "kinds",
    "values",
    "metadata",
    "metadata_order",
    "metadata_last",
    "vocabulary",
    "generated",
    "tensors",
    "graph",
    "defaults",
}
Row = TypeVar("Row")

_ALWAYS: Final = Expression("True")


@dataclass(frozen=True)
class MetadataRow:
    """A GGUF key, the expression for its value, and when it is written. `{arch}` in the key is the GGUF architecture."""

    key: str
    type: str
    value: Expression
    when: Expression = _ALWAYS
    required: bool = False
    map: Mapping[str, Any] | None = None
    """From what the configuration says to what GGUF says."""

    early: bool = False
    """Whether the reference writes it with the tensors, before all that it knows of the model as a whole."""

    in_place: Expression | None = None
    """For a row of `metadata_last`: whether the reference writes it in its place first, and then only changes it."""


@dataclass(frozen=True)
class TensorRow:
    """A GGUF tensor, the checkpoint tensors it is made of, and how.

    `sources` are name patterns; a placeholder such as `{expert}` that the GGUF name lacks runs over all its numbers.
    `shape` is the shape each source must have; a dimension that evaluates to nothing is not checked. Tensors of one `group`
    are written together, once the last of their sources has come by. `alternatives` are other ways in which checkpoints
    hold the same tensor: the first of all whose sources are there is taken. A tensor whose source has the same numbers as
    the source of the GGUF tensor `unless_equal` is left out.
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
    alternatives: tuple[TensorRow, ...] = ()


@dataclass(frozen=True)
class IgnoreRow:
    """Tensors of a checkpoint that a GGUF file does not need."""

    pattern: str
    """A glob of names; `{name}` in it stands for a value."""

    why: str
    if_zero: bool = False
    """Whether they are needed after all where they hold a number other than zero."""

    @classmethod
    def parse(cls, pattern: str, given: str | dict[str, Any]) -> Self:
        """The row of an entry of `[ignore]`, of which a text is the reason. Raises ValueError where braces do not match."""
        placeholders(pattern)
        return cls(pattern=pattern, **({"why": given} if isinstance(given, str) else given))


@dataclass(frozen=True)
class GeneratedRow:
    """A GGUF tensor that follows from the configuration alone."""

    name: str
    generator: Call
    when: Expression = _ALWAYS


@dataclass(frozen=True)
class VocabularyRules:
    """What the reference converter does to the vocabularies of an architecture beside what it does to all.

    Roles of special tokens are those of `quantcli.formats.gguf.vocabulary`: `bos`, `eos`, `eot` ...
    """

    copy_space_prefix: bool = False
    """Whether `add_prefix_space` of tokenizer_config.json is written."""

    copy_dummy_prefix: bool = False
    """Whether it is written that texts get a space in front, or do not, as tokenizer.model says."""

    space_prefix: bool | None = None
    """Whether texts get a space in front, where that is fixed."""

    flat_scores: bool = False
    """Whether the reference makes a tokenizer.json without tokenizer.model a vocabulary whose scores are all the same. With
    these, texts are not tokenized as the model was trained: they are written only where the reference's are asked for."""

    literal_added: bool = False
    """Whether tokens added to tokenizer.model are control tokens only where marked as special, and keep the spelling
    they have, and those of tokenizer.json count too."""

    piece_texts: Mapping[str, str] = field(default_factory=dict)
    """Pieces of tokenizer.model that are written as something else."""

    unused_pieces: str = ""
    """How the pieces of tokenizer.model begin that no text is cut into."""

    unigram: bool = False
    """Whether a unigram model of SentencePiece stays one. Elsewhere the reference writes it as if it were BPE."""

    fairseq_ids: bool = False
    """Whether the ids of a unigram model's pieces are those of fairseq: `<s> <pad> </s> <unk>` for the first three."""

    missing_texts: Mapping[str, int] = field(default_factory=dict)
    """Control tokens such a model lacks: text -> id."""

    token_type_count: bool = False
    """Whether the number of BERT's segment types, `type_vocab_size`, is written with the vocabulary."""

    usual_tokenizer: str | None = None
    """What to put beside checkpoints that often come without a tokenizer: `tokenizer.json of ORG/NAME`."""

    special: Mapping[str, int] = field(default_factory=dict)
    """Role -> id, for roles a checkpoint does not name."""

    special_texts: Mapping[str, str] = field(default_factory=dict)
    """The same by the texts of added tokens."""

    replaced_texts: Mapping[str, str] = field(default_factory=dict)
    """The same, whatever the checkpoint says, where it has a token of this text."""

    replaced: Mapping[str, int | str] = field(default_factory=dict)
    """The same, whatever the checkpoint says: an id, or the name of the hyperparameter that has it if any does."""

    first_end: str = ""
    """The role of the first of several ends that generation_config.json lists, where it lists several."""

    special_by_size: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """The same for models that are told by the size of their vocabulary."""

    add: Mapping[str, bool] = field(default_factory=dict)
    """Role -> whether it is added around a text, unless the checkpoint says otherwise."""

    add_by_size: Mapping[int, Mapping[str, bool]] = field(default_factory=dict)
    """Vocabulary size -> role -> whether it is added around a text, whatever the checkpoint says."""

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """The rules in a table `[vocabulary]`.

        Raises:
            TypeError, ValueError: if it has a key that is no rule, or a size that is no number.
        """
        by_size = {
            name: {int(size): roles for size, roles in entries.items()}
            for name, entries in table.items()
            if name.endswith("_by_size")
        }
        return cls(**{**table, **by_size})


@dataclass(frozen=True)
class Declaration:
    """An architecture file, with everything it extends merged in."""

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
    values: Mapping[str, Expression]
    metadata: tuple[MetadataRow, ...]
    vocabulary: VocabularyRules
    generated: tuple[GeneratedRow, ...]
    tensors: tuple[TensorRow, ...]
    graph: Graph | None
    defaults: Mapping[str, Mapping[str, Any]] = field(repr=False)


def read_declaration(path: Path) -> Declaration | None:
    """Read an architecture file, and the files of the package it extends.

    None for a file that names no `gguf` architecture: one that is only there to be extended, or another kind of table.

    Raises:
        FormatError: if a file is missing, is not TOML, or says something an architecture file cannot say.
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
    kinds = {name: _expression(source).source for name, source in tables.get("kinds", {}).items()}
    tensors = _rows(tables["tensors"], partial(_tensor_row, kinds=kinds))
    for row in tensors:
        _check_placeholders(row, indices)
    return Declaration(
        path=path,
        name=path.stem,
        gguf=_text("gguf", tables["gguf"]),
        title=_text("title", tables.get("title", path.stem)),
        classes=_texts("classes", tables),
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
        values={name: _expression(source) for name, source in tables.get("values", {}).items()},
        metadata=metadata,
        vocabulary=VocabularyRules.parse(tables.get("vocabulary", {})),
        generated=_rows(tables.get("generated", {}), _generated_row),
        tensors=tensors,
        graph=Graph.parse(tables["graph"]) if "graph" in tables else None,
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
    """The rows that do not come last, and of those that do what stands in its place already."""
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


def _tensor_row(name: str, entry: dict[str, Any], kinds: Mapping[str, str]) -> TensorRow:
    entry = _without_false(entry)
    others = entry.pop("or", ())
    alternatives = tuple(_tensor_row(name, {**entry, **other}, kinds) for other in others)
    if (kind := entry.pop("kind", None)) is not None:
        _one_of(kind, kinds, "kind of layer")
        entry["when"] = f"({kinds[kind]}) and ({_condition(entry, 'when').source})"
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
            "alternatives": alternatives,
        }
    )
    for call in transforms:
        _one_of(call.name, TRANSFORMS, "transform")
        signature(TRANSFORMS[call.name]).bind("tensor", *call.arguments)
    if row.gather is not None:
        _one_of(row.gather, GATHERS, "gather")
    return row


def _without_false(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without what was set to false to be rid of it; conditions may be false."""
    return {key: value for key, value in entry.items() if value is not False or key in ("when", "required")}


def _generated_row(name: str, entry: dict[str, Any]) -> GeneratedRow:
    generator = Call.parse(entry["generator"])
    _one_of(generator.name, GENERATORS, "generator")
    signature(GENERATORS[generator.name]).bind(*generator.arguments)
    return GeneratedRow(name, generator, _condition(entry, "when"))


def _condition(entry: dict[str, Any], key: str) -> Expression:
    given = entry.get(key, True)
    return Expression(given if isinstance(given, str) else repr(bool(given)))


def _one_of(name: str, vocabulary: Mapping[str, Any], kind: str) -> None:
    if name not in vocabulary:
        raise ValueError(f"unknown {kind} {name!r}, expected one of {', '.join(sorted(vocabulary))}")


def _defaults(kinds: Sequence[str], own: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The defaults of each model type: what the file says of it, laid over what its configuration class assumes."""
    of_classes = {kind: class_defaults(kind) for kind in kinds}
    return {
        kind: {key: _default_value(value) for key, value in {**of_classes.get(kind, {}), **own.get(kind, {})}.items()}
        for kind in dict.fromkeys([*kinds, *own])
    }


def _default_value(value: Any) -> Any:
    """A constant as it is; of tables with one key what they stand for."""
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


def _check_placeholders(row: TensorRow, indices: Mapping[str, Expression]) -> None:
    if len(row.name) > MAX_NAME_LENGTH:
        raise ValueError(f"{row.name!r} is longer than the {MAX_NAME_LENGTH} bytes GGUF allows")
    used = placeholders(row.name).union(*(placeholders(source) for source in row.sources))
    if undeclared := sorted(used - indices.keys()):
        raise ValueError(f"{row.name!r} uses the undeclared index {undeclared[0]!r}")
    gathers = len(row.sources) > 1 or any(placeholders(source) - placeholders(row.name) for source in row.sources)
    if gathers != (row.gather is not None):
        raise ValueError(f"{row.name!r} is made of {'several tensors' if gathers else 'one tensor'}: see `gather`")
    for alternative in row.alternatives:
        _check_placeholders(alternative, indices)
