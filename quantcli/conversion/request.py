"""A conversion request, as a value that can be compared, pickled and sent to another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from quantcli.conversion.lora.merge import AdapterRequest
from quantcli.conversion.model_changes import NO_CHANGES, Changes
from quantcli.conversion.plan import DEFAULT_OPTIONS, PlanOptions
from quantcli.formats.imatrix import Imatrix


@dataclass(frozen=True, kw_only=True)
class Request:
    """A model, and the files to make of it.

    model               a path; or, as a string that is not an existing path, a model of the Hugging Face hub: ORG/NAME or
                        ORG/NAME@REVISION
    types               names such as `Q4_K_M`, one file for each
    label               stands for the type in the names of files, instead of the recipe's name
    output              a file or an existing directory; by default `MODEL-TYPE.gguf` in the current directory. For several
                        types a directory, or a file name with `{type}` in it
    options             options of the plan
    imatrix             the importance matrix
    changes             changes to the model, applied after `adapters` are merged
    adapters            LoRA adapters to merge
    architecture_file   describes an unknown architecture
    pre_tokenizer       the name of the pre-tokenizer, if it is not recognised
    as_reference        write what llama.cpp's tools write, even where that is wrong: docs/departures.md
    max_shard_bytes     split each output into shards of at most so many bytes of tensors: `NAME-00001-of-00003.gguf`
    remote              read a model of the hub without downloading it
    overwrite           replace existing outputs
    resume              continue what an interrupted run of an equal request has written, and keep what this one has written
                        if it is interrupted
    """

    model: str | PathLike[str]
    types: tuple[str, ...]
    label: str = ""
    output: Path | None = None
    options: PlanOptions = DEFAULT_OPTIONS
    imatrix: Imatrix | None = field(default=None, repr=False)
    changes: Changes = NO_CHANGES
    adapters: Sequence[AdapterRequest] = ()
    architecture_file: Path | None = None
    pre_tokenizer: str | None = None
    as_reference: bool = False
    max_shard_bytes: int | None = None
    remote: bool = False
    overwrite: bool = False
    resume: bool = False
