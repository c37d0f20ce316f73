"""A model that every runner test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantcli.conversion.convert import convert


@pytest.fixture(scope="session")
def stories(golden, tmp_path_factory) -> Path:
    """stories260K in F32, by our converter, which is tested to write what the reference's does."""
    path = tmp_path_factory.mktemp("runner") / "stories.gguf"
    convert(golden / "stories260K", "F32", path)
    return path
