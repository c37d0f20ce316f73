"""Sensitivities on disk, under the user's cache directory: one file for each model, calibration and quality.

The model's own folder may be read-only or on the hub, so nothing is written there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from quantcli.conversion.job import Job
from quantcli.kernels.kernel_cache import cache_directory, sources_digest
from quantcli.kernels.old_caches import UNUSED_SECONDS
from quantcli.quality.sensitivity import Sensitivity
from quantcli.tensors.files import DataFile, InputFile

FOLDER: Final = "sensitivities"

_FILE: Final = re.compile(r"[0-9a-f]{32}\.json(?:\.tmp\.\w+)?")
"""Files of sensitivities, and what a process that was killed leaves of them."""

_VERSION: Final = 1
"""Changes with what is measured, where the sources of the kernels do not."""


def sensitivity_path(job: Job, settings: object) -> Path:
    """The file for a model that is measured under `settings`, whose `repr` has everything that matters besides the model.

    A changed model has another file: the names, sizes and times of its files count, its tensors, and the changes asked for.
    """
    model, request = job.model, job.request
    parts = [
        _VERSION,
        sources_digest(),
        [_identity(file) for file in model.source.files],
        [(tensor.name, tensor.shape, tensor.type.name) for tensor in model.tensors.values()],
        request.changes,
        request.adapters,
        None if model.imatrix is None else {name: _digest(values) for name, values in model.imatrix.entries.items()},
        settings,
    ]
    return cache_directory().parent / FOLDER / f"{_digest(repr(parts).encode())}.json"


def _identity(file: DataFile) -> tuple[str, int, int]:
    changed = file.path.stat().st_mtime_ns if isinstance(file, InputFile) else 0
    return str(file.path), file.size, changed


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def read_sensitivities(path: Path) -> dict[str, Sensitivity]:
    """What a file has, by tensor; nothing where there is none, or a damaged one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        with suppress(OSError):
            os.utime(path)  # it is in use
        return {
            name: Sensitivity(_numbers(entry["errors"]), _numbers(entry["divergences"])) for name, entry in document.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items()}


def write_sensitivities(path: Path, found: Mapping[str, Sensitivity]) -> None:
    """Write a file, at once or not at all. Where that is impossible, they are measured again the next time."""
    _remove_unused(path)
    document = {name: {"errors": dict(one.errors), "divergences": dict(one.divergences)} for name, one in found.items()}
    partial = path.with_name(f"{path.name}.tmp.{uuid4().hex[:16]}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _remove_unused(current: Path) -> None:
    """Remove the other files beside `current` that have not been used for a month, as `kernels.old_caches` does."""
    with suppress(OSError):
        for file in current.parent.iterdir():
            if file != current and _FILE.fullmatch(file.name):
                with suppress(OSError):
                    if time.time() - file.stat().st_mtime > UNUSED_SECONDS:
                        file.unlink()
