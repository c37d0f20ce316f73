"""Verification of GGUF files: finite numbers, checksums, and whether a source gives the same bytes again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import numpy as np

from quantcli.conversion.encode import Encoder, encoder_for
from quantcli.conversion.execute import CHUNK_WEIGHTS, kernels_needed, row_chunks
from quantcli.conversion.job import open_job
from quantcli.conversion.plan import PlannedTensor, parse_override
from quantcli.conversion.request import Request
from quantcli.conversion.roles import file_type_names
from quantcli.conversion.value_range import check_copied
from quantcli.core.errors import UsageError, ValueRangeError
from quantcli.formats.checksums import Checksums, file_digest, tensor_digest
from quantcli.formats.gguf.reader import GGUFFile
from quantcli.kernels import rows
from quantcli.tensors.tensor import StoredTensor, Tensor

Advance = Callable[[int], Any]
Chosen = tuple[StoredTensor, PlannedTensor, Encoder | None]
"""A tensor of the file, how it would be planned, and its encoder."""

SAMPLED_CHUNKS: Final = 3
"""Chunks of a tensor that are derived again, unless all are: the first, the last, and one between."""

SAMPLED_WEIGHTS: Final = 1 << 16
"""About how many weights are in such a chunk."""


def not_finite(file: GGUFFile, advance: Advance = lambda done: None) -> Iterator[str]:
    """What each tensor with a weight or a scale that is NaN or infinite has, in words."""
    for tensor in file.tensors.values():
        step = max(1, CHUNK_WEIGHTS // max(1, tensor.row_length))
        try:
            for start in range(0, tensor.rows, step):
                stop = min(start + step, tensor.rows)
                data = np.empty((stop - start, tensor.row_bytes), np.uint8)
                tensor.read(start, stop, data)
                check_copied(tensor, start, data)
                advance(data.size)
        except ValueRangeError as error:
            yield error.message


def checksums_of(file: GGUFFile, threads: int, advance: Advance = lambda done: None) -> Checksums:
    """The checksums of a file or of all shards, and of its tensors. Twice the file's bytes are read."""
    with ThreadPoolExecutor(threads) as pool:
        files = dict(zip(file.paths, pool.map(lambda path: file_digest(path, advance), file.paths), strict=True))
        stored = file.tensors.values()
        tensors = dict(zip(file.tensors, pool.map(lambda tensor: tensor_digest(tensor, advance), stored), strict=True))
    return Checksums({path.name: digest for path, digest in files.items()}, tensors)


def differing(found: Checksums, expected: Checksums) -> Iterator[str]:
    """How checksums differ from those expected, in words."""
    for name, digest in found.files.items():
        if name not in expected.files:
            yield f"{name}: there is no checksum of this file"
        elif expected.files[name] != digest:
            yield f"{name}: its SHA-256 is {digest}, expected {expected.files[name]}"
    for name in expected.tensors.keys() - found.tensors.keys():
        yield f"tensor {name!r} is missing"
    for name, digest in found.tensors.items():
        if expected.tensors.get(name, digest) != digest:
            yield f"tensor {name!r}: its data have another SHA-256"


def with_types_of(file: GGUFFile, request: Request) -> Request:
    """The request for a file's recipe, with the types that its tensors have."""
    number = file.get("general.file_type")
    recipe = file_type_names().get(number, "F32") if isinstance(number, int) else "F32"
    # As overrides, the types decide what is repacked without loss, and what takes importance values.
    kinds = {name: tensor.type for name, tensor in file.tensors.items() if tensor.type.is_quantized}
    overrides = tuple(parse_override(f"^{re.escape(name)}$={kind.name}") for name, kind in kinds.items())
    return replace(request, types=(recipe,), options=replace(request.options, overrides=overrides))


def unlike_source(
    file: GGUFFile, request: Request, *, full: bool, threads: int, advance: Advance = lambda done: None
) -> Iterator[str]:
    """How the tensors of a file differ from what a source gives, in words. A tensor is derived again in the type that it
    has in the file: rows of it, or all with `full`.

    request   names the source, the importance matrix and other options of the conversion; its types do not matter

    Raises:
        UsageError: for a file that was rounded with calibration, or with an importance matrix that is not given.
        As `open_job`.
    """
    if file.get("quantize.calibration.quality") is not None:
        what = "the file was rounded with --quality: its rows cannot be derived one by one"
        raise UsageError(what, hint=f"quantize reproduce {file.path} --source {request.model}")
    if file.get("quantize.imatrix.file") is not None and request.imatrix is None:
        what = f"the file was quantized with the importance matrix {file.get('quantize.imatrix.file')!r}"
        raise UsageError(what, hint="--imatrix FILE")
    with open_job(with_types_of(file, request), threads=threads) as job:
        sources = job.model.tensors
        plan = {planned.name: planned for planned in job.outputs[0].plan}
        for name in plan.keys() - file.tensors.keys():
            yield f"tensor {name!r} of the source is missing"
        chosen: list[Chosen] = []
        for name, tensor in file.tensors.items():
            planned = plan.get(name)
            if planned is None:
                yield f"tensor {name!r}: the source has none"
            elif planned.shape != tensor.shape:
                yield f"tensor {name!r} is {tensor.shape}, and {planned.shape} in the source"
            else:
                same = planned if planned.type is tensor.type else replace(planned, type=tensor.type, exact=False)
                chosen.append((tensor, same, encoder_for(same, job.model.imatrix)))
        rows.compile_kernels(*kernels_needed([[each[1] for each in chosen]], [[each[2] for each in chosen]]))
        with ThreadPoolExecutor(threads) as pool:
            derived = pool.map(lambda each: _first_difference(sources[each[0].name], each, full, advance), chosen)
            for (tensor, _, _), row in zip(chosen, derived, strict=True):
                if row is not None:
                    yield f"tensor {tensor.name!r}: row {row} is not what the source gives"


def _first_difference(source: Tensor, chosen: Chosen, full: bool, advance: Advance) -> int | None:
    """The first row of a tensor that differs from what its source gives, of those that are derived again."""
    tensor, planned, encoder = chosen
    height = tensor.shape[-2] if planned.importance and len(tensor.shape) > 2 else tensor.rows
    chunks = list(row_chunks(tensor.rows, tensor.row_length, height))
    if not full:
        few = max(1, SAMPLED_WEIGHTS // max(1, tensor.row_length))
        places = sorted({0, len(chunks) // 2, len(chunks) - 1})[:SAMPLED_CHUNKS]
        chunks = [(max(chunks[place][0], chunks[place][1] - few), chunks[place][1]) for place in places]
    for start, stop in chunks:
        raw = np.empty((stop - start, source.row_bytes), np.uint8)
        source.read(start, stop, raw)
        expected = raw
        if encoder is not None:
            expected = np.empty((stop - start, tensor.row_bytes), np.uint8)
            encoder.encode(rows.dequantize(raw, source.type), start, expected)
        found = np.empty((stop - start, tensor.row_bytes), np.uint8)
        tensor.read(start, stop, found)
        different = (expected != found).any(axis=1)
        advance(found.size)
        if different.any():
            return start + int(different.argmax())
    return None
