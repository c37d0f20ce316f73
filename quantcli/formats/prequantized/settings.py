"""Where a checkpoint says how it was quantized: config.json, or in older ones a file beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from quantcli.core.errors import ModelError, shown
from quantcli.formats.checkpoint.checkpoint import Checkpoint

_KEYS: Final = ("quantization_config", "compression_config")


def _mlx(config: Mapping[str, Any]) -> Any:
    """What mlx-lm says of a model it quantized, under `quantization` and in later versions under `quantization_config` too:
    no method, but group size and bits."""
    for key in ("quantization", "quantization_config"):
        settings = config.get(key)
        if isinstance(settings, Mapping) and "quant_method" not in settings and {"group_size", "bits"} <= settings.keys():
            return {"quant_method": "mlx", **settings}
    return None


def _modelopt(document: Mapping[str, Any]) -> Any:
    """The settings, with the name of the tool that wrote them for the method's."""
    producer, settings = document.get("producer"), document.get("quantization")
    if not isinstance(producer, Mapping) or not isinstance(settings, Mapping):
        return None
    return {"quant_method": str(producer.get("name", "")).lower(), **settings}


_FILES: Final[tuple[tuple[str, Callable[[Mapping[str, Any]], Any]], ...]] = (
    ("quantize_config.json", lambda document: {"quant_method": "gptq", **document}),
    ("quant_config.json", lambda document: {"quant_method": "awq", **document}),
    ("hf_quant_config.json", _modelopt),
)
"""Files of AutoGPTQ, AutoAWQ and modelopt, and what makes a quantization_config of their contents."""


def quantization_config(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """How the checkpoint was quantized, with the name of the method under `quant_method`; None where nothing says that it
    was.

    Raises:
        FormatError: if a file that may say so is no JSON object.
        ModelError: if what it says is not an object with a method's name.
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
    language_model = checkpoint.config.get("text_config")
    for config in (checkpoint.config, language_model if isinstance(language_model, Mapping) else {}):
        # What mlx-lm quantized may have been quantized before: its word is the last.
        yield _mlx(config)
        yield from (config.get(key) for key in _KEYS)
    for name, settings in _FILES:
        document = checkpoint.json(name)
        if document is not None:
            yield settings(document)
