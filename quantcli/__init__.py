"""quantcli: language model checkpoints to quantized GGUF files, in Python.

    convert(model, "Q4_K_M")      a checkpoint to a GGUF file; with dry_run=True its plan; with progress=... callbacks
    quantize(x, "Q4_K")           float32 rows to blocks, the reference's bytes
    dequantize(data, "Q4_K")      blocks to float32 rows
    open_gguf(path)               a GGUF file's metadata and lazy tensors
    read_tensor(file, name)       the weights of one, as a float32 array
    load(path)                    a model to run: tokens, text, logits, generate, stream, chat, embed, evaluate
    export(path, directory)       a GGUF file to a checkpoint
    estimate(model)               sizes of file types, and the memory to run them

Names are imported when they are first used: `import quantcli` loads neither numba nor numpy.
"""

from importlib import import_module

from quantcli.core.version import __version__

# As in typing, which is not imported: `python -m quantcli` would take it from the working directory.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from quantcli.conversion.convert import convert
    from quantcli.conversion.export.export import export
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.kernels.rows import dequantize, quantize
    from quantcli.library import load, read_tensor
    from quantcli.quality.estimate import estimate

__all__ = [
    "__version__", "convert", "dequantize", "estimate", "export", "load", "open_gguf", "quantize", "read_tensor",
]  # fmt: skip

_PLACES = {
    "convert": "quantcli.conversion.convert",
    "dequantize": "quantcli.kernels.rows",
    "estimate": "quantcli.quality.estimate",
    "export": "quantcli.conversion.export.export",
    "load": "quantcli.library",
    "open_gguf": "quantcli.formats.gguf.reader",
    "quantize": "quantcli.kernels.rows",
    "read_tensor": "quantcli.library",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
