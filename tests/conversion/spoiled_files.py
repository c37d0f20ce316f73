"""Tiny checkpoints of every kind as files by name, and ways to spoil them: what `spoiled_checkpoints.py` converts."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, Final

import numpy as np

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
sys.path[:0] = [str(HERE.parent), str(GOLDEN)]

from architecture_shapes import llama_tensors  # noqa: E402
from tiny_checkpoint import tensor_bytes  # noqa: E402
from vocabulary_cases import KINDS  # noqa: E402
from vocabulary_cases_byte_level import BYTE_LEVEL_SIZE, ENDS, FAST, byte_level  # noqa: E402
from vocabulary_cases_sentencepiece import NAMES, byte_fallback  # noqa: E402
from vocabulary_cases_unigram import XLM_NAMES, unigram  # noqa: E402
from vocabulary_files import IDS, MODEL_FILES, UNIGRAM, added, config, template  # noqa: E402

Files = dict[str, bytes]

# --- Checkpoints ----------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> bytes:
    """A JSON file of a value."""
    return json.dumps(value, ensure_ascii=False).encode()


def safetensors(tensors: dict[str, Any], integers: dict[str, Any] = MappingProxyType({})) -> bytes:
    """A file of these tensors, `[type, shape]` by name; `integers` are those that are not random."""
    header, data = {}, bytearray()
    for name, (dtype, shape) in tensors.items():
        given = integers.get(name)
        chunk = tensor_bytes(name, dtype, shape) if given is None else np.array(given, "<i4").tobytes()
        header[name] = {"dtype": dtype.split()[0], "shape": shape, "data_offsets": [len(data), len(data) + len(chunk)]}
        data += chunk
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


SIZE: Final = BYTE_LEVEL_SIZE + 5
GENERATION: Final = {"bos_token_id": 1, "eos_token_id": [2, 5], "temperature": 0.7, "top_k": 40, "pad_token_id": 0}
CARD: Final = b"---\nlicense: apache-2.0\nlanguage: [en, no]\nbase_model: org/Some-7B-v1.0\ntags:\n- a\n---\n# Card\n"
DECODER: Final = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in ENDS}
MAP: Final = {"bos_token": {"content": "<|begin|>", "lstrip": False}, "eos_token": "<|end|>"}
ADAPTER: Final = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none",
    "base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM", "fan_in_fan_out": False, "use_rslora": False,
    "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None,
}  # fmt: skip
PAIRS: Final = {
    f"base_model.model.model.layers.0.self_attn.{name}_proj.lora_{side}.weight": ["F32", shape]
    for name, rows in (("q", 64), ("v", 32))
    for side, shape in (("A", [4, 64]), ("B", [rows, 4]))
}
LLAMA: Final = {"num_key_value_heads": 2, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1}
SIDE: Final = {"generation_config.json": GENERATION}


def _vocabularies() -> dict[str, tuple[int, dict[str, Any]]]:
    """For every kind of vocabulary: how many tokens, and its files."""
    byte_tokens = byte_fallback([added(0, "<unk>", special=True), added(1, "<s>", special=True)])
    processed = byte_level(ENDS, post_processor=template("<|begin|> A", "<|begin|> A <|begin|> B"))
    unigram_json, tekken = unigram(), KINDS["tekken-special"]
    return {
        "bytes": (SIZE, {
            "tokenizer.json": processed, "tokenizer_config.json": {**FAST, "added_tokens_decoder": DECODER},
            "special_tokens_map.json": MAP, "chat_template.jinja": "{{ messages }}",
            "additional_chat_templates/tool_use.jinja": "{{ tools }}",
        }),
        "pieces": (310, {
            "tokenizer.model": UNIGRAM, "tokenizer.json": {"added_tokens": [added(302, "<|x|>", special=True)]},
            "tokenizer_config.json": {
                **NAMES, "chat_template": "x", "added_tokens_decoder": {"301": {"content": "<y>"}},
            },
            "added_tokens.json": {"<z>": 303},
        }),
        "fallback": (270, {
            "tokenizer.json": byte_tokens, "tokenizer_config.json": NAMES, "special_tokens_map.json": NAMES,
        }),
        "unigram": (20, {"tokenizer.json": unigram_json, "tokenizer_config.json": XLM_NAMES}),
        "files": (SIZE, {name: KINDS["bytes-files"][name] for name in ("vocab.json", "merges.txt", "tokenizer_config.json")}
                  | {"added_tokens.json": {"<z>": BYTE_LEVEL_SIZE}}),
        "words": (40, {name: KINDS["words-file"][name] for name in ("vocab.txt", "tokenizer_config.json")}),
        "ranks": (600, {name: KINDS["ranks"][name] for name in ("qwen.tiktoken", "tokenizer_config.json")}),
        "tekken": (tekken["config.json"]["vocab_size"], {"tekken.json": tekken["tekken.json"]}),
    }  # fmt: skip


VOCABULARIES: Final = _vocabularies()


def checkpoint(kind: str, random: Random) -> tuple[Files, dict[str, Any]]:
    """The files of a checkpoint with a vocabulary of this kind, and its tensors."""
    size, vocabulary = VOCABULARIES[kind]
    configuration = config(size, **{**IDS, **LLAMA})
    tensors = llama_tensors(configuration, random.choice(["F32", "BF16", "F16"]))
    files = {"config.json": configuration, **SIDE, **vocabulary}
    made = {name: _contents(value) for name, value in files.items()} | {"README.md": CARD}
    if random.random() < 0.3:
        first = dict(list(tensors.items())[::2])
        second = {name: kind for name, kind in tensors.items() if name not in first}
        names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        made |= {name: safetensors(part) for name, part in zip(names, (first, second), strict=True)}
        index = {"metadata": {"total_size": 1}, "weight_map": {name: names[name in second] for name in tensors}}
        made["model.safetensors.index.json"] = to_json(index)
    else:
        made["model.safetensors"] = safetensors(tensors)
    return made, tensors


def _contents(value: Any) -> bytes:
    if isinstance(value, str) and value in MODEL_FILES:
        return MODEL_FILES[value].read_bytes()
    return value.encode() if isinstance(value, str) else to_json(value)


SMALL_BPE: Final = byte_level([], model={"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]})
"""A vocabulary that fits into any model."""


def golden_checkpoint(path: Path) -> Files:
    """The files of a checkpoint of the goldens, with a vocabulary."""
    case = json.loads(path.read_text())["checkpoint"]
    made = {name: _contents(value) for name, value in case.get("files", {}).items()}
    made |= {"config.json": to_json(case["config"]), "tokenizer.json": to_json(SMALL_BPE), "tokenizer_config.json": b"{}"}
    return made | {"model.safetensors": safetensors(case["tensors"], integers=case.get("integers", {}))}


GOLDENS: Final = [path for name in ("architectures", "prequantized") for path in sorted((GOLDEN / name).glob("*.json"))]
FIXTURES: Final = sorted((HERE.parent / "formats/fixtures/prequantized").glob("*.safetensors"))


# --- Ways to spoil --------------------------------------------------------------------------------------------------------

ABSURD: Final[list[Any]] = [
    0, -1, 1, 2, 7, 2**31 - 1, 2**31, 2**32, 2**40, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "16", "-1", "none", "a" * 3000, "\ud800", "\0", "\x1b[31m", "a b", "é", "▁", "<|end|>", True, False, None, [], [1],
    [None], ["x"], ["x", 2**70], [[[]]], {}, {"a": {}}, {"type": 5}, {"id": 3, "content": "<|begin|>"}, [{"id": -5}],
    {"rope_type": "llama3"}, {"content": None}, [["a", 1]], [["a", float("nan")]],
]  # fmt: skip


def absurd(random: Random) -> Any:
    """A value of its own, since it may be spoiled further."""
    return copy.deepcopy(random.choice(ABSURD))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every entry of a JSON value, of long lists and tables a few."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, inner in [*entries[:24], *entries[24::97], *entries[-3:]]:
        yield (*path, key)
        yield from places(inner, (*path, key))


def spoil_json(value: Any, random: Random) -> Any:
    """One entry of a JSON value changed, added or left out."""
    found = list(places(value))
    if not found or random.random() < 0.01:
        return absurd(random)
    levels = sorted({len(path) for path in found})
    level = random.choice(levels)
    path = random.choice([path for path in found if len(path) == level])
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    match random.randrange(10):
        case 0:
            del holder[path[-1]]
        case 1:
            holder[path[-1]] = [old]
        case 2:
            holder[path[-1]] = {"x": old}
        case 3:
            holder[path[-1]] = str(old)
        case 4 if isinstance(old, int | float):
            holder[path[-1]] = random.choice([-old, old + 1, old - 1, old * 2, old * 2**33, float(old), old * 1e30])
        case 5:
            other = random.choice(found)
            source = value
            for key in other:
                source = source[key]
            holder[path[-1]] = json.loads(json.dumps(source))
        case 6 if isinstance(holder, dict):
            holder[random.choice(["x", "", "-1", "99999999", "1e3", "٣", str(2**70)])] = holder.pop(path[-1])
        case 7 if isinstance(holder, list):
            holder.insert(random.randrange(len(holder) + 1), json.loads(json.dumps(old)))
        case _:
            holder[path[-1]] = absurd(random)
    return value


SPOILERS: Final[list[Callable[[bytes, int, Random], bytes]]] = [
    lambda data, place, random: data[:place],
    lambda data, place, random: b"\xef\xbb\xbf" + data,
    lambda data, place, random: data.replace(b"\n", b"\r\n"),
    lambda data, place, random: data.replace(b"\n", b"\r"),
    lambda data, place, random: b"\xff\xfe" + data.decode("latin-1").encode("utf-16-le"),
    lambda data, place, random: b"",
    lambda data, place, random: b"[" * 100_000,
    lambda data, place, random: data + data[:place],
    lambda data, place, random: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    lambda data, place, random: data[:place] + b"\xe9" + data[place:],
    lambda data, place, random: data[:place] + random.randbytes(8) + data[place + 8 :],
    lambda data, place, random: data[:place] + random.choice([b"\0", b"\n", b"---\n", b"\t", b" "]) + data[place:],
    lambda data, place, random: data[:place] + data[place + random.randrange(1, 9) :],
]


def spoil_bytes(data: bytes, random: Random) -> bytes:
    """A file cut, of another encoding, with other line ends, or with some bytes changed."""
    return random.choice(SPOILERS)(data, random.randrange(len(data) + 1), random)


def spoil_header(data: bytes, random: Random) -> bytes:
    """The header of a safetensors file changed."""
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(spoil_json(json.loads(data[8 : 8 + length]), random)).encode()
    if random.random() < 0.1:
        length = random.choice([0, 1, length - 1, 2**40, 2**63, 2**64 - 1])
        return length.to_bytes(8, "little") + data[8:]
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


NUMBERS: Final = [b"\xff" * 4, b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\x7c\0\x7c", b"\1\0\x80\x7f", b"\1\x7c\1\x7c"]
"""NaN, infinity and the largest number of 32 bits, infinities of 16, NaN that signals of both."""


def spoil_numbers(data: bytes, random: Random) -> bytes:
    """Some of the numbers of a safetensors file changed: NaN, infinite, large."""
    start = 8 + int.from_bytes(data[:8], "little")
    spoiled = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        place = random.randrange(start, len(data) - 4) & ~3
        spoiled[place : place + 4] = random.choice(NUMBERS)
    return bytes(spoiled)


def spoil_file(name: str, data: bytes, random: Random) -> bytes:
    """A file changed in one of the ways that fit it."""
    if name.endswith(".safetensors"):
        return random.choice([spoil_header, spoil_header, spoil_numbers, spoil_bytes])(data, random)
    if name.endswith(".json") and random.random() < 0.85:
        return json.dumps(spoil_json(json.loads(data), random), ensure_ascii=random.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    return spoil_bytes(data, random)
