"""Architectures: identifies that of a checkpoint, and converts its metadata and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Final

from quantcli.architectures.adapter_mapping import map_adapter
from quantcli.architectures.gguf_fields import FIELD_TYPES
from quantcli.architectures.graph import Graph
from quantcli.architectures.hf_config import complete_config, hyperparameters
from quantcli.architectures.mapping import map_tensors
from quantcli.architectures.schema import (
    Declaration,
    MetadataRow,
    VocabularyRules,
    read_declaration,
)
from quantcli.architectures.tables import headings
from quantcli.core.errors import ModelError, UnsupportedError, clipped, shown
from quantcli.formats.adapters import LowRank
from quantcli.formats.checkpoint.nested import text_config
from quantcli.formats.gguf.spec import Field, Metadata, string
from quantcli.tensors.tensor import Tensor


@dataclass(frozen=True)
class Architecture:
    """A model architecture, as declared in its TOML file."""

    declaration: Declaration

    @property
    def name(self) -> str:
        """The name of the TOML file, which is quantcli's name for the architecture."""
        return self.declaration.name

    @property
    def gguf(self) -> str:
        """The value of `general.architecture` in GGUF."""
        return self.declaration.gguf

    @property
    def title(self) -> str:
        """The display name."""
        return self.declaration.title

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in `architectures` of config.json for this architecture."""
        return self.declaration.classes

    @property
    def vocabulary(self) -> VocabularyRules:
        """The rules for its vocabularies."""
        return self.declaration.vocabulary

    @property
    def graph(self) -> Graph | None:
        """The graph flags of the forward pass, if declared."""
        return self.declaration.graph

    def hyperparameters(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of the TOML file's expressions, with their values for this configuration.

        They are the keys of `config` with the defaults of its `model_type`, the table `rope`, and the `[values]`.

        Raises:
            ModelError: if a value cannot be computed from the configuration.
            UnsupportedError: for a variant without GGUF equivalent.
        """
        completed = complete_config(config, self.declaration.defaults)
        scope = hyperparameters(completed, self.declaration.values)
        for what, test in self.declaration.refused.items():
            if test.evaluate(scope):
                raise UnsupportedError(f"config.json: {self.title} {what} has no equivalent in GGUF ({test.source})")
        return scope

    def metadata(self, config: Mapping[str, Any], file_type: int | None = None) -> Metadata:
        """The hyperparameters as GGUF metadata, in the order and with the types the reference converter writes.

        Args:
            config: the parsed `config.json`.
            file_type: the value of `general.file_type`, which the reference writes among these; left out where None.

        Raises:
            ModelError: if a required value is absent, or has the wrong type.
            UnsupportedError: for a variant without GGUF equivalent.
        """
        scope = {**self.hyperparameters(config), "file_type": file_type}
        return self._fields(self.declaration.metadata, scope)

    def early_metadata(self, config: Mapping[str, Any]) -> Metadata:
        """`general.architecture`, and those of `metadata(config)` that come first in a file.

        Raises:
            ModelError, UnsupportedError: as `metadata`.
        """
        early = [row for row in self.declaration.metadata if row.early]
        return {"general.architecture": string(self.gguf)} | self._fields(early, self.hyperparameters(config))

    def _fields(self, rows: Sequence[MetadataRow], scope: Mapping[str, Any]) -> Metadata:
        found: Metadata = {}
        for row in rows:
            key = row.key.format(arch=self.gguf)
            if row.when.evaluate(scope) and (field := _field(key, row, row.value.evaluate(scope))) is not None:
                found[key] = field
        return found

    def tensors(self, checkpoint_tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of the GGUF file: lazy, named and transformed, in the order of the reference converter.

        A tensor keeps its type in the checkpoint, except that GGUF readers require F32 for some (vectors, norms, routers
        ...). Types other than F32, F16 and BF16 become F32. The reference converter writes the same with the matching
        `--outtype`; a checkpoint of mixed types is converted without loss.

        Args:
            checkpoint_tensors: by their names in the checkpoint, in the order of its files (within a file, of the names).
            config: the parsed `config.json`.

        Raises:
            ModelError: naming all tensors that are missing, unknown or have the wrong shape. No data has been read by then,
                and no memory has been allocated whose size config.json alone determines.
        """
        return map_tensors(self.declaration, checkpoint_tensors, self.hyperparameters(config))

    def adapted(self, adapter: Mapping[str, LowRank | Tensor], config: Mapping[str, Any]) -> list[LowRank | Tensor]:
        """An adapter's tensors, named and transformed as those of the GGUF file, in the reference converter's order.

        Full tensors come before LoRA pairs.

        Args:
            adapter: by the names of the checkpoint's tensors, in the order of the adapter's file.
            config: the parsed `config.json` of the model.

        Raises:
            ModelError: naming all tensors that belong to none of the model or have the wrong shape.
            UnsupportedError: for a transform that cannot be applied to a LoRA pair.
        """
        return map_adapter(self.declaration, adapter, self.hyperparameters(config))


@cache
def architectures() -> tuple[Architecture, ...]:
    """Every architecture of the package, in the order of the files."""
    return tuple(_package_architecture(heading.path) for heading in headings())


@cache
def _package_architecture(path: Path) -> Architecture:
    return _architecture(path)


def _architecture(path: Path) -> Architecture:
    """The architecture in a file. Raises FormatError if it is invalid, UnsupportedError if it names no `gguf`."""
    declaration = read_declaration(path)
    if declaration is None:
        raise UnsupportedError(f"{path}: names no `gguf` architecture")
    return Architecture(declaration)


def graph_of(gguf: str, extra_file: Path | None = None) -> Graph:
    """The graph flags for a value of `general.architecture`. Architectures with the same value share them.

    Args:
        gguf: the value.
        extra_file: an architecture file from outside the package, which replaces the package's own.

    Raises:
        UnsupportedError: if no architecture of the package has this value, `extra_file` has another, or it has no graph.
        FormatError: if `extra_file` cannot be read.
    """
    if extra_file is not None:
        architecture = _architecture(Path(extra_file))
        if architecture.gguf != gguf:
            what = f"describes the GGUF architecture {architecture.gguf!r}, expected {gguf!r}, which the model has"
            raise UnsupportedError(f"{extra_file}: {what}")
    else:
        path = next((heading.path for heading in headings() if heading.gguf == gguf), None)
        if path is None:
            known = sorted({heading.gguf for heading in headings()})
            raise UnsupportedError(
                f"GGUF architecture {gguf!r} is not supported, only {', '.join(known)}",
                hint="--arch-file FILE adds an architecture",
            )
        architecture = _package_architecture(path)
    graph = architecture.graph
    if graph is None:
        raise UnsupportedError(f"architecture {gguf!r} cannot be run: it has no table [graph]")
    return graph


def find_architecture(config: Mapping[str, Any], extra_file: Path | None = None) -> Architecture:
    """The architecture of a checkpoint.

    Args:
        config: the parsed `config.json`. The `architectures` of the language model's own configuration decide, or its own.
            Where it has none, or an unknown class around a language model, the `model_type` decides, or the expression
            `classless` for models that have neither.
        extra_file: an architecture file from outside the package, which is used whatever config.json says.

    Raises:
        UnsupportedError: if no architecture has the class.
        FormatError: if `extra_file` cannot be read.
    """
    if extra_file is not None:
        return _architecture(Path(extra_file))
    text = text_config(config)
    wanted = _wanted(config, text)
    named = _named(wanted, config) or _named([], text)
    for architecture in named:
        if architecture.declaration.when.evaluate(config):
            return architecture
    if named:
        what = f"needs {' or '.join(architecture.declaration.when.source for architecture in named)} in config.json"
    else:
        classes = sorted({name for heading in headings() for name in heading.classes})
        nearest = get_close_matches(wanted[0] if wanted else "", classes, 3)
        what = "is not supported" + (f"; the nearest that are: {', '.join(nearest)}" if nearest else "")
    raise UnsupportedError(
        f"model class {_found(wanted, config)} {what}",
        hint="`quantize architectures` lists the supported ones; --arch-file FILE adds an architecture",
    )


def _wanted(config: Mapping[str, Any], text: Mapping[str, Any]) -> list[str]:
    """The class names that decide: those of the language model's own configuration, but for classes that enclose it."""
    outer = _class_names(config)
    if outer and any(outer[0] in heading.enclosing_classes for heading in headings()):
        return outer
    return _class_names(text) or outer


def _named(wanted: Sequence[str], config: Mapping[str, Any]) -> list[Architecture]:
    """The architectures that match a configuration, before their conditions `when` are tested."""
    if wanted:
        return [_package_architecture(heading.path) for heading in headings() if wanted[0] in heading.classes]
    return [architecture for architecture in architectures() if _is_told_by(architecture.declaration, config)]


def _is_told_by(declaration: Declaration, config: Mapping[str, Any]) -> bool:
    """Whether a configuration without a class name is of this architecture."""
    return str(config.get("model_type")) in declaration.defaults or bool(declaration.classless.evaluate(config))


def _class_names(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _found(wanted: list[str], config: Mapping[str, Any]) -> str:
    kind = shown(config.get("model_type"))
    return clipped(wanted[0]) if wanted else f"(config.json names none; its model_type is {kind})"


_TYPE_WORDS: Final = {"u32": "an unsigned 32-bit integer", "f32": "a 32-bit float", "bool": "true or false"}
"""The names of value types in error messages, where they are not self-explanatory."""


def _field(key: str, row: MetadataRow, value: Any) -> Field | None:
    """The typed value of a row, or None where none is written."""
    if value is None:
        if row.required:
            raise ModelError(f"config.json: no value for {key!r} (looked for {row.value.source})")
        return None
    if row.map is not None:
        if str(value) not in row.map:
            raise UnsupportedError(f"config.json: {shown(value)} for {key!r} is none of {', '.join(row.map)}")
        value = row.map[str(value)]
    try:
        return FIELD_TYPES[row.type](value)
    except (TypeError, ValueError, OverflowError) as error:
        source = row.value.source
        name = source.rpartition(".")[2] if source.replace(".", "").isidentifier() else source
        what = f"{name} is {shown(value)}, expected {_TYPE_WORDS.get(row.type, row.type)}"
        raise ModelError(f"config.json: {what}, for {key!r}") from error
