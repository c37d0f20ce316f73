"""Find the quantization_config of a checkpoint: in config.json, or in older checkpoints in a side file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from quantcli.core.errors import ModelError, shown
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.checkpoint.nested import text_config

_KEYS: Final = ("quantization_config", "compression_config")


def _mlx(config: Mapping[str, Any]) -> Any:
    """The settings of mlx-lm, under `quantization` and in later versions also under `quantization_config`.

    They have group size and bits, but no method.
    """
    for key in ("quantization", "quantization_config"):
        settings = config.get(key)
        if isinstance(settings, Mapping) and "quant_method" not in settings and {"group_size", "bits"} <= settings.keys():
            return {"quant_method": "mlx", **settings}
    return None


def _modelopt(document: Mapping[str, Any]) -> Any:
    """The settings of modelopt, with the name of the tool as the method."""
    producer, settings = document.get("producer"), document.get("quantization")
    if not isinstance(producer, Mapping) or not isinstance(settings, Mapping):
        return None
    return {"quant_method": str(producer.get("name", "")).lower(), **settings}


_FILES: Final[tuple[tuple[str, Callable[[Mapping[str, Any]], Any]], ...]] = (
    ("quantize_config.json", lambda document: {"quant_method": "gptq", **document}),
    ("quant_config.json", lambda document: {"quant_method": "awq", **document}),
    ("hf_quant_config.json", _modelopt),
)
"""Files of AutoGPTQ, AutoAWQ and modelopt, and the function that returns a quantization_config for their contents."""


def quantization_config(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """The quantization_config of a checkpoint, with the method under `quant_method`; None if it is not quantized.

    Raises:
        FormatError: if a file that may have it is not a JSON object.
        ModelError: if it is not an object, or names no method.
    """
    found = next((settings for settings in _candidates(checkpoint) if settings), None)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise ModelError(f"{checkpoint.path}: the quantization_config is {shown(found)}, expected an object")
    if "quant_method" not in found and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        return {"quant_method": "bitsandbytes", **found}
    if not isinstance(found.get("quant_method"), str):
        raise ModelError(f"{checkpoint.path}: the quantization_config names no quant_method")
    return found


def _candidates(checkpoint: Checkpoint) -> Iterator[Any]:
    for config in (checkpoint.config, text_config(checkpoint.config)):
        # mlx-lm may have quantized a quantized checkpoint, so its settings take precedence.
        yield _mlx(config)
        yield from (config.get(key) for key in _KEYS)
    for name, settings in _FILES:
        document = checkpoint.json(name)
        if document is not None:
            yield settings(document)
