"""The script that compares our classes with the registry of the reference."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

import registry_coverage


def test_no_class_that_is_left_out_is_known():
    reasons, ours = registry_coverage.left_out(), registry_coverage.known()
    assert sum(map(len, reasons.values())) > 20
    assert [name for kind, names in reasons.items() for name in names if name in ours[kind]] == []


def test_the_registry_is_read_without_running_it(tmp_path: Path):
    (tmp_path / "conversion").mkdir()
    tables = ('TEXT_MODEL_MAP: dict[str, str] = {"A": "a", "B": "b"}', 'MMPROJ_MODEL_MAP: dict[str, str] = {"C": "c"}')
    text = "\n".join(("import absent", *tables))
    (tmp_path / "conversion/__init__.py").write_text(text)
    assert registry_coverage.registry(tmp_path) == {"text": ["A", "B"], "projectors": ["C"]}


def test_every_class_is_known_or_explained():
    names, ours = {"text": ["A", "B", "C"]}, {"text": {"A", "B"}}
    assert registry_coverage.faults(names, ours, {"text": {"C": "rare"}}) == []
    told = registry_coverage.faults(names, ours, {"text": {"B": "rare", "D": "rare"}})
    assert told == [
        "text: C is neither known nor explained",
        "text: B is known, and explained",
        "text: D is explained, but the reference has no such class",
    ]
