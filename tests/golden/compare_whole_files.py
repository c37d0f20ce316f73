"""Convert tiny checkpoints with real tokenizers by the reference converter and by quantcli, and compare the files.

    python tests/golden/compare_whole_files.py PATH_OF_LLAMA_CPP TOKENIZERS [CASE ...]

PATH_OF_LLAMA_CPP is a source tree of llama.cpp, TOKENIZERS holds the tokenizer files of well-known models, a directory
each. The checkpoints are the cases of the `architecture_cases*.py`, or those named, with a vocabulary as large as the
models with the tokenizer have. All keys in order, the tokenizer's too, and all tensors are compared, but for what a
quantizer does to every file: it sorts tensors, leaves out trailing axes of one, and puts two keys of its own last. Exit
status 1 where anything differs, or where quantcli alone refuses.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from fuzz_architectures import silence  # noqa: E402
from make_architecture_goldens import all_cases, convert, end_recursion  # noqa: E402
from tiny_checkpoint import write_checkpoint  # noqa: E402

from quantcli.architectures.loader import find_architecture  # noqa: E402
from quantcli.conversion import convert as ours  # noqa: E402
from quantcli.core.errors import QuantcliError  # noqa: E402
from quantcli.formats.gguf.reader import open_gguf  # noqa: E402

SIZES = {
    "llama-2": 32000, "llama-3.2": 128256, "mistral-v0.3": 32768, "phi-3-mini": 32064, "qwen2.5": 152064,
    "gpt2": 50257, "starcoder2": 49280, "deepseek-coder": 32256, "falcon": 65024, "phi-2": 51200,
    "gpt-neox-20b-pii-special": 50688, "bert-uncased-MiniLM": 30522, "roberta-base": 50265,
}  # fmt: skip
"""How large the vocabularies of the models with these tokenizers are."""

FAMILIES = {
    "bert": "bert-uncased-MiniLM", "distilbert": "bert-uncased-MiniLM", "nomic-bert": "bert-uncased-MiniLM",
    "jina-bert-v2": "bert-uncased-MiniLM", "roberta": "roberta-base", "modern-bert": "gpt-neox-20b-pii-special",
    "llama": "llama-3.2", "mixtral": "mistral-v0.3", "mistral3": "mistral-v0.3", "qwen2": "qwen2.5", "qwen2moe": "qwen2.5",
    "qwen3": "qwen2.5", "qwen3moe": "qwen2.5", "qwen2vl": "qwen2.5", "qwen3vl": "qwen2.5", "qwen3vlmoe": "qwen2.5",
    "phi2": "phi-2", "phi3": "phi-3-mini", "phimoe": "phi-3-mini", "gpt2": "gpt2", "gpt_bigcode": "starcoder2",
    "starcoder2": "starcoder2", "gptneox": "gpt-neox-20b-pii-special", "falcon": "falcon",
    "mpt": "gpt-neox-20b-pii-special",
    "olmo": "gpt-neox-20b-pii-special", "olmoe": "gpt-neox-20b-pii-special", "stablelm": "gpt-neox-20b-pii-special",
    "mamba": "gpt-neox-20b-pii-special", "mamba2": "gpt-neox-20b-pii-special", "granite": "starcoder2",
    "granitemoe": "starcoder2", "granitehybrid": "starcoder2", "granite4": "starcoder2", "deepseek": "deepseek-coder",
    "deepseek2": "deepseek-coder", "smollm3": "llama-3.2", "llama4": "llama-3.2", "lfm2": "llama-3.2",
    "lfm2moe": "llama-3.2", "granite4moe": "starcoder2",
    "gemma": "llama-2", "gemma2": "llama-2", "gemma3": "llama-2", "gemma-embedding": "llama-2", "minicpm": "llama-2",
    "minicpm3": "llama-2", "baichuan": "llama-2", "internlm2": "llama-2", "orion": "llama-2", "ernie4_5": "llama-2",
    "ernie4_5-moe": "llama-2", "arcee": "llama-3.2", "seed-oss": "qwen2.5", "nemotron": "llama-2",
    "t5": "UNIGRAM", "t5encoder": "UNIGRAM", "xlm-roberta": "UNIGRAM", "nomic-bert-moe": "UNIGRAM",
}  # fmt: skip
"""Architecture -> the tokenizer of its models, or one of the same kind. Others have GPT-2's."""

EMBEDDINGS = "embed_tokens|wte|embed_in|embed_out|word_embeddings|tok_embeddings|embeddings?|lm_head|head|shared|decoder"
SIZED = re.compile(rf".*({EMBEDDINGS}|output|output_layer)\.(weight|bias)|.*predictions\.bias")
"""Tensors with a row for every token."""


def with_vocabulary(case: dict[str, Any], size: int) -> dict[str, Any]:
    """The case with so many tokens."""
    config, tensors = dict(case["config"]), dict(case["tensors"])
    key = next(key for key in ("padded_vocab_size", "vocab_size") if key in {**config, **config.get("text_config", {})})
    inner = key in config.get("text_config", {})
    old = (config["text_config"] if inner else config)[key]
    for name, (kind, shape) in tensors.items():
        if shape and shape[0] == old and SIZED.fullmatch(name):
            tensors[name] = [kind, [size, *shape[1:]]]
    if key in config:
        config[key] = size
    if inner:
        config["text_config"] = {**config["text_config"], key: size}
    return {**case, "config": config, "tensors": tensors}


def described(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys and tensors of a file, in order, as every quantizer leaves them."""
    with open_gguf(path) as file:
        fields = {
            key: (field.type.name, field.element and field.element.name, _plain(field.value))
            for key, field in file.metadata.items()
            if key not in ("general.quantization_version", "general.file_type")
        }
        tensors = {
            name: (tensor.type.name, re.sub("^(1, )+", "", str(list(tensor.shape))[1:-1]), tensor.load().tobytes())
            for name, tensor in file.tensors.items()
        }
    return fields, tensors


def _plain(value: Any) -> Any:
    """A list of an array."""
    return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, tuple) else value


def differences(mine: Path, other: Path) -> list[str]:
    """What is not the same in two files, in words."""
    found = []
    for kind, ours_, theirs in zip(("key", "tensor"), described(mine), described(other), strict=True):
        found += [f"{kind} {name}: ours only, {str(ours_[name])[:200]}" for name in ours_ if name not in theirs]
        found += [f"{kind} {name}: theirs only, {str(theirs[name])[:200]}" for name in theirs if name not in ours_]
        for name in ours_:
            if name in theirs and ours_[name] != theirs[name]:
                found.append(f"{kind} {name}: {_apart(ours_[name], theirs[name])}")
        if kind == "key" and not found and list(ours_) != list(theirs):
            found.append(f"{kind}s in another order: {list(ours_)} / {list(theirs)}")
    return found


def _apart(mine: Any, other: Any) -> str:
    one, two = mine[-1], other[-1]
    if not (isinstance(one, list) and isinstance(two, list)):
        return f"ours {str(mine)[:200]}, theirs {str(other)[:200]}"
    pairs = [(place, *pair) for place, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]]
    return f"{len(one)} and {len(two)} items, {len(pairs)} of them different: {pairs[:5]}"


def with_tokenizer(case: dict[str, Any], place: Path, tokenizers: Path, name: str) -> Path:
    """The checkpoint of the case with this tokenizer; `UNIGRAM` is that of T5 and XLM-RoBERTa, from beside this file."""
    if name == "UNIGRAM":
        directory = write_checkpoint(place, with_vocabulary(case, 400))
        for file in ("spiece.model", "sentencepiece.bpe.model"):
            shutil.copy(HERE / "unigram.model", directory / file)
        return directory
    directory = write_checkpoint(place, with_vocabulary(case, SIZES[name]))
    for source in (tokenizers / name).iterdir():
        if source.name != "config.json":
            shutil.copyfile(source, directory / source.name)
    return directory


def judged(directory: Path, reference: Path) -> list[str]:
    """What is different, in words."""
    mine, other = directory.parent / "mine.gguf", directory.parent / "other.gguf"
    refused = {"ours": "", "theirs": ""}
    try:
        ours.convert(directory, "F32", mine, as_reference=True)
    except QuantcliError as error:
        refused["ours"] = error.message
    try:
        with silence():
            convert(reference, directory, "f32", other)
    except (Exception, SystemExit) as error:
        refused["theirs"] = f"{type(error).__name__}: {str(error)[:300]}"
    if any(refused.values()):
        return [f"{whose}: {why or 'writes'}" for whose, why in refused.items()]
    return differences(mine, other)


def main() -> None:
    """See the module's description."""
    reference, tokenizers, *names = sys.argv[1:]
    sys.path[:0] = [reference, str(Path(reference) / "gguf-py")]
    from conversion import load_all_models

    load_all_models()
    end_recursion()
    logging.disable(logging.CRITICAL)
    cases = all_cases()
    bad = 0
    for name in names or cases:
        architecture = find_architecture(cases[name]["config"]).name
        with tempfile.TemporaryDirectory() as place:
            tokenizer = FAMILIES.get(architecture, "gpt2")
            told = judged(with_tokenizer(cases[name], Path(place), Path(tokenizers), tokenizer), Path(reference))
        bad += bool(told) and "ours: writes" not in told
        print(f"{architecture} {name}: " + ("\n    ".join(["", *told[:12]]) if told else "same"), flush=True)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
