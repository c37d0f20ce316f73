"""Whether a model gives a GGUF file again, byte for byte: a conversion whose output is compared and not written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.convert import SILENT, Progress, Stages, at_once, working_threads, write_outputs
from quantcli.conversion.job import Calibrate, OutputPlan, open_job
from quantcli.conversion.plan import PlannedTensor
from quantcli.conversion.request import Request
from quantcli.conversion.verify import with_types_of
from quantcli.formats.gguf.reader import GGUFFile
from quantcli.formats.gguf.spec import Field
from quantcli.formats.gguf.writer import Layout, encode_entry, make_layout
from quantcli.formats.tensor_writer import Shard, TensorWriter
from quantcli.tensors.files import InputFile

_SPLIT: Final = "split."
"""The prefix of the keys that only shards have."""


class Comparison(TensorWriter):
    """A `TensorWriter` that compares what is written with the tensors of a file.

    differing   tensor name -> the first row that differs
    """

    def __init__(self, file: GGUFFile, plan: Sequence[PlannedTensor]) -> None:
        self.differing: dict[str, int] = {}
        self._file = file
        self._plan = plan
        self._lock = Lock()

    @property
    def shards(self) -> Sequence[Shard]:
        """None: nothing is written."""
        return ()

    def write(self, index: int, offset: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Compare `data` with the bytes from `offset` on of tensor `index`. Safe to call from several threads at once."""
        planned = self._plan[index]
        stored = self._file.tensors.get(planned.name)
        if stored is None or (stored.shape, stored.type) != (planned.shape, planned.type):
            return
        expected, found = np.frombuffer(data, np.uint8), np.empty(len(data), np.uint8)
        stored.file.read_into(found.data, stored.offset + offset)
        if not np.array_equal(expected, found):
            row = (offset + int((expected != found).argmax())) // stored.row_bytes
            with self._lock:
                self.differing[planned.name] = min(row, self.differing.get(planned.name, row))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


@dataclass(frozen=True)
class _Compared(OutputPlan):
    """An output that is compared with a file."""

    file: GGUFFile = field(kw_only=True)

    @cached_property
    def writer(self) -> Comparison:
        return Comparison(self.file, self.plan)


def unlike_conversion(
    file: GGUFFile,
    request: Request,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
    stages: Stages = at_once,
    calibrate: Calibrate | None = None,
) -> Iterator[str]:
    """How a file differs from what a request gives for its recipe and the types of its tensors, in words.

    Arguments are those of `convert.carry_out`. Without a difference the file is that of the request byte for byte, or a
    split of it.

    Raises:
        As `convert.carry_out`, but for an output.
    """
    threads = working_threads(threads)
    with open_job(with_types_of(file, request), threads=threads, calibrated=calibrate is not None) as job:
        if calibrate:
            job = job.with_importance(calibrate(job.model.source))  # noqa: PLW2901
        (output,) = job.outputs
        compared = _Compared(**vars(output), file=file)
        known = [*_unlike_metadata(file, output.metadata), *_unlike_tensors(file, output.plan)]
        yield from known or _unlike_layout(file, make_layout(output.metadata, [planned.info for planned in output.plan]))
        write_outputs(replace(job, outputs=(compared,)), threads, progress, stages)
        for name, row in sorted(compared.writer.differing.items()):
            yield f"tensor {name!r}: row {row} is not what the source gives"


def _unlike_metadata(file: GGUFFile, given: Mapping[str, Field]) -> Iterator[str]:
    """Keys that differ, in words."""
    stored = {key: value for key, value in file.metadata.items() if file.split == (1, 1) or not key.startswith(_SPLIT)}
    for key in stored.keys() - given.keys():
        yield f"{key}: the source does not give it"
    for key in given.keys() - stored.keys():
        yield f"{key}: the file does not have it"
    for key in stored.keys() & given.keys():
        if encode_entry(key, stored[key]) != encode_entry(key, given[key]):
            yield f"{key}: the source gives another value"
    if list(stored) != list(given) and stored.keys() == given.keys():
        yield "the metadata are in another order"


def _unlike_tensors(file: GGUFFile, plan: Sequence[PlannedTensor]) -> Iterator[str]:
    """Tensors that are missing, or of another shape or type, in words, and whether their order differs."""
    planned = {tensor.name: tensor for tensor in plan}
    for name in planned.keys() - file.tensors.keys():
        yield f"tensor {name!r} of the source is missing"
    for name, stored in file.tensors.items():
        if name not in planned:
            yield f"tensor {name!r}: the source has none"
        elif stored.shape != planned[name].shape:
            yield f"tensor {name!r} is {stored.shape}, and {planned[name].shape} in the source"
        elif stored.type is not planned[name].type:
            yield f"tensor {name!r} is {stored.type.name}, and the source gives {planned[name].type.name}"
    if planned.keys() == file.tensors.keys() and list(planned) != list(file.tensors):
        yield "the tensors are in another order"


def _unlike_layout(file: GGUFFile, layout: Layout) -> Iterator[str]:
    """Whether what is not data differs: the header, the zeros between tensors, the size. Not for a split model."""
    if file.split != (1, 1):
        return
    ends = [offset + stored.nbytes for offset, stored in zip(layout.offsets, file.tensors.values(), strict=True)]
    gaps = zip(ends, [*layout.offsets[1:], layout.file_bytes], strict=True)
    with InputFile(file.path) as stored_file:
        if stored_file.size != layout.file_bytes:
            yield f"the file has {stored_file.size} bytes, expected {layout.file_bytes}"
        elif stored_file.read(0, len(layout.header)) != layout.header:
            yield "the header has other bytes"
        elif any(any(stored_file.read(start, stop - start)) for start, stop in gaps):
            yield "there are other bytes than zeros between tensors"
