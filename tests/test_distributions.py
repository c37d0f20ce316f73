"""The source distribution is whole, and so is the wheel that is built from it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]
PACKAGE_FILES = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "quantcli").rglob("*")
    if path.is_file() and path.suffix != ".pyc"
}
DOCUMENTS = {
    "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md", "pyproject.toml",
}  # fmt: skip


def built(project: Path, kind: str, target: Path) -> Path:
    """Build a distribution as pip does: by the backend's function, in the project's folder."""
    script = f"from hatchling.build import {kind}; print({kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True)
    return target / done.stdout.split()[-1]


def test_the_source_distribution_and_its_wheel_hold_every_file_of_the_package(tmp_path: Path) -> None:
    archive = built(ROOT, "build_sdist", tmp_path)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    project = tmp_path / archive.name.removesuffix(".tar.gz")
    names = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("quantcli/")} == PACKAGE_FILES
    assert names >= DOCUMENTS
    assert not {name.split("/")[0] for name in names} & {"formats", "kernels"}

    wheel = built(project, "build_wheel", tmp_path)
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == PACKAGE_FILES
