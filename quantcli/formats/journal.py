"""The first line of a journal: of what work it is the progress.

A journal is a file of JSON lines beside the work, from which an interrupted run continues. Its first line has the kind of
work and its subject: the names of files and options, each with what identifies its content. A run continues only the
work of an equal subject.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from quantcli.core.listing import listed

Subject = Sequence[tuple[str, str]]
"""What is worked on, in order: the names of files, texts and options, each with what identifies its content."""

VERSION = 1


def journal_line(value: Any) -> bytes:
    """A line of a journal."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def first_line(kind: str, subject: Subject) -> bytes:
    """The first line of a journal of this kind of work."""
    return journal_line({kind: VERSION, "of": subject})


def difference(kind: str, found: bytes, subject: Subject) -> str:
    """How the work of a first line differs from this one, for a message. `kind` is a noun, such as `evaluation`."""
    article = "an" if kind[0] in "aeiou" else "a"
    try:
        head = json.loads(found)
        before = {str(name): value for name, value in head["of"]}
        version = head[kind]
    except (ValueError, KeyError, TypeError):
        return f"this is not the progress of {article} {kind}"
    if version != VERSION:
        return f"this is the progress of {article} {kind} by another version of quantcli"
    now = dict(subject)
    names = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    return f"this is the progress of another {kind}; what differs: {listed(names) or 'the order or number of files'}"


def digest(data: bytes) -> str:
    """What identifies bytes in a subject."""
    return hashlib.sha256(data).hexdigest()[:32]
