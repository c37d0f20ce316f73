"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """The golden data in the repository; see golden/README.md for where each comes from."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Larger reference data beside the checkout (or at QUANTCLI_SHARED); tests that need it skip where it is absent."""
    place = Path(os.environ.get("QUANTCLI_SHARED", ROOT.parent / "shared"))
    if not place.is_dir():
        pytest.skip(f"no reference data at {place}")
    return place
