"""The built-in calibration text: well formed, broad, mixed from the beginning, and none of it held out for evaluation."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

import pytest
from make_calibration_arithmetic import TARGET, arithmetic

from quantcli.quality.calibration_text import DIRECTORY, calibration_text, domain_of, interleaved, mixed, passages

FILES = {path.name: path for path in sorted(DIRECTORY.glob("*.txt"))}

DOMAINS = {
    "classics", "code", "data", "dialogue", "encyclopedia", "languages", "law", "math", "news", "prose", "scripts",
    "technical",
}  # fmt: skip

SCRIPTS = (
    "LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "TAMIL", "THAI", "CJK", "HIRAGANA",
    "KATAKANA", "HANGUL", "GEORGIAN", "ARMENIAN", "ETHIOPIC",
)  # fmt: skip

MARKS = {
    "Python": "def ", "C": "#include <", "C++": "template <typename", "Rust": "fn main() ->", "Go": "func (",
    "JavaScript": "export function", "TypeScript": "interface Props", "Java": "public final class", "SQL": "SELECT ",
    "Haskell": "instance Monoid", "shell": "#!/usr/bin/env bash", "HTML": "<!doctype html>", "CSS": "@media",
    "LaTeX": "\\begin{proof}", "YAML": "runs-on:", "XML": "<?xml", "JSON": '{"role": ', "CSV": "name,symbol,",
    "Markdown": "| --- |", "a log": " ERROR ", "a diff": "@@ -", "a chat": "<|im_start|>user", "a tool call": "<tool_call>",
}  # fmt: skip
"""A string that occurs in each language or notation, and hardly elsewhere."""

CONTROLS = {"Cc", "Cs", "Co", "Cn"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_plain_text(name: str) -> None:
    data = FILES[name].read_bytes()
    text = data.decode()
    assert text.endswith("\n")
    assert not text.startswith(("\n", "\ufeff"))
    assert {mark for mark in text if unicodedata.category(mark) in CONTROLS} <= {"\n", "\t"}
    assert "\ufffd" not in text
    assert text == unicodedata.normalize("NFC", text)
    assert not re.search(r"[ \t]+$|\n{4}", text, re.MULTILINE)


def test_the_text_has_the_size_that_it_should() -> None:
    assert 250_000 <= len(calibration_text().text.encode()) <= 400_000
    assert {domain_of(name) for name in FILES} == DOMAINS


def test_the_readme_describes_every_file() -> None:
    described = re.findall(r"^\| `([a-z-]+\.txt)` \|", (DIRECTORY / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert described == sorted(FILES)


def test_every_beginning_has_every_domain() -> None:
    size, first = 0, {}
    for name, passage in calibration_text().passages:
        first.setdefault(domain_of(name), size + len(passage.encode()))
        size += len(passage.encode()) + 2
    assert set(first) == DOMAINS
    assert max(first.values()) <= 32 << 10


def test_each_quarter_has_its_share_of_each_domain() -> None:
    found = [domain_of(name) for name, _ in calibration_text().passages]
    for domain in DOMAINS:
        for start in range(4):
            quarter = found[start * len(found) // 4 : (start + 1) * len(found) // 4]
            assert abs(quarter.count(domain) - found.count(domain) / 4) <= 1.5, (domain, start)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts(script: str) -> None:
    letters = {mark for mark in calibration_text().text if unicodedata.name(mark, "").startswith(script)}
    assert len(letters) >= 20


@pytest.mark.parametrize("kind", MARKS)
def test_notations(kind: str) -> None:
    assert MARKS[kind] in calibration_text().text


def test_passages_hold_the_whole_text_in_order() -> None:
    for path in FILES.values():
        text = path.read_text(encoding="utf-8")
        found = passages(text)
        assert "\n\n".join(found) == text.strip("\n")
        assert all(500 <= len(passage.encode()) <= 5000 for passage in found)
    assert sorted(calibration_text().passages) == sorted(
        (name, passage) for name, path in FILES.items() for passage in passages(path.read_text(encoding="utf-8"))
    )


def test_a_short_rest_joins_the_passage_before_it() -> None:
    long, short = "a" * 1100, "b" * 499
    assert passages(f"{long}\n\n{short}\n") == [f"{long}\n\n{short}"]
    assert passages(f"{long}\n\n{short}b\n") == [long, f"{short}b"]
    assert passages(f"{short}\n") == [short]


def test_sequences_are_spread_evenly() -> None:
    assert interleaved(["abcd", "xy", "", "1"]) == ["a", "x", "1", "b", "c", "y", "d"]
    paragraph = "p" * 1200
    files = {"a-1.txt": f"{paragraph}\n\n{paragraph}", "a-2.txt": paragraph, "b-1.txt": paragraph}
    assert [name for name, _ in mixed(files)] == ["a-1.txt", "b-1.txt", "a-2.txt", "a-1.txt"]


def test_the_digest_is_that_of_the_text() -> None:
    text = calibration_text()
    assert text.digest == hashlib.sha256(text.text.encode()).hexdigest()
    assert text == calibration_text()


def test_the_version_is_raised_when_the_text_changes() -> None:
    """Importance matrices record the name, so that a name must stand for one text."""
    text = calibration_text()
    known = "f483a8a253f3e608706993082cfae267eb51b4036462c0f69876284155b2716c"
    assert (text.name, text.digest) == ("quantcli-calibration-1", known)


def test_the_arithmetic_is_what_the_script_writes() -> None:
    assert TARGET.read_text(encoding="utf-8") == arithmetic()


def word_sequences(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def test_no_passage_is_repeated() -> None:
    seen: dict[tuple[str, ...], str] = {}
    written = [(name, passage) for name, passage in calibration_text().passages if name != TARGET.name]
    for name, passage in written:
        for sequence in word_sequences(passage, 16):
            assert seen.setdefault(sequence, passage) == passage, (name, sequence)


def test_no_text_by_subject_is_in_it() -> None:
    """What models are evaluated with must not be what they were calibrated with."""
    held_out = sorted((DIRECTORY.parent / "subjects").glob("*.txt"))
    if not held_out:
        pytest.skip("there are no texts by subject")
    own = word_sequences(calibration_text().text, 12)
    for path in held_out:
        assert not own & word_sequences(path.read_text(encoding="utf-8"), 12), path.name


@pytest.mark.parametrize("corpus", ["wikitext-2-test.txt", "tinystories-valid.txt", "calibration-v3.txt"])
def test_no_corpus_that_models_are_tested_with_is_in_it(shared: Path, corpus: str) -> None:
    path = shared / "corpora" / corpus
    if not path.exists():
        pytest.skip(f"no {path}")
    own = word_sequences(calibration_text().text, 8)
    assert not own & word_sequences(path.read_text(encoding="utf-8", errors="replace"), 8)
