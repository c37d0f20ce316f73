"""Render chat templates beside transformers, and print what is different.

    python tests/golden/compare_chat_templates.py [TOKENIZERS] [--write]

The templates are those in `chat_templates/`, and those of the tokenizers in the folders of TOKENIZERS. Each is rendered
with the conversations of `chat_cases.py`, by transformers with `apply_chat_template`. With --write, what transformers makes
of the former goes to `chat_templates.json`.
"""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from quantcli.core.errors import GenerationError
from quantcli.runner.text.template import TemplateRenderer

HERE = Path(__file__).parent
GOLDEN = HERE / "chat_templates.json"
TABLES = runpy.run_path(str(HERE / "chat_cases.py"))
CASES, SPECIAL, NOW = TABLES["CASES"], TABLES["SPECIAL"], TABLES["NOW"]

Rendered = dict[str, str | None]
"""By the case's name the text, None where rendering fails."""


def own_templates() -> dict[str, str]:
    """The templates in `chat_templates/`."""
    return {path.stem: path.read_bytes().decode() for path in sorted((HERE / "chat_templates").glob("*.jinja"))}


def cases(name: str) -> dict[str, dict[str, Any]]:
    """The conversations for a template."""
    return {
        case: {key: value for key, value in options.items() if key != "only"}
        for case, options in CASES.items()
        if options.get("only", name) == name
    }


def ours(name: str, template: str, special: dict[str, str]) -> Rendered:
    """What quantcli makes of a template."""

    def render(messages: list[Any], **options: Any) -> str:
        return renderer.render(messages, now=NOW, **{**special, **options})

    with TemplateRenderer(template) as renderer:
        return _all(name, render, GenerationError)


def theirs(name: str, template: str, tokenizer: Any) -> Rendered:
    """What transformers makes of a template."""
    from transformers.utils import chat_template_utils

    def render(messages: list[Any], **options: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))

    with mock.patch.object(chat_template_utils, "datetime") as clock:
        clock.now.return_value = NOW
        # A template is a program: it may fail in any way.
        return _all(name, render, Exception)


def _all(name: str, render: Callable[..., str], failure: type[Exception]) -> Rendered:
    found: Rendered = {}
    for case, options in cases(name).items():
        try:
            found[case] = render(**options)
        except failure:
            found[case] = None
    return found


def plain_tokenizer() -> Any:
    """A tokenizer of transformers that knows the special tokens of the cases and nothing else."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: id_ for id_, text in enumerate(SPECIAL.values())}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, "<unk>")), **SPECIAL)


def known_templates(tokenizers: Path) -> Iterator[tuple[str, str, Any]]:
    """The chat templates of the tokenizers in a folder: names, templates, and the tokenizers of transformers."""
    from transformers import PreTrainedTokenizerFast

    for path in sorted(tokenizers.glob("*/tokenizer_config.json")):
        template = json.loads(path.read_text("utf-8")).get("chat_template")
        if isinstance(template, str):
            yield path.parent.name, template, PreTrainedTokenizerFast.from_pretrained(path.parent)


def compared(tokenizers: Path | None) -> Iterator[tuple[str, Rendered, Rendered]]:
    """Every template's name, what transformers makes of it, and what we do."""
    plain = plain_tokenizer()
    everything = [(name, template, plain) for name, template in own_templates().items()]
    everything += known_templates(tokenizers) if tokenizers else []
    for name, template, tokenizer in everything:
        yield name, theirs(name, template, tokenizer), ours(name, template, tokenizer.special_tokens_map)


def main() -> None:
    parser = argparse.ArgumentParser(description="Render chat templates beside transformers.")
    parser.add_argument("tokenizers", type=Path, nargs="?", metavar="TOKENIZERS", help="folders with tokenizer_config.json")
    parser.add_argument("--write", action="store_true", help=f"write {GOLDEN.name}")
    options = parser.parse_args()
    renderings = {}
    for name, expected, found in compared(options.tokenizers):
        different = [case for case in expected if expected[case] != found[case]]
        failed = sum(text is None for text in expected.values())
        print(f"{name}: {len(expected)} conversations, {failed} refused, {len(different)} different")
        for case in different:
            print(f"  {case}\n    expected {expected[case]!r}\n    found    {found[case]!r}")
        renderings[name] = expected
    if options.write:
        own = {name: renderings[name] for name in own_templates()}
        GOLDEN.write_text(json.dumps(own, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
