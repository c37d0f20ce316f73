"""Random checkpoints of every family, for `fuzz_architectures.py`: configurations, and the tensors that go with them.

A family that transformers knows is a table of choices for the arguments of its configuration; the model is made, saved, and
asked for its tensors. The others are the cases of the `architecture_cases*.py`, with random changes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from architecture_shapes import Case

OMIT = object()
"""The choice of saying nothing."""

Choices = Mapping[str, Any]
"""Key -> a list to choose from, or a function of the random numbers and the choices so far."""

YES_NO = [True, False]


def chosen(choices: Choices, random: Random) -> Case:
    """One configuration."""
    made: Case = {}
    for key, options in choices.items():
        value = options(random, made) if callable(options) else random.choice(options)
        if value is not OMIT:
            made[key] = value
    return made


def divisor(of: str) -> Callable[[Random, Case], Any]:
    """A number that divides another of the configuration, or nothing."""

    def choose(random: Random, made: Case) -> Any:
        return random.choice([number for number in range(1, made[of] + 1) if made[of] % number == 0] + [OMIT])

    return choose


def times(of: str, options: list[int]) -> Callable[[Random, Case], Any]:
    """A multiple of another number of the configuration."""
    return lambda random, made: made[of] * random.choice(options)


def layers_of(*kinds: str) -> Callable[[Random, Case], Any]:
    """A kind for every layer, or nothing."""
    return lambda random, made: random.choice([OMIT, [random.choice(kinds) for _ in range(made["num_hidden_layers"])]])


def head_size(made: Case) -> int:
    """The size of a head, as most families count it."""
    return made.get("head_dim") or made["hidden_size"] // made["num_attention_heads"]


def rope(
    size: Callable[[Case], int] = head_size, partial: tuple[Any, ...] = (OMIT,), kinds: tuple[str, ...] = ()
) -> Callable[[Random, Case], Any]:
    """Rotary parameters as transformers 5 has them, with any of the scalings there are."""

    def choose(random: Random, made: Case) -> Any:
        kind = random.choice(kinds or ("default", "default", "linear", "dynamic", "yarn", "longrope", "llama3"))
        share = random.choice(partial)
        pairs = int(size(made) * (share if isinstance(share, float) else 1.0)) // 2
        context = [OMIT, 64, 512, 8192]
        listed: dict[str, Choices] = {
            "default": {},
            "linear": {"factor": [2, 2.0, 8.0]},
            "dynamic": {"factor": [2.0, 1.5]},
            "yarn": {
                "factor": [4.0, 16], "original_max_position_embeddings": context, "beta_fast": [OMIT, 32, 16.0],
                "beta_slow": [OMIT, 1, 2.0], "attention_factor": [OMIT, OMIT, 1.1, None], "mscale": [OMIT, 1.0],
                "mscale_all_dim": [OMIT, 0.707, 1], "truncate": [OMIT, False],
            },
            "longrope": {
                "factor": [OMIT, 4.0], "original_max_position_embeddings": context,
                "short_factor": [[1.0 + 0.1 * place for place in range(pairs)]],
                "long_factor": [[1 + place for place in range(pairs)]], "attention_factor": [OMIT, 1.2],
            },
            "llama3": {
                "factor": [8.0, 32], "low_freq_factor": [1.0, 1], "high_freq_factor": [4.0, 3.5],
                "original_max_position_embeddings": context,
            },
        }  # fmt: skip
        table = {"rope_type": kind, **chosen({"rope_theta": [OMIT, 10000, 500000.0, 1e6], **listed[kind]}, random)}
        if share is not OMIT:
            table["partial_rotary_factor"] = share
        return random.choice([OMIT, table, table, table])

    return choose


COMMON: Choices = {
    "num_hidden_layers": [1, 2, 3],
    "vocab_size": [64, 100, 257],
    "tie_word_embeddings": [OMIT, True, False],
}

LLAMA: Choices = {
    **COMMON,
    "num_attention_heads": [1, 2, 3, 4, 6, 8],
    "num_key_value_heads": divisor("num_attention_heads"),
    "hidden_size": times("num_attention_heads", [8, 16, 24]),
    "intermediate_size": [32, 48, 100],
    "max_position_embeddings": [OMIT, 64, 2048, 131072],
    "rms_norm_eps": [OMIT, 1e-5, 1e-6],
    "rope_parameters": rope(),
}

HEAD: Choices = {"head_dim": [OMIT, OMIT, 16, 24, 32]}

BIASES: Choices = {"attention_bias": [OMIT, True, False], "mlp_bias": [OMIT, True, False]}


@dataclass(frozen=True)
class Family:
    """What makes a random case: choices, and the model type of transformers or a function of the chosen values."""

    choices: Choices
    kind: str = ""
    build: Callable[[str, Case], Case] | None = None
    bare: str | None = None
    """The class of the model without its head, where the reference knows it."""

    only: tuple[str, ...] = field(default=())
    """The classes to have, where transformers writes another name than the reference knows."""

    models: tuple[str, ...] = ("AutoModelForCausalLM",)
    """Classes of transformers, one of which makes the model."""

    files: Mapping[str, str] = field(default_factory=dict)
    """What lies beside the checkpoint."""

    def case(self, random: Random) -> Case:
        """A random checkpoint.

        Raises:
            Exception: what transformers raises where the choices do not suit each other.
        """
        made = chosen(self.choices, random)
        case = self.build("a-model-1B", made) if self.build else saved(self.kind, made, random.choice(self.models))
        if self.only:
            case["config"]["architectures"] = [random.choice(self.only)]
        return {**case, "files": {**self.files, **case.get("files", {})}}


def saved(kind: str, sizes: Case, maker: str = "AutoModelForCausalLM") -> Case:
    """What transformers saves of a model with this configuration."""
    import torch
    import transformers

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(kind, **{**ids, **sizes})
    made_by = getattr(transformers, maker)
    model = made_by.from_config(config, dtype=torch.bfloat16) if maker.startswith("Auto") else made_by(config).bfloat16()
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        written = json.loads((Path(place) / "config.json").read_text())
        data = (Path(place) / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    tensors = {name: [entry["dtype"], entry["shape"]] for name, entry in sorted(header.items())}
    return {"directory": "a-model-1B", "config": written, "tensors": tensors}


RAW: Choices = {
    "num_attention_heads": [1, 2, 4, 8],
    "num_key_value_heads": lambda random, made: random.choice(
        [number for number in (1, 2, 4, 8) if number <= made["num_attention_heads"]]
    ),
    "num_hidden_layers": [1, 2, 3],
    "tie_word_embeddings": [OMIT, True, False],
    "max_position_embeddings": [64, 2048],
    "rms_norm_eps": [1e-5, 1e-6],
    "rope_theta": [OMIT, 10000, 1e6],
    "rope_scaling": rope(lambda made: 64 // made["num_attention_heads"]),
}
"""For families whose cases have a hidden size of 64."""


def without(choices: Choices, *names: str) -> Choices:
    """The choices but for these."""
    return {key: value for key, value in choices.items() if key not in names}
