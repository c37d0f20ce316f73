"""Chat templates of all kinds beside transformers: its renderings as they are kept, and the library where it is there."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
COMPARE = runpy.run_path(str(GOLDEN / "compare_chat_templates.py"))
RENDERED = json.loads((GOLDEN / "chat_templates.json").read_text("utf-8"))
TEMPLATES = COMPARE["own_templates"]()


@pytest.fixture(scope="module")
def plain():
    pytest.importorskip("transformers", reason="the other renderer")
    return COMPARE["plain_tokenizer"]()


def test_every_template_has_its_renderings():
    assert len(TEMPLATES) >= 40
    assert {name: list(found) for name, found in RENDERED.items()} == {
        name: [*COMPARE["cases"](name)] for name in TEMPLATES
    }
    assert all(any(text is not None for text in found.values()) for found in RENDERED.values())


@pytest.mark.parametrize("name", sorted(RENDERED))
def test_templates_are_rendered_as_transformers_renders_them(name):
    assert COMPARE["ours"](name, TEMPLATES[name], COMPARE["SPECIAL"]) == RENDERED[name]


def test_what_is_kept_is_what_transformers_makes_of_them(plain):
    for name, template in TEMPLATES.items():
        assert COMPARE["theirs"](name, template, plain) == RENDERED[name], name


def test_the_templates_of_known_models(plain, shared):
    found = [*COMPARE["known_templates"](shared / "tokenizers")]
    assert found
    for name, template, tokenizer in found:
        expected = COMPARE["theirs"](name, template, tokenizer)
        assert COMPARE["ours"](name, template, tokenizer.special_tokens_map) == expected, name
