"""The reference itself: llama-quantize's plan of a model, through the library that llama-cpp-python installs."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from quantcli.conversion.plan import PlanOptions
from quantcli.conversion.recipes import Recipe
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import Metadata, ValueType
from quantcli.tensors.tensor import TensorInfo

_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[[^]]*\], type = +(\w+), size = [^\n(]*(?:\((\w+)\))?\n")


def write_hollow_model(path: Path, metadata: Metadata, tensors: Sequence[TensorInfo], gguf: Any) -> None:
    """Write a GGUF file, by means of the `gguf` package, whose tensors are a hole in the file: all zeros."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"].value)
    for key, entry in metadata.items():
        if key != "general.architecture":
            element = None if entry.element is None else gguf.GGUFValueType(entry.element)
            writer.add_key_value(key, entry.value, gguf.GGUFValueType(entry.type), sub_type=element)
    for tensor in tensors:
        shape = (*tensor.shape[:-1], tensor.row_bytes) if tensor.type.is_quantized else tensor.shape
        dtype = np.dtype(np.uint8 if tensor.type.is_quantized else np.float32)
        kind = gguf.GGMLQuantizationType(tensor.type.id)
        writer.add_tensor_info(tensor.name, shape, dtype, tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = -(-path.stat().st_size // 32) * 32
    os.truncate(path, header + sum(-(-tensor.nbytes // 32) * 32 for tensor in tensors))


_OVERRIDES = {
    ValueType.UINT32: ("LLAMA_KV_OVERRIDE_TYPE_INT", "val_i64"),
    ValueType.FLOAT32: ("LLAMA_KV_OVERRIDE_TYPE_FLOAT", "val_f64"),
    ValueType.BOOL: ("LLAMA_KV_OVERRIDE_TYPE_BOOL", "val_bool"),
    ValueType.STRING: ("LLAMA_KV_OVERRIDE_TYPE_STR", "val_str"),
}


def reference_plan(
    llama_cpp: Any,
    model: Path,
    recipe: Recipe,
    options: PlanOptions,
    output: Path | None = None,
    overrides: Metadata | None = None,
    prune: Sequence[int] = (),
) -> list[tuple[str, str]] | None:
    """Names and types of the tensors in llama-quantize's order, None if it refuses; with `output` it writes the file,
    with `overrides` in its metadata and without the layers to `prune`."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = recipe.file_type or 0
    parameters.only_copy = recipe.base is None
    parameters.nthread = 1
    parameters.dry_run = output is None
    parameters.pure = options.pure
    parameters.quantize_output_tensor = not options.leave_output_tensor
    parameters.allow_requantize = options.allow_requantize
    if options.output_tensor_type:
        parameters.output_tensor_type = options.output_tensor_type.id
    if options.token_embedding_type:
        parameters.token_embedding_type = options.token_embedding_type.id
    keep_alive: list[Any] = []
    if options.overrides:
        rows = [(entry.pattern.pattern.encode(), entry.type.id) for entry in options.overrides]
        keep_alive.append((llama_cpp.llama_model_tensor_override * (len(rows) + 1))(*rows, (None, 0)))
        parameters.tt_overrides = keep_alive[-1]
    if options.importance is not None:
        keep_alive.extend((ctypes.c_float * size)(*[1.0] * size) for size in options.importance.values())
        data = [ctypes.cast(values, ctypes.POINTER(ctypes.c_float)) for values in keep_alive[-len(options.importance) :]]
        entries = zip(options.importance.items(), data, strict=True)
        rows = [(name.encode(), values, size) for (name, size), values in entries]
        keep_alive.append((llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows, (None, None, 0)))
        parameters.imatrix = keep_alive[-1]
    if prune:
        keep_alive.append((ctypes.c_int32 * (len(prune) + 1))(*prune, -1))
        parameters.prune_layers = keep_alive[-1]
    if overrides:
        keep_alive.append((llama_cpp.llama_model_kv_override * (len(overrides) + 1))())
        for row, (key, entry) in zip(keep_alive[-1], overrides.items(), strict=False):
            tag, member = _OVERRIDES[entry.type]
            row.tag, row.key = getattr(llama_cpp, tag), key.encode()
            setattr(row.value, member, entry.value.encode() if isinstance(entry.value, str) else entry.value)
        parameters.kv_overrides = keep_alive[-1]
    with _log(llama_cpp) as log:
        status = llama_cpp.llama_model_quantize(str(model).encode(), str(output or model).encode(), parameters)
    if status:
        return None
    if output:
        with open_gguf(output) as written:
            return [(tensor.name, tensor.type.name) for tensor in written.tensors.values()]
    return [(name, (new or old).upper()) for name, old, new in _LINE.findall("".join(log))]


@contextmanager
def _log(llama_cpp: Any) -> Iterator[list[str]]:
    """Collects what the library says, and gives its log back to llama-cpp-python afterwards."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(level: int, text: bytes, data: Any) -> None:
        lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(collect, None)
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, None)
