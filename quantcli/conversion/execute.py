"""Carry plans out: rows are read, dequantized, checked, encoded and written, in chunks, by a pool of threads.

A chunk is some whole rows of one tensor. Every thread takes the next chunk, does all of the work on it in buffers of its
own, and writes the result to its place in the file, so nothing waits for an order and memory does not grow with the model.
The kernels release the GIL. How the rows are cut does not change a byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.encode import Encoder, encoder_for
from quantcli.conversion.plan import PlannedTensor
from quantcli.conversion.value_range import check_converted, check_copied, check_source
from quantcli.formats.gguf_writer import TensorWriter
from quantcli.formats.imatrix import Imatrix
from quantcli.formats.tensor import Tensor
from quantcli.kernels import rows
from quantcli.kernels.types import BlockType

CHUNK_WEIGHTS: Final = 1 << 19
"""Weights in a chunk, about: two megabytes of float32, which stay in a core's second-level cache while five steps pass over
them, and enough work that handing it out costs nothing. A single longer row is one chunk."""


@dataclass(frozen=True)
class Output:
    """One model to be written: its plan, in file order, an encoder for each tensor (None: copied), and the open writer that
    expects these tensors."""

    plan: Sequence[PlannedTensor]
    encoders: Sequence[Encoder | None]
    writer: TensorWriter


@dataclass(frozen=True)
class Chunk:
    """Rows `start` to `stop` of tensor `index` of the plans."""

    index: int
    start: int
    stop: int


def encoders_for(plan: Sequence[PlannedTensor], imatrix: Imatrix | None) -> list[Encoder | None]:
    """The encoder of each tensor of a plan."""
    return [encoder_for(planned, imatrix) for planned in plan]


def kernels_needed(
    plans: Sequence[Sequence[PlannedTensor]], encoders: Sequence[Sequence[Encoder | None]]
) -> tuple[set[BlockType], set[tuple[BlockType, bool]]]:
    """What the plans call for: the types to dequantize, and the types to quantize to, each with or without importance."""
    decoded: set[BlockType] = set()
    encoded: set[tuple[BlockType, bool]] = set()
    for plan, chosen in zip(plans, encoders, strict=True):
        for planned, encoder in zip(plan, chosen, strict=True):
            if encoder is not None:
                decoded |= {planned.source_type} | encoder.needs[0]
                encoded |= encoder.needs[1]
    return decoded, encoded


def execute(
    tensors: Mapping[str, Tensor],
    outputs: Sequence[Output],
    *,
    threads: int,
    advance: Callable[[int], None],
    interrupt: Callable[[], None] = lambda: None,
) -> None:
    """Write every tensor of every output, reading the source once.

    `tensors` are the sources by the plans' names; all plans list the same names in the same order. `advance` is called with
    the source bytes of each finished chunk, from any thread, one at a time. The first error of any thread ends all of them
    and is raised here; so does Ctrl-C. `interrupt` is called then, to end the reads that wait for something.

    Raises:
        ValueRangeError: if a weight is NaN or infinite, or too large for its type.
        FormatError: if the source cannot be read any more.
        OutputError: if the disk is full.
    """
    chunks = _chunks([tensors[planned.name] for planned in outputs[0].plan], outputs[0].plan)
    taking, reporting, stop = Lock(), Lock(), Event()
    failures: list[BaseException] = []

    def work() -> None:
        worker = _Worker(tensors, outputs)
        try:
            while not stop.is_set():
                with taking:
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                done = worker.convert(chunk)
                with reporting:
                    advance(done)
        except BaseException as error:
            failures.append(error)
            stop.set()
            interrupt()

    pool: list[Thread] = []
    try:
        for number in range(threads):
            pool.append(Thread(target=work, name=f"quantize-{number}"))
            try:
                pool[-1].start()
            except RuntimeError:  # the system gives no more threads: those that run do all of the work
                del pool[-1]
                if not pool:
                    raise
                break
        for thread in pool:
            thread.join()
    except BaseException:
        stop.set()
        interrupt()
        for thread in pool:
            if thread.ident is not None:  # it was started
                thread.join()
        raise
    if failures:
        raise failures[0]


def _chunks(tensors: Sequence[Tensor], plan: Sequence[PlannedTensor]) -> Iterator[Chunk]:
    """Cut every tensor into chunks that stay within one matrix of a stack, since each has importance values of its own."""
    for index, (tensor, planned) in enumerate(zip(tensors, plan, strict=True)):
        per_matrix = tensor.shape[-2] if planned.importance and len(tensor.shape) > 2 else tensor.rows
        step = max(1, CHUNK_WEIGHTS // max(1, tensor.row_length))
        for matrix in range(0, tensor.rows, max(1, per_matrix)):
            for start in range(matrix, matrix + per_matrix, step):
                yield Chunk(index, start, min(start + step, matrix + per_matrix))


class _Worker:
    """One thread's buffers, and the steps of a chunk."""

    def __init__(self, tensors: Mapping[str, Tensor], outputs: Sequence[Output]) -> None:
        self._tensors = tensors
        self._outputs = outputs
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def _buffer(self, purpose: str, shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
        """Room for an array, kept for the next chunk."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._buffers.get(purpose)
        if held is None or held.size < size:
            held = self._buffers[purpose] = np.empty(size, np.uint8)
        room: NDArray[Any] = held[:size].view(dtype).reshape(shape)
        return room

    def convert(self, chunk: Chunk) -> int:
        """Carry one chunk through to every output; returns its source bytes."""
        tensor = self._tensors[self._outputs[0].plan[chunk.index].name]
        count = chunk.stop - chunk.start
        raw = self._buffer("raw", (count, tensor.row_bytes), np.uint8)
        tensor.read(chunk.start, chunk.stop, raw)
        values: NDArray[np.float32] | None = None
        large = False
        for output in self._outputs:
            planned, encoder = output.plan[chunk.index], output.encoders[chunk.index]
            if encoder is None:
                data = raw
                check_copied(tensor, chunk.start, data)
            else:
                if values is None:
                    values = self._buffer("values", (count, tensor.row_length), np.float32)
                    rows.dequantize(raw, tensor.type, values)
                    large = check_source(tensor, chunk.start, values)
                data = self._buffer("blocks", (count, planned.type.row_bytes(tensor.row_length)), np.uint8)
                encoder.encode(values, chunk.start, data)
                weighted = planned.importance
                check_converted(tensor, chunk.start, values, data, planned.type, large=large, weighted=weighted)
            output.writer.write(chunk.index, chunk.start * data.shape[1], data.reshape(-1))
        return raw.size
