"""Random texts that tokenizers stumble over: scripts, digits, white space, emoji, quotes, in every mixture."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " " * 8 + "\n\n\t\r",
    ".,;:!?'\"-_()[]{}<>/\\|@#$%^&*+=~`",
    "àéîõüßøçñÄÖÅĐłžőşİıſ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюяЁЇ",
    "αβγδεζηθλμπσςφωΆΈ",
    "的一是不了人我在有他这中大来上国",
    "ひらがなカタカナー々〆",
    "한국어텍스트",
    "العربيةשלוםहिन्दीไทยភាសា",
    "🚀😶🌫️🦙✅👩‍👩‍👧🇫🇷",
    "½²③Ⅷ٣४๙",
    "\u00a0\u2003\u3000\u200b\u200d\ufeff\u0301\u0300",
)
WORDS = (
    "the",
    "Hello",
    "I've",
    "don't",
    "we'LL",
    "it'S",
    "'tis",
    " world",
    "  ",
    "\n\n",
    "1234567",
    "3.14",
    "http://",
    "::",
)


def random_texts(seed: int, count: int, extra: Sequence[str] = ()) -> Iterator[str]:
    """`count` texts of up to some 60 characters; `extra` strings are mixed in."""
    source = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(source.randint(0, 12)):
            kind = source.random()
            if extra and kind < 0.15:
                parts.append(source.choice(extra))
            elif kind < 0.35:
                parts.append(source.choice(WORDS))
            else:
                alphabet = source.choice(ALPHABETS)
                parts.append("".join(source.choice(alphabet) for _ in range(source.randint(1, 8))))
        yield "".join(parts)
