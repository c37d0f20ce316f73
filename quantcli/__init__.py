"""quantcli: language model checkpoints to quantized GGUF files, in Python.

    quantize(x, "Q4_K")       float32 rows to blocks, the reference's bytes
    dequantize(data, "Q4_K")  blocks to float32 rows
    convert(model, "Q4_K_M")  a checkpoint to a GGUF file
    open_gguf(path)           a GGUF file's metadata and lazy tensors

Names are imported when they are first used: `import quantcli` loads neither numba nor numpy.
"""

from importlib import import_module

from quantcli.core.version import __version__

# As in typing, which is not imported: `python -m quantcli` would take it from the working directory.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from quantcli.conversion.convert import convert
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.kernels.rows import dequantize, quantize

__all__ = ["__version__", "convert", "dequantize", "open_gguf", "quantize"]

_PLACES = {
    "convert": "quantcli.conversion.convert",
    "dequantize": "quantcli.kernels.rows",
    "open_gguf": "quantcli.formats.gguf.reader",
    "quantize": "quantcli.kernels.rows",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
