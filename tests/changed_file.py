"""A GGUF file with other metadata, for tests of files that say something special."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import Field, string
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.tensors.tensor import TensorInfo

STORY_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""A chat for models that only tell stories: what the user says is continued."""


def write_changed(source: Path, target: Path, changes: Mapping[str, Field | None]) -> Path:
    """Copy a GGUF file; metadata are replaced or added, or left out where they are None."""
    with open_gguf(source) as file:
        kept = {**file.metadata, **changes}
        metadata = {key: value for key, value in kept.items() if value is not None}
        infos = [TensorInfo(tensor.name, tensor.shape, tensor.type) for tensor in file.tensors.values()]
        with GGUFWriter(target, metadata, infos, overwrite=True) as writer:
            for index, tensor in enumerate(file.tensors.values()):
                writer.write(index, 0, file.map(tensor))
    return target


def write_numbers(source: Path, target: Path, tensor: str, numbers: NDArray[Any]) -> Path:
    """Copy a GGUF file; a tensor begins with other numbers, which are of its type."""
    data = bytearray(source.read_bytes())
    with open_gguf(source) as file:
        offset = file.tensors[tensor].offset
    data[offset : offset + numbers.nbytes] = numbers.tobytes()
    target.write_bytes(data)
    return target


def write_chat(source: Path, target: Path, template: str = STORY_TEMPLATE) -> Path:
    """Copy a GGUF file with a chat template."""
    return write_changed(source, target, {"tokenizer.chat_template": string(template)})
