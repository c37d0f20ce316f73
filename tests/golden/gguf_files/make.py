"""Make every-value.gguf with llama.cpp's own writer (ggml's shared library, as llama-cpp-python 0.3.36 ships it).

python tests/golden/gguf_files/make.py OUTPUT
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llama_cpp

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, UINT64, INT64, FLOAT64 = 0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12
SCALARS = [
    ("u8", ctypes.c_uint8, UINT8, 255),
    ("i8", ctypes.c_int8, INT8, -128),
    ("u16", ctypes.c_uint16, UINT16, 65535),
    ("i16", ctypes.c_int16, INT16, -32768),
    ("u32", ctypes.c_uint32, UINT32, 2**32 - 1),
    ("i32", ctypes.c_int32, INT32, -(2**31)),
    ("f32", ctypes.c_float, FLOAT32, 1e-5),
    ("bool", ctypes.c_bool, BOOL, True),
    ("u64", ctypes.c_uint64, UINT64, 2**64 - 1),
    ("i64", ctypes.c_int64, INT64, -(2**63)),
    ("f64", ctypes.c_double, FLOAT64, 1e-300),
]
STRINGS = [b"", b"plain", "\u2581déjà".encode(), b"\xff\xfe not UTF-8 \x80", "\U0001f600".encode()]
# GGUF order, the row length first. The trailing ones of `folded` are not written: ggml knows no number of dimensions.
TENSORS = [
    ("vector", 0, (5,)),
    ("matrix", 8, (64, 3)),
    ("cube", 12, (256, 2, 3)),
    ("folded", 1, (7, 1, 1)),
    ("four", 30, (2, 3, 4, 5)),
]


def main(target: str) -> None:
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.gguf_init_empty.restype = ctypes.c_void_p
    library.ggml_init.restype = library.ggml_new_tensor.restype = library.ggml_get_data.restype = ctypes.c_void_p
    library.ggml_nbytes.restype = ctypes.c_size_t
    file = ctypes.c_void_p(library.gguf_init_empty())

    def key(name: str) -> bytes:
        return f"test.{name}".encode()

    for name, kind, number, value in SCALARS:
        getattr(library, f"gguf_set_val_{name}")(file, key(name), kind(value))
        values = (kind * 3)(value, 0, 1)
        library.gguf_set_arr_data(file, key(f"{name}.array"), number, values, ctypes.c_size_t(3))
    library.gguf_set_val_str(file, key("str"), STRINGS[2])
    library.gguf_set_val_str(file, key("str.raw"), STRINGS[3])
    library.gguf_set_arr_str(
        file, key("str.array"), (ctypes.c_char_p * len(STRINGS))(*STRINGS), ctypes.c_size_t(len(STRINGS))
    )
    library.gguf_set_arr_data(file, key("empty"), INT32, None, ctypes.c_size_t(0))

    class InitParams(ctypes.Structure):
        _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))

    library.ggml_init.argtypes = [InitParams]
    memory = ctypes.c_void_p(library.ggml_init(InitParams(1 << 20, None, False)))
    for name, kind, shape in TENSORS:
        lengths = (ctypes.c_int64 * len(shape))(*shape)
        tensor = ctypes.c_void_p(library.ggml_new_tensor(memory, kind, len(shape), lengths))
        library.ggml_set_name(tensor, name.encode())
        count = library.ggml_nbytes(tensor)
        # Bytes that tell where they are: a tensor written to another place shows.
        data = bytes((index * 7 + len(name)) % 251 for index in range(count))
        ctypes.memmove(library.ggml_get_data(tensor), data, count)
        library.gguf_add_tensor(file, tensor)
    library.gguf_write_to_file.restype = ctypes.c_bool
    if not library.gguf_write_to_file(file, target.encode(), ctypes.c_bool(False)):
        sys.exit("the file could not be written")


if __name__ == "__main__":
    main(sys.argv[1])
