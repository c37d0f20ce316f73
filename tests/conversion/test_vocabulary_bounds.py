"""Steps of a tokenizer.json that could take all time or memory end in one line; usual ones run without another process."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quantcli.conversion.vocabulary import convert, vocabulary_metadata
from quantcli.conversion.vocabulary.step_bounds import is_bounded
from quantcli.core import isolated
from quantcli.core.errors import QuantcliError, UnsupportedError
from quantcli.formats.checkpoint.checkpoint import Checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from vocabulary_cases import KINDS, MODELS  # noqa: E402
from vocabulary_cases_byte_level import ENDS, byte_level  # noqa: E402
from vocabulary_files import PRE_TOKENIZER, config, write_case  # noqa: E402

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BOMB = {"type": "Sequence", "normalizers": [DOUBLED] * 33}


def template(single: str, **ids: list[int]) -> dict[str, Any]:
    """A post-processor: `A` is the text, other words are special tokens."""
    words = single.split()
    items = [{"Sequence" if word == "A" else "SpecialToken": {"id": word, "type_id": 0}} for word in words]
    tokens = {word: {"id": word, "ids": listed, "tokens": [word] * len(listed)} for word, listed in ids.items()}
    return {"type": "TemplateProcessing", "single": items, "pair": items, "special_tokens": tokens}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def metadata(directory: Path, parts: Mapping[str, Any], pre_tokenizer: str | None = PRE_TOKENIZER) -> dict[str, Any]:
    files = {"config.json": config(300), "tokenizer.json": byte_level(ENDS) | dict(parts)}
    checkpoint = Checkpoint(write_case(directory, files), directory, files["config.json"], {})
    return vocabulary_metadata(checkpoint, None, pre_tokenizer=pre_tokenizer)


UNBOUNDED = {
    "doubling": {"normalizer": BOMB},
    "doubling, then nothing of it": {"normalizer": BOMB, "post_processor": template("x", x=[1])},
    "lengthening": {"normalizer": {**DOUBLED, "content": "a" * 1000}},
    "prepending": {"normalizer": {"type": "Prepend", "prepend": "a" * 1000}},
    "doubling when decoded": {"decoder": {"type": "Sequence", "decoders": [DOUBLED] * 33}},
    "doubling of tokens": {"post_processor": {"type": "Sequence", "processors": [template("A A")] * 33}},
    "many tokens": {"post_processor": template("A x x x x", x=[1] * 100)},
    "a pattern": {"pre_tokenizer": split("(a+)+b")},
    "a pattern in a list": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("(a+)+b"), BYTES]}},
    "a pattern to replace": {"normalizer": {**DOUBLED, "pattern": {"Regex": "(a+)+b"}}},
    "a map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "many steps": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Strip"}] * 65}},
    "no type": {"normalizer": {"normalizers": []}},
    "another type": {"normalizer": {"type": "Doubling"}},
    "another shape": {"normalizer": [BOMB]},
}


@pytest.mark.parametrize("parts", UNBOUNDED.values(), ids=UNBOUNDED)
def test_steps_without_a_known_bound(parts: dict[str, Any]) -> None:
    assert not is_bounded(byte_level(ENDS) | parts)


def test_usual_tokenizers_are_bounded(shared: Path) -> None:
    files = [files["tokenizer.json"] for files in KINDS.values() if "tokenizer.json" in files]
    models = [path for name in MODELS if (path := shared / "tokenizers" / name / "tokenizer.json").exists()]
    files += [json.loads(path.read_text(encoding="utf-8")) for path in models]
    for tokenizer in files:
        assert is_bounded(tokenizer) or tokenizer["model"]["type"] == "Unigram"


def test_a_bomb_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "call", partial(isolated.call, seconds=2))
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json: the steps of its tokenizer (take more than|do not end)"):
        metadata(tmp_path, {"normalizer": BOMB}, None)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"decoder": None},
        {"model": {"type": "BPE", "merges": [], "vocab": {"a": "x"}}},
        {"pre_tokenizer": split("(")},
    ],
)
def test_the_process_gives_what_this_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any]
) -> None:
    def outcome() -> Any:
        try:
            return list(metadata(tmp_path, parts).items())
        except QuantcliError as error:
            return type(error), error.message

    monkeypatch.setattr(convert, "is_bounded", lambda tokenizer: True)
    here = outcome()
    monkeypatch.setattr(convert, "is_bounded", lambda tokenizer: False)
    assert outcome() == here
