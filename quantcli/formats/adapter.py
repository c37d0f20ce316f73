"""Read LoRA adapters as peft saves them: adapter_config.json, and pairs of matrices for some of a model's weights.

An adapter changes a weight `W` to `W + scaling * B A`. What else peft can do to a model is refused by its name: without it
the model would be another. Source: `save_and_load.py` and `tuners/lora` of peft 0.21.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from quantcli.formats.errors import FormatError, ModelError, UnsupportedError
from quantcli.formats.files import InputFile
from quantcli.formats.hub_cache import in_snapshot
from quantcli.formats.inside import resolve_inside
from quantcli.formats.json_text import parse_object
from quantcli.formats.tensor import FileTensor, Tensor, TensorInfo
from quantcli.formats.weights import open_tensor_file

CONFIG: Final = "adapter_config.json"

_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
"""In the order they are looked for."""

_MAX_CONFIG: Final = 1 << 24

_SIMPLE: Final = re.compile(r"(?:[^*+{]*[*+{]){0,4}[^*+{]*")
"""The expressions in `rank_pattern` and `alpha_pattern` that are followed: with few repetitions, and none of a group, no
text takes long to match."""

_FLOATS: Final = ("F64", "F32", "F16", "BF16")

_LISTED: Final = 8

_PART: Final = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"lora_(?P<matrix>[AB])(?:\.(?!weight$|bias$)\w+)?\.(?P<kind>weight|bias)"
    r"|lora_embedding_(?P<embedding>[AB])(?:\.\w+)?"
    r"|lora_(?P<magnitude>magnitude_vector)(?:\.\w+)*"
    r")"
)
"""The names of what belongs to a pair; `default` or another name of the adapter may stand in them."""

_WRAPPED: Final = re.compile(r"\.(?:modules_to_save(?:\.\w+)?|base_layer)\.(?=weight$|bias$)")
"""What peft puts into the names of weights that it saves whole."""

_STRANGE: Final[Mapping[str, str]] = {
    "target_parameters": "LoRA on parameters that are no layers (target_parameters)",
    "trainable_token_indices": "trained rows of an embedding (trainable_token_indices)",
    "layer_replication": "layers that are there several times (layer_replication)",
    "use_qalora": "QALoRA (use_qalora)",
    "use_bdlora": "BD-LoRA (use_bdlora)",
    "arrow_config": "Arrow routing (arrow_config)",
    "kasa_config": "KaSA (kasa_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
}
"""Settings that change what an adapter does, and what to call them."""

_CHANGING_STARTS: Final = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Values of `init_lora_weights` for which the base model's weights were changed before the training."""

_PLAIN: Final = "Let peft merge it (`merge_and_unload`) and convert the merged model."


@dataclass(frozen=True)
class LowRank(TensorInfo):
    """What an adapter adds to the weight `name`: `scaling * b @ a`, of `shape`.

    `a` is `(rank, in)` and `b` `(out, rank)`; in an embedding, and where the weight is stored as `(in, out)`, their product
    is the transpose of the weight, which `transposed` says. For the latter it is the configuration's word, which has one
    for all layers of a model. DoRA brings every row to the length that `magnitude` gives.
    """

    a: Tensor
    b: Tensor
    scaling: float
    transposed: bool = False
    embedding: bool = False
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    """Added, scaled as well, to the bias beside the weight."""

    @property
    def module(self) -> str:
        """The layer the weight belongs to."""
        return self.name.removesuffix(".weight")

    @property
    def rank(self) -> int:
        """The rows of `a`."""
        return self.a.shape[-2]


@dataclass(frozen=True)
class Adapter:
    """An adapter of a model.

    `pairs` are what is added to weights, `whole` the weights and biases that are replaced, both by their names in the base
    model; `frozen` are copies of weights of the base model. Close it, or use it in a `with`, to give back the open files.
    """

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    pairs: Mapping[str, LowRank] = field(repr=False)
    whole: Mapping[str, Tensor] = field(repr=False)
    frozen: Mapping[str, Tensor] = field(repr=False)

    @property
    def alpha(self) -> float:
        """`lora_alpha`, from which, with the rank, scalings follow where nothing else is said."""
        return float(self.config["lora_alpha"])

    def close(self) -> None:
        """Give back the open files. A tensor that is read later opens its file again."""
        for file in {tensor.file for tensor in self.tensors() if isinstance(tensor, FileTensor)}:
            file.close()

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of its file."""
        for pair in self.pairs.values():
            yield from (tensor for tensor in (pair.a, pair.b, pair.magnitude, pair.bias) if tensor is not None)
        yield from self.whole.values()
        yield from self.frozen.values()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_adapter(path: str | PathLike[str]) -> Adapter:
    """Open the directory of an adapter. No data are read.

    Raises:
        FormatError: if there is no adapter in it, or a file is damaged.
        UnsupportedError: if it is of another kind than LoRA, or LoRA with something that is not understood.
        ModelError: if its tensors do not go together; all that is wrong is in the message.
    """
    directory = in_snapshot(Path(path))
    config = _read_config(directory)
    _refuse_strange(directory, config)
    found = (resolve_inside(directory, name) for name in _WEIGHTS)
    weights = next((place for place in found if place is not None), None)
    if weights is None:
        raise FormatError(directory, f"no weights of an adapter: looked for {' and '.join(_WEIGHTS)}")
    return _assemble(directory, config, open_tensor_file(InputFile(weights)))


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        what = "expected the directory of an adapter, found a file" if directory.exists() else "no such directory"
        raise FormatError(directory, what, hint=f"Give the directory that holds {CONFIG}.")
    place = resolve_inside(directory, CONFIG)
    if place is None:
        raise FormatError(directory, f"not an adapter: no {CONFIG} in it", hint="Give a directory that peft has saved.")
    with InputFile(place) as file:
        if file.size > _MAX_CONFIG:
            raise FormatError(place, f"{file.size} bytes, at most {_MAX_CONFIG} expected")
        config = parse_object(place, file.read(0, file.size), "the file", unique=False)
    if _number(config.get("lora_alpha")) is None and config.get("peft_type", "LORA") == "LORA":
        raise FormatError(place, f"lora_alpha is {config.get('lora_alpha')!r}, expected a number")
    return config


def _refuse_strange(directory: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UnsupportedError(f"{directory}: an adapter of the kind {kind}, expected LORA", hint=_PLAIN)
    strange = [name for key, name in _STRANGE.items() if config.get(key)]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGING_STARTS):
        strange.append(f"a base model that was changed before the training (init_lora_weights = {start!r})")
    if strange:
        raise UnsupportedError(f"{directory}: the adapter has {', '.join(strange)}, which is not done", hint=_PLAIN)


# --- from tensors to pairs ------------------------------------------------------------------------------------------------


def _assemble(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    frozen: dict[str, Tensor] = {}
    for given, tensor in tensors.items():
        name = given.replace("base_model.model.", "")
        match = _PART.fullmatch(name)
        if match:
            kind = "bias" if match["kind"] == "bias" else match["matrix"] or match["magnitude"]
            parts.setdefault(match["module"], {})[kind or f"embedding {match['embedding']}"] = tensor
        elif name.endswith(".base_layer.weight"):
            frozen[_WRAPPED.sub(".", name)] = tensor
        else:
            whole[_WRAPPED.sub(".", name)] = tensor
    pairs, problems = {}, []
    for module, held in parts.items():
        pair = _pair(module, held, config)
        if isinstance(pair, LowRank):
            pairs[pair.name] = pair
        else:
            problems.append(f"{module}: {pair}")
    if not pairs and not problems:
        problems.append("no LoRA matrices in it")
    if problems:
        rest = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ModelError(f"{directory}: a faulty adapter: {'; '.join(problems[:_LISTED])}{rest}")
    return Adapter(directory, config, pairs, whole, frozen)


def _pair(module: str, held: Mapping[str, Tensor], config: Mapping[str, Any]) -> LowRank | str:
    """The pair of a layer, or what is wrong with it."""
    embedding = "embedding A" in held or "embedding B" in held
    names = ("embedding A", "embedding B") if embedding else ("A", "B")
    absent = [f"lora_{name.replace(' ', '_')}" for name in names if name not in held]
    if absent:
        return f"no {' and no '.join(absent)}"
    a, b = (held[name] for name in names)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.size or not b.size:
        return f"matrices {list(a.shape)} and {list(b.shape)}, expected [rank, in] and [out, rank]"
    if any(half.type.name not in _FLOATS for half in (a, b)):
        return f"matrices stored as {a.type.name} and {b.type.name}, which cannot be computed with"
    rank = _matching(config, "rank_pattern", module, config.get("r", a.shape[0]))
    alpha = _matching(config, "alpha_pattern", module, config["lora_alpha"])
    if rank != a.shape[0] or alpha is None:
        return f"matrices of rank {a.shape[0]}, where {CONFIG} says rank {rank} and alpha {alpha}"
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    pair = LowRank(
        f"{module}.weight", (b.shape[0], a.shape[1]), a.type, a, b, alpha / root,
        embedding=embedding, magnitude=held.get("magnitude_vector"), bias=held.get("bias"),
    )  # fmt: skip
    if config.get("use_dora") and pair.magnitude is None:
        return "no lora_magnitude_vector, though use_dora is set"
    turned = embedding or bool(config.get("fan_in_fan_out"))
    return replace(pair, shape=pair.shape[::-1], transposed=True) if turned else pair


def _matching(config: Mapping[str, Any], key: str, module: str, usual: Any) -> float | None:
    """A setting for one layer: that of the first expression which matches the end of its name. None if it is no number, or
    not to be found out."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        return None
    for pattern, value in patterns.items():
        if not _SIMPLE.fullmatch(pattern) or re.search(r"\)[*+{]", pattern):
            return None
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return _number(value)
        except (re.error, RecursionError):
            return None
    return _number(usual)


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return value if good else None
