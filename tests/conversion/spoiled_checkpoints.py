"""Convert checkpoints that are spoiled at random, and tell what went wrong.

    python tests/conversion/spoiled_checkpoints.py [--count N] [--seed N] [--keep DIR]

Every trial takes a tiny checkpoint, spoils some of its files, chooses options, some of them absurd, and calls the command.
Either it must work, and then the file opens again and llama.cpp loads its vocabulary (where llama-cpp-python is installed);
or it must be refused by an error of the tree in `quantcli/formats/errors.py`. A trial that does neither is told with its
number and kept in `--keep`. Exit status 1 where there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, Final

import click
import numpy as np

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(GOLDEN)]

from architecture_cases import llama_tensors  # noqa: E402
from tiny_checkpoint import tensor_bytes  # noqa: E402
from vocabulary_cases import (  # noqa: E402  # noqa: E402
    BYTE_LEVEL_SIZE,
    ENDS,
    FAST,
    IDS,
    MODEL_FILES,
    NAMES,
    UNIGRAM,
    added,
    byte_fallback,
    byte_level,
    config,
    template,
)
from vocabulary_cases_kinds import KINDS, XLM_NAMES, unigram  # noqa: E402

from quantcli.cli.main import cli  # noqa: E402
from quantcli.formats.checkpoint import Checkpoint  # noqa: E402
from quantcli.formats.errors import QuantcliError, QuantcliWarning  # noqa: E402
from quantcli.formats.gguf_reader import open_gguf  # noqa: E402
from quantcli.formats.gguf_spec import string, u32  # noqa: E402
from quantcli.formats.gguf_writer import GGUFWriter  # noqa: E402
from quantcli.formats.prequantized import decoded_checkpoint  # noqa: E402
from quantcli.formats.safetensors import open_safetensors  # noqa: E402
from quantcli.formats.tensor import TensorInfo  # noqa: E402
from quantcli.kernels.types import TYPES  # noqa: E402

Files = dict[str, bytes]

LONGEST: Final = 60
"""Seconds a trial may take."""

LONGEST_LINE: Final = 12_000
"""Characters of an error: names from files may be long, and eight of them are told."""

# --- Checkpoints ----------------------------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
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
        made["model.safetensors.index.json"] = _json(index)
    else:
        made["model.safetensors"] = safetensors(tensors)
    return made, tensors


def _contents(value: Any) -> bytes:
    if isinstance(value, str) and value in MODEL_FILES:
        return MODEL_FILES[value].read_bytes()
    return value.encode() if isinstance(value, str) else _json(value)


SMALL_BPE: Final = byte_level([], model={"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]})
"""A vocabulary that fits into any model."""


def golden_checkpoint(path: Path) -> Files:
    """The files of a checkpoint of the goldens, with a vocabulary."""
    case = json.loads(path.read_text())["checkpoint"]
    made = {name: _contents(value) for name, value in case.get("files", {}).items()}
    made |= {"config.json": _json(case["config"]), "tokenizer.json": _json(SMALL_BPE), "tokenizer_config.json": b"{}"}
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


# --- Options --------------------------------------------------------------------------------------------------------------

EXTREMES: Final = [
    "0", "-1", "1", str(2**31), str(2**63), "9" * 30, "9" * 5000, "1e400", "nan", "inf", "", "x", "é", "1.5", "٣", " 1",
]  # fmt: skip
SIZES: Final = [
    "1", "0", "1K", "500M", "-1G", "1e9G", "9" * 30, "9" * 5000, "9" * 30 + "T", "G", "1.5M", "nanM", "infG", "1_0M", "٣M",
]  # fmt: skip
KEYS: Final = [
    "general.name", "tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id", "llama.block_count", "general.architecture",
    "split.count", "general.alignment", "a" * 200, "é", "llama.attention.head_count", "general.file_type", "x.y", " ",
]  # fmt: skip
TYPE_NAMES: Final = ["Q8_0", "F16", "BF16", "Q4_0", "F32", "Q4_K", "Q8_K", "I32", "", "x", "IQ4_NL"]
PATTERNS: Final = ["attn", ".*", "(", "[", "a{99999999999}", "(?P<x>", "\\", "*", "é", "(a+)+$", "ffn_.*weight", "^$", "\0"]


def options(random: Random, place: Path) -> list[str]:
    """Some options, absurd ones among them."""
    some: list[str] = []

    def maybe(share: float, *words: str) -> None:
        if random.random() < share:
            some.extend(words)

    maybe(0.04, "--threads", random.choice(EXTREMES))
    maybe(0.04, "--split-max-size", random.choice(SIZES))
    maybe(0.04, "--prune-layers", random.choice([*EXTREMES, "0", "1", "0,1", "1,,", "1-0", f"1,{2**70}"]))
    kind = random.choice(["int", "float", "bool", "str", "u8", ""])
    maybe(0.1, "--override-kv", f"{random.choice(KEYS)}={kind}:{random.choice([*EXTREMES, 'true', 'a' * 3000])}")
    maybe(0.06, "--tensor-type", f"{random.choice(PATTERNS)}={random.choice(TYPE_NAMES)}")
    maybe(0.03, "--output-tensor-type", random.choice(TYPE_NAMES))
    maybe(0.03, "--token-embedding-type", random.choice(TYPE_NAMES))
    for flag in ("--pure", "--leave-output-tensor", "--no-fallback", "--dry-run", "--as-reference", "--json"):
        maybe(0.06, flag)
    if random.random() < 0.06:
        lines = b"attn_q=Q8_0\nffn=Q4_0\n"
        (place / "types.txt").write_bytes(spoil_bytes(lines, random) if random.random() < 0.8 else lines)
        some += ["--tensor-type-file", str(place / "types.txt")]
    if random.random() < 0.06:
        (place / "imatrix").write_bytes(spoil_bytes(_imatrix(place), random))
        some += ["--imatrix", str(place / "imatrix")]
    return some


def _imatrix(place: Path) -> bytes:
    """An importance matrix of one tensor."""
    name = "blk.0.attn_q.weight"
    infos = [TensorInfo(f"{name}.in_sum2", (1, 64), TYPES["F32"]), TensorInfo(f"{name}.counts", (1, 1), TYPES["F32"])]
    metadata = {"general.type": string("imatrix"), "imatrix.chunk_count": u32(1), "imatrix.chunk_size": u32(512)}
    with GGUFWriter(place / "made", metadata, infos, overwrite=True) as writer:
        for index, info in enumerate(infos):
            writer.write(index, 0, np.ones(info.size, np.float32).view(np.uint8))
    return (place / "made").read_bytes()


# --- Trials ---------------------------------------------------------------------------------------------------------------


def write(directory: Path, files: Files) -> None:
    """Write files by name."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def trial(seed: int, place: Path) -> list[str]:
    """Write the checkpoint of a trial under `place`; the words of the command that converts it to `place/out.gguf`."""
    random = Random(seed)
    kind = random.choice([*VOCABULARIES, "golden", "golden", "golden"])
    files = golden_checkpoint(random.choice(GOLDENS)) if kind == "golden" else checkpoint(kind, random)[0]
    with_adapter = random.random() < 0.15
    alone = with_adapter and random.random() < 0.5
    adapter = {"adapter_config.json": _json(ADAPTER), "adapter_model.safetensors": safetensors(PAIRS)}
    spoiled = adapter if with_adapter and random.random() < 0.9 else files
    for _ in range(random.choice([0, 1, 1, 1, 2, 4])):
        name = random.choice(list(spoiled))
        if random.random() < 0.04:
            del spoiled[name]
            spoiled = spoiled or files
        else:
            try:
                spoiled[name] = spoil_file(name, spoiled[name], random)
            except (ValueError, RecursionError):  # spoiled before, and no JSON any more
                spoiled[name] = spoil_bytes(spoiled[name], random)
    write(place / "model", files)
    write(place / "adapter", adapter)
    out = ["-o", str(place / "out.gguf")]
    if alone:
        return ["lora", str(place / "adapter"), "--base", str(place / "model"), *out]
    names = random.choice(["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "IQ4_NL"])
    words = ["convert", str(place / "model"), "--type", names, *out, *options(random, place)]
    if kind in ("bytes", "files", "ranks", "golden"):
        words += ["--pre-tokenizer", "gpt-2"]
    if with_adapter and kind != "golden":
        scale = random.choice(["", "", ":0", ":-1", ":1e38", ":1e400", ":nan", ":x", ":٣", ":"])
        words += ["--lora", f"{place / 'adapter'}{scale}"]
    return words


def fault(words: list[str], place: Path) -> str | None:
    """What is wrong with what the command does, None where nothing is."""

    def call() -> None:
        cli.main(args=words, prog_name="quantize", standalone_mode=False)

    def read_again() -> None:
        for path in [*place.glob("out.gguf"), *place.glob("out-00001-of-*.gguf")]:
            open_gguf(path).close()

    return told(call) or told(read_again, refusals=())


def told(
    call: Callable[[], None], refusals: tuple[type[Exception], ...] = (QuantcliError, click.ClickException)
) -> str | None:
    """What a call raises that is none of `refusals`, or is more than one line; None where it does neither."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"no end after {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", QuantcliWarning)
            call()
    except refusals as error:
        message = error.message if isinstance(error, QuantcliError) else ""
        return None if "\n" not in message and len(message) < LONGEST_LINE else f"message: {message[:200]!r}"
    except BaseException as error:
        return "".join(traceback.format_exception(error))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def decoding_fault(seed: int, place: Path) -> str | None:
    """What is wrong with how a spoiled fixture of a quantization method is decoded, None where nothing is."""
    random = Random(seed)
    data = random.choice(FIXTURES).read_bytes()
    length = int.from_bytes(data[:8], "little")
    config = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["quantization_config"])
    for _ in range(random.randrange(1, 4)):
        if config and random.random() < 0.5:
            config = spoil_json(config, random)
        else:
            with contextlib.suppress(ValueError):  # spoiled before, and no header any more
                data = random.choice([spoil_header, spoil_numbers])(data, random)
    (place / "model.safetensors").write_bytes(data)

    def read() -> None:
        tensors = open_safetensors(place / "model.safetensors")
        found = decoded_checkpoint(Checkpoint(place, place, {"quantization_config": config}, tensors))
        for tensor in found.tensors.values():
            for start in range(0, tensor.rows, max(1, tensor.rows // 2)):
                tensor.read(start, start + 1, np.empty((1, tensor.row_bytes), np.uint8))

    return told(read)


LOADER: Final = """
import sys
import llama_cpp
parameters = llama_cpp.llama_model_default_params()
parameters.vocab_only = True
for line in sys.stdin:
    model = llama_cpp.llama_model_load_from_file(line.strip().encode(), parameters)
    print("loads" if model else "refuses", flush=True)
    if model:
        llama_cpp.llama_model_free(model)
"""


class Reference:
    """llama.cpp in a process of its own, since it may abort."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def loads(self, path: Path) -> str | None:
        """What it says against a file, None where it loads."""
        if self._child is None or self._child.poll() is not None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._child = subprocess.Popen([sys.executable, "-c", LOADER], text=True, **pipes)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{path}\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline().strip()
        if not answer:
            return f"aborts with status {self._child.wait()}"
        return None if answer == "loads" else answer

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.communicate()


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--no-reference", action="store_true")
    given = parser.parse_args()
    reference, bad, written = Reference(), 0, 0
    for seed in range(given.seed, given.seed + given.count):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            place = Path(folder)
            words = trial(seed, place)
            faults = [fault(words, place), decoding_fault(seed, place)]
            output = place / "out.gguf"
            if output.exists():
                written += 1
                if words[0] == "convert" and "--override-kv" not in words and not given.no_reference:
                    faults.append(reference.loads(output))
            found = list(filter(None, faults))
            if found and given.keep:
                shutil.copytree(place, given.keep / str(seed), dirs_exist_ok=True)
        bad += bool(found)
        for text in found:
            print(f"--- {seed}: {words}\n{text}", flush=True)
    reference.close()
    print(f"{given.count} trials, {written} files, {bad} faults")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
