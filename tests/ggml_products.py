"""Matrix products of the reference: graphs of `ggml_mul_mat` in the library of llama-cpp-python, through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType

_F32: Final = 0
_TENSOR_BYTES: Final = 1024
"""More than a tensor and its place in a graph take in a context."""


class _Parameters(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("without_data", ctypes.c_bool))


_POINTER, _INT, _SIZE, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_int64
_LOG: Final = ctypes.CFUNCTYPE(None, _INT, ctypes.c_char_p, _POINTER)
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "ggml_log_set": (None, (_LOG, _POINTER)),
    "ggml_init": (_POINTER, (_Parameters,)),
    "ggml_free": (None, (_POINTER,)),
    "ggml_new_tensor_2d": (_POINTER, (_POINTER, _INT, _LONG, _LONG)),
    "ggml_mul_mat": (_POINTER, (_POINTER,) * 3),
    "ggml_new_graph_custom": (_POINTER, (_POINTER, _SIZE, ctypes.c_bool)),
    "ggml_build_forward_expand": (None, (_POINTER, _POINTER)),
    "ggml_backend_cpu_init": (_POINTER, ()),
    "ggml_backend_cpu_set_n_threads": (None, (_POINTER, _INT)),
    "ggml_backend_cpu_buffer_type": (_POINTER, ()),
    "ggml_backend_cpu_buffer_from_ptr": (_POINTER, (_POINTER, _SIZE)),
    "ggml_backend_cpu_reg": (_POINTER, ()),
    "ggml_backend_reg_get_proc_address": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "ggml_backend_get_device": (_POINTER, (_POINTER,)),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, (_POINTER, _POINTER)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, (_POINTER, _POINTER)),
    "ggml_backend_tensor_alloc": (_INT, (_POINTER,) * 3),
    "ggml_backend_tensor_set": (None, (_POINTER, _POINTER, _SIZE, _SIZE)),
    "ggml_backend_tensor_get": (None, (_POINTER, _POINTER, _SIZE, _SIZE)),
    "ggml_backend_buffer_free": (None, (_POINTER,)),
    "ggml_backend_graph_compute": (_INT, (_POINTER, _POINTER)),
}


class Ggml:
    """The library's functions, and its backend for the processor with so many threads.

    Raises:
        ModuleNotFoundError: if llama-cpp-python is not installed.
    """

    def __init__(self, threads: int) -> None:
        package = find_spec("llama_cpp")
        if package is None or package.origin is None:
            raise ModuleNotFoundError("llama-cpp-python is not installed")
        folder = Path(package.origin).parent / "lib"
        self._libraries = [ctypes.CDLL(str(next(folder.glob(f"*ggml-{part}.*")))) for part in ("base", "cpu")]
        self._quiet = _LOG(lambda level, text, data: None)
        self("ggml_log_set", self._quiet, None)
        self.backend = self("ggml_backend_cpu_init")
        self("ggml_backend_cpu_set_n_threads", self.backend, threads)
        self.plain_buffers = self("ggml_backend_cpu_buffer_type")
        self.other_buffers = self._other_buffers()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call a function of the library by its name."""
        function = next(getattr(library, name) for library in self._libraries if hasattr(library, name))
        function.restype, function.argtypes = _FUNCTIONS[name]
        return function(*arguments)

    def _other_buffers(self) -> list[int]:
        """The buffer types that store weights in another layout."""
        registry, name = self("ggml_backend_cpu_reg"), b"ggml_backend_dev_get_extra_bufts"
        finder = self("ggml_backend_reg_get_proc_address", registry, name)
        found = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(finder)(self("ggml_backend_get_device", self.backend))
        kinds: list[int] = []
        while found and (kind := found[len(kinds)]):
            kinds.append(kind)
        return kinds


class Products:
    """The products of x with copies of a weight matrix: a graph that computes one after another.

    packed uint8 (copies, rows, row_bytes) must stay in memory; x float32 (columns, n). As llama.cpp does when it loads a
    model, the weights are laid out anew (`is_repacked`) where the library has another layout for the type.
    """

    def __init__(self, ggml: Ggml, packed: NDArray[np.uint8], kind: BlockType, x: NDArray[np.float32]) -> None:
        self._ggml, self._packed, self._kind, self._x = ggml, packed, kind, np.ascontiguousarray(x)
        self.is_repacked = False
        for buffers in ggml.other_buffers:
            self._build(buffers)
            device = ggml("ggml_backend_get_device", ggml.backend)
            if ggml("ggml_backend_dev_supports_op", device, self._results[0]):
                self.is_repacked = True
                break
            self.close()
        else:
            self._build(None)

    def _build(self, buffers: int | None) -> None:
        ggml, (copies, rows, _), (columns, n) = self._ggml, self._packed.shape, self._x.shape
        room = _Parameters((copies + 64) * _TENSOR_BYTES, None, True)
        self._contexts = [ggml("ggml_init", room) for _ in range(3)]
        for_weights, for_numbers, for_graph = self._contexts
        weights = [ggml("ggml_new_tensor_2d", for_weights, self._kind.id, n, rows) for _ in range(copies)]
        numbers = ggml("ggml_new_tensor_2d", for_numbers, _F32, n, columns)
        self._results = [ggml("ggml_mul_mat", for_numbers, matrix, numbers) for matrix in weights]
        self._graph = ggml("ggml_new_graph_custom", for_graph, copies + 8, False)
        for result in self._results:
            ggml("ggml_build_forward_expand", self._graph, result)
        self._buffers = [ggml("ggml_backend_alloc_ctx_tensors_from_buft", for_numbers, ggml.plain_buffers)]
        ggml("ggml_backend_tensor_set", numbers, self._x.ctypes.data, 0, self._x.nbytes)
        if buffers is None:
            self._use_in_place(weights)
        else:
            self._copy(weights, buffers)

    def _use_in_place(self, weights: Sequence[int]) -> None:
        start = self._packed.ctypes.data
        buffer = self._ggml("ggml_backend_cpu_buffer_from_ptr", start, self._packed.nbytes)
        self._buffers.append(buffer)
        for number, matrix in enumerate(weights):
            self._ggml("ggml_backend_tensor_alloc", buffer, matrix, start + number * self._packed[0].nbytes)

    def _copy(self, weights: Sequence[int], buffers: int) -> None:
        ggml = self._ggml
        self._buffers.append(ggml("ggml_backend_alloc_ctx_tensors_from_buft", self._contexts[0], buffers))
        if not ggml("ggml_backend_dev_supports_op", ggml("ggml_backend_get_device", ggml.backend), self._results[0]):
            return
        for matrix, packed in zip(weights, self._packed, strict=True):
            ggml("ggml_backend_tensor_set", matrix, packed.ctypes.data, 0, packed.nbytes)

    def compute(self) -> None:
        """Multiply x by every copy."""
        status = self._ggml("ggml_backend_graph_compute", self._ggml.backend, self._graph)
        assert status == 0, f"ggml_backend_graph_compute returned {status}"

    def result(self) -> NDArray[np.float32]:
        """The last copy's product, float32 (columns, rows)."""
        out = np.empty((len(self._x), self._packed.shape[1]), np.float32)
        self._ggml("ggml_backend_tensor_get", self._results[-1], out.ctypes.data, 0, out.nbytes)
        return out

    def close(self) -> None:
        """Free the library's memory."""
        for buffer in self._buffers:
            self._ggml("ggml_backend_buffer_free", buffer)
        for context in self._contexts:
            self._ggml("ggml_free", context)
