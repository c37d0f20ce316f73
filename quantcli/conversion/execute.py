"""Execute plans: a pool of threads reads, dequantizes, checks, quantizes and writes the rows, chunk by chunk.

A chunk is a number of whole rows of one tensor. Each thread takes the next chunk, processes it in buffers of its own, and
writes the result to its place in the file. So no thread waits for another, and memory does not grow with the model. The
kernels release the GIL. The size of the chunks does not change a byte.
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
from quantcli.core.block_types import BlockType
from quantcli.formats.imatrix import Imatrix
from quantcli.formats.tensor_writer import TensorWriter
from quantcli.kernels import rows
from quantcli.tensors.tensor import Tensor

CHUNK_WEIGHTS: Final = 1 << 19
"""About how many weights are in a chunk: two megabytes of float32.

They stay in a core's second-level cache while five steps pass over them. They are enough work that the cost of scheduling
does not matter. A single longer row is one chunk.
"""


@dataclass(frozen=True)
class Output:
    """One model to be written.

    plan       its tensors in file order
    encoders   one for each tensor, None where the bytes are copied
    writer     the open writer of these tensors
    """

    plan: Sequence[PlannedTensor]
    encoders: Sequence[Encoder | None]
    writer: TensorWriter


@dataclass(frozen=True)
class Chunk:
    """Rows `start:stop` of tensor `index` of the plans."""

    index: int
    start: int
    stop: int


def encoders_for(plan: Sequence[PlannedTensor], imatrix: Imatrix | None) -> list[Encoder | None]:
    """The encoder of each tensor of a plan."""
    return [encoder_for(planned, imatrix) for planned in plan]


def kernels_needed(
    plans: Sequence[Sequence[PlannedTensor]], encoders: Sequence[Sequence[Encoder | None]]
) -> tuple[set[BlockType], set[tuple[BlockType, bool]]]:
    """The kernels that the plans need: types to dequantize, and types to quantize to, each with whether with importance."""
    decoded: set[BlockType] = set()
    encoded: set[tuple[BlockType, bool]] = set()
    for plan, chosen in zip(plans, encoders, strict=True):
        for planned, encoder in zip(plan, chosen, strict=True):
            if encoder is not None:
                decoded |= {planned.source_type} | encoder.needs.decoded
                encoded |= encoder.needs.encoded
    return decoded, encoded


def execute(
    tensors: Mapping[str, Tensor],
    outputs: Sequence[Output],
    *,
    threads: int,
    advance: Callable[[int], None],
    interrupt: Callable[[], None] = lambda: None,
    only: Sequence[int] | None = None,
) -> None:
    """Write every tensor of every output, reading the source once.

    tensors     the sources by the plans' names; all plans list the same names in the same order
    only        the places in the plans of the tensors to write; by default all
    advance     called with the source bytes of each finished chunk, from any thread, one call at a time
    interrupt   called after an error, to end blocking reads

    The first error of any thread stops all threads and is raised here. So does Ctrl-C.

    Raises:
        ValueRangeError: if a weight is NaN or infinite, or too large for its type.
        FormatError: if the source cannot be read any more.
        OutputError: if the disk is full.
    """
    plan = outputs[0].plan
    places = range(len(plan)) if only is None else only
    chunks = _chunks([(place, tensors[plan[place].name]) for place in places], outputs)
    taking, reporting, stop = Lock(), Lock(), Event()
    failures: list[BaseException] = []

    def give_up() -> None:
        stop.set()
        interrupt()

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
            give_up()

    _run(work, threads, give_up)
    if failures:
        raise failures[0]


def _run(work: Callable[[], None], threads: int, give_up: Callable[[], None]) -> None:
    """Run `work` in this many threads and wait for all. Where waiting is interrupted, `give_up` must end them."""
    pool: list[Thread] = []
    try:
        for number in range(threads):
            pool.append(Thread(target=work, name=f"quantize-{number}"))
            try:
                pool[-1].start()
            except RuntimeError:  # the system has no more threads: the running ones do all of the work
                del pool[-1]
                if not pool:
                    raise
                break
        for thread in pool:
            thread.join()
    except BaseException:
        give_up()
        for thread in pool:
            if thread.ident is not None:  # it was started
                thread.join()
        raise


def row_chunks(rows: int, row_length: int, height: int, *, matrices: bool = False) -> Iterator[tuple[int, int]]:
    """Cut the rows of a tensor into chunks, each within one of its stacked matrices of `height` rows: start and stop.

    With `matrices` a chunk is a whole matrix.
    """
    step = max(1, height) if matrices else max(1, CHUNK_WEIGHTS // max(1, row_length))
    for matrix in range(0, rows, max(1, height)):
        for start in range(matrix, matrix + height, step):
            yield start, min(start + step, matrix + height)


def _chunks(tensors: Sequence[tuple[int, Tensor]], outputs: Sequence[Output]) -> Iterator[Chunk]:
    """Cut every tensor into chunks. With importance values a chunk stays within one stacked matrix, which has its own.

    All outputs count: one in F16 takes no importance values, another of the same chunk may. A chunk is a whole matrix where
    an encoder needs it.
    """
    for index, tensor in tensors:
        importance = any(output.plan[index].importance for output in outputs)
        encoders = [output.encoders[index] for output in outputs]
        matrices = any(encoder is not None and encoder.needs.matrices for encoder in encoders)
        per_matrix = tensor.shape[-2] if (importance or matrices) and len(tensor.shape) > 2 else tensor.rows
        for start, stop in row_chunks(tensor.rows, tensor.row_length, per_matrix, matrices=matrices):
            yield Chunk(index, start, stop)


def _holds(output: Output, chunk: Chunk, row_length: int) -> bool:
    """Whether an interrupted run has written a chunk of an output."""
    row_bytes = output.plan[chunk.index].type.row_bytes(row_length)
    return output.writer.holds_rows(chunk.index, chunk.start * row_bytes, (chunk.stop - chunk.start) * row_bytes)


class _Worker:
    """The buffers of one thread, and the steps for a chunk."""

    def __init__(self, tensors: Mapping[str, Tensor], outputs: Sequence[Output]) -> None:
        self._tensors = tensors
        self._outputs = outputs
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def _buffer(self, purpose: str, shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
        """A buffer for an array, reused for the next chunk."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._buffers.get(purpose)
        if held is None or held.size < size:
            held = self._buffers[purpose] = np.empty(size, np.uint8)
        buffer: NDArray[Any] = held[:size].view(dtype).reshape(shape)
        return buffer

    def convert(self, chunk: Chunk) -> int:
        """Convert one chunk for every output that does not hold it. Returns its source bytes."""
        tensor = self._tensors[self._outputs[0].plan[chunk.index].name]
        count = chunk.stop - chunk.start
        missing = [output for output in self._outputs if not _holds(output, chunk, tensor.row_length)]
        if not missing:
            return count * tensor.row_bytes
        raw = self._buffer("raw", (count, tensor.row_bytes), np.uint8)
        tensor.read(chunk.start, chunk.stop, raw)
        values: NDArray[np.float32] | None = None
        large = False
        # Outputs of different file types often have some tensors in common, such as the embedding in Q6_K.
        encoded: dict[tuple[BlockType, bool, bool], NDArray[np.uint8]] = {}
        for output in missing:
            planned, encoder = output.plan[chunk.index], output.encoders[chunk.index]
            how = planned.type, planned.importance, planned.exact
            if encoder is None:
                data = raw
                check_copied(tensor, chunk.start, data)
            elif how in encoded:
                data = encoded[how]
            else:
                if values is None:
                    values = self._buffer("values", (count, tensor.row_length), np.float32)
                    rows.dequantize(raw, tensor.type, values)
                    large = check_source(tensor, chunk.start, values)
                shape = count, planned.type.row_bytes(tensor.row_length)
                data = encoded[how] = self._buffer(f"blocks {len(encoded)}", shape, np.uint8)
                encoder.encode(values, chunk.start, data)
                weighted = planned.importance
                check_converted(tensor, chunk.start, values, data, planned.type, large=large, weighted=weighted)
            output.writer.write(chunk.index, chunk.start * data.shape[1], data.reshape(-1))
        return raw.size
