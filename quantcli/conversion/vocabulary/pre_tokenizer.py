"""Recognise the pre-tokenizer of a byte-level BPE by the hash of an encoded test text, or by its regular expressions.

Source: `get_vocab_base_pre` of llama.cpp's converter, which has only the hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from quantcli.architectures import pre_tokenizers
from quantcli.conversion.vocabulary.files import Request, TokenizerFiles
from quantcli.conversion.vocabulary.hugging_face import encode
from quantcli.conversion.vocabulary.tokens import token_text
from quantcli.core.errors import UnsupportedError, UsageError


def pre_tokenizer_name(request: Request, tokenizer: Tokenizer) -> str:
    """The name of the pre-tokenizer: the given one, else by the hash, else by the expressions in tokenizer.json.

    A vocabulary without tokenizer.json has no expressions. All known ones are tried until a hash matches.

    Raises:
        UnsupportedError: if neither hash nor expressions are known.
    """
    if request.pre_tokenizer is not None:
        return request.pre_tokenizer
    files = request.files
    name = next(filter(None, map(pre_tokenizers.name_by_hash, test_ids(files, tokenizer))), None)
    if name is None and files.tokenizer_path is None:
        name = next(_fitting(files, tokenizer), None)
    if name is not None:
        return name
    patterns = pre_tokenizers.patterns_of(files.tokenizer.get("pre_tokenizer"))
    name = pre_tokenizers.name_by_patterns(
        patterns,
        ignore_merges=bool(files.model.get("ignore_merges", False)),
        normalizer=_normalizer(files.tokenizer.get("normalizer")),
    )
    if name is not None:
        return name
    found = ", ".join(patterns) or "none"
    known = f"the nearest known one is {pre_tokenizers.nearest_name(patterns)!r}; " if patterns else ""
    raise UnsupportedError(
        f"{files.tokenizer_path or files.ranks or files.checkpoint.directory}: "
        f"its pre-tokenizer is unknown; patterns found: {found}",
        hint=f"{known}choose with --pre-tokenizer NAME",
    )


def _normalizer(normalizer: Mapping[str, Any] | None) -> str | None:
    """The type of a normalizer of one step; None if it has no or several steps."""
    steps = [normalizer] if normalizer else []
    while steps and steps[0].get("type") == "Sequence":
        steps = steps[0]["normalizers"]
    return steps[0]["type"] if len(steps) == 1 else None


def _fitting(files: TokenizerFiles, tokenizer: Tokenizer) -> Iterator[str]:
    for split, patterns in pre_tokenizers.splits().items():
        steps = [Split(Regex(pattern), "isolated") for pattern in patterns]
        tokenizer.pre_tokenizer = Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=False)])
        for name in filter(None, map(pre_tokenizers.name_by_hash, test_ids(files, tokenizer))):
            if pre_tokenizers.pre_tokenizers()[name].split == split:
                yield name


def test_ids(files: TokenizerFiles, tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of the test text, with the special tokens of the post-processor and with those of tokenizer_config.json.

    Both occur and may differ. The longer one comes first, since tokenizers with a begin token were hashed with it.
    """
    variants = [encode(files, tokenizer, pre_tokenizers.TEST_TEXT, add_special_tokens=True)]
    flags = [(role, files.configuration.get(f"add_{role}_token")) for role in ("bos", "eos")]
    if any(flag is not None for _, flag in flags):
        begin, end = (_special_id(files, tokenizer, role) if flag else None for role, flag in flags)
        plain = encode(files, tokenizer, pre_tokenizers.TEST_TEXT, add_special_tokens=False)
        variants.append([id_ for id_ in (begin, *plain, end) if id_ is not None])
    return sorted(variants, key=len, reverse=True)


def _special_id(files: TokenizerFiles, tokenizer: Tokenizer, role: str) -> int | None:
    text = token_text(files.configuration.get(f"{role}_token"))
    return None if text is None else tokenizer.token_to_id(text)


def check_pre_tokenizer(name: str) -> None:
    """Check that a pre-tokenizer exists.

    Raises:
        UsageError: if it does not.
    """
    known = pre_tokenizers.pre_tokenizers()
    if name not in known:
        raise UsageError(f"no pre-tokenizer is called {name!r}", hint=f"known are {', '.join(known)}")
