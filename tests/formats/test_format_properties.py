"""Properties of readers and writers, tried on what hypothesis finds: a round trip gives everything back."""

from __future__ import annotations

import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from quantcli.core.block_types import TYPES
from quantcli.formats.checkpoint.safetensors import open_safetensors
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import Field, ValueType
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.tensors.tensor import TensorInfo

EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KEYS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_.", min_size=1, max_size=30).map(lambda text: f"test.{text}")
INTEGERS = {
    kind: st.integers(-(2 ** (bits - 1)) if signed else 0, 2 ** (bits - signed) - 1)
    for kind, bits, signed in [
        (ValueType.UINT8, 8, 0), (ValueType.INT8, 8, 1), (ValueType.UINT16, 16, 0), (ValueType.INT16, 16, 1),
        (ValueType.UINT32, 32, 0), (ValueType.INT32, 32, 1), (ValueType.UINT64, 64, 0), (ValueType.INT64, 64, 1),
    ]
}  # fmt: skip
VALUES: dict[ValueType, st.SearchStrategy[Any]] = {
    **INTEGERS,
    ValueType.FLOAT32: st.floats(width=32, allow_nan=False),
    ValueType.FLOAT64: st.floats(allow_nan=False),
    ValueType.BOOL: st.booleans(),
    ValueType.STRING: TEXTS,
}
FIELDS = st.one_of(
    *(values.map(lambda value, kind=kind: Field(kind, value)) for kind, values in VALUES.items()),
    *(
        st.lists(values, max_size=6).map(lambda value, kind=kind: Field(ValueType.ARRAY, value, kind))
        for kind, values in VALUES.items()
    ),
)
PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
ARRAYS = st.sampled_from(sorted(PLAIN)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        arrays.array_shapes(min_dims=1, max_dims=4, max_side=5).flatmap(
            lambda shape: st.binary(
                min_size=int(np.prod(shape)) * np.dtype(PLAIN[name]).itemsize,
                max_size=int(np.prod(shape)) * np.dtype(PLAIN[name]).itemsize,
            ).map(lambda data: np.frombuffer(data, PLAIN[name]).reshape(shape))
        ),
    )
)
MODELS = st.dictionaries(st.text("abc.", min_size=1, max_size=12), ARRAYS, max_size=5)


def without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as ggml has it, which counts dimensions from the row on and drops those of 1 behind the last other."""
    first = next((index for index, length in enumerate(shape[:-1]) if length > 1), len(shape) - 1)
    return shape[first:]


def listed(field: Field) -> Any:
    """A value as Python has it; arrays as lists."""
    return field.elements() if field.type is ValueType.ARRAY else field.value


@EXAMPLES
@given(metadata=st.dictionaries(KEYS, FIELDS, max_size=8), model=MODELS)
def test_a_gguf_file_gives_back_what_was_written(metadata: dict[str, Field], model: dict[str, Any]) -> None:
    infos = [TensorInfo(name, array.shape, TYPES[kind]) for name, (kind, array) in model.items()]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        with GGUFWriter(path, metadata, infos) as writer:
            for index, (_, array) in enumerate(model.values()):
                writer.write(index, 0, np.frombuffer(array.tobytes(), np.uint8))
        with open_gguf(path) as file:
            assert list(file.metadata) == list(metadata)
            for key, field in metadata.items():
                found = file.metadata[key]
                assert (found.type, found.element) == (field.type, field.element)
                assert listed(found) == listed(field)
            assert list(file.tensors) == list(model)
            for name, (kind, array) in model.items():
                tensor = file.tensors[name]
                assert (tensor.type.name, tensor.shape) == (kind, without_leading_ones(array.shape))
                assert tensor.load().tobytes() == array.tobytes()


@EXAMPLES
@given(model=MODELS, rows=st.tuples(st.integers(0, 700), st.integers(0, 700)))
def test_safetensors_give_back_what_their_library_wrote(model: dict[str, Any], rows: tuple[int, int]) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="the safetensors package writes the files")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        library.save_file({name: array for name, (_, array) in model.items()}, path)
        tensors = open_safetensors(path)
        assert tensors.keys() == model.keys()
        for name, (kind, array) in model.items():
            tensor = tensors[name]
            assert (tensor.type.name, tensor.shape) == (kind, array.shape)
            assert tensor.load().tobytes() == array.tobytes()
            start, stop = sorted(row % (tensor.rows + 1) for row in rows)
            out = np.empty((stop - start, tensor.row_bytes), np.uint8)
            tensor.read(start, stop, out)
            assert out.tobytes() == array.reshape(tensor.rows, -1)[start:stop].tobytes()
        for tensor in tensors.values():
            tensor.file.close()


@EXAMPLES
@given(data=st.binary(max_size=200), place=st.integers(0, 400))
def test_a_gguf_header_of_any_bytes_ends_in_one_error(data: bytes, place: int) -> None:
    from quantcli.core.errors import QuantcliError

    whole = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + data
    spoiled = whole[: place % (len(whole) + 1)] + data + whole[place % (len(whole) + 1) :]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        path.write_bytes(spoiled)
        try:
            open_gguf(path).close()
        except QuantcliError as error:
            assert "\n" not in error.message
