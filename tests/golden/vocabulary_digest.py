"""Long arrays of a vocabulary as a length, a digest and their last values."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

SHOWN = 16


def digest(value: Any) -> Any:
    """`value` itself, or for a long array what tells it from others. Floats are rounded to 32 bits, as GGUF has them."""
    if isinstance(value, float):
        return float(np.float32(value))
    if not isinstance(value, list) and not isinstance(value, np.ndarray):
        return value
    values = [
        item if isinstance(item, str) else np.float32(item).item() if isinstance(item, float | np.floating) else int(item)
        for item in value
    ]
    if len(values) <= SHOWN:
        return values
    text = json.dumps(values, ensure_ascii=False)
    return {"length": len(values), "last": values[-SHOWN:], "sha256": hashlib.sha256(text.encode()).hexdigest()}
