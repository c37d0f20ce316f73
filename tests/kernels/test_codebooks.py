"""The codebooks are facts of the format: their bytes are pinned, and they agree with an independent reader's."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.kernels.blocks.codebooks import LATTICES, codebook, neighbours

DIGESTS = {
    "IQ1_S": "860abd50119dd9a8",
    "IQ1_M": "860abd50119dd9a8",
    "IQ2_XXS": "1dcfdb706e2d054b",
    "IQ2_XS": "0ee0ccceba125037",
    "IQ2_S": "0491c651648ee6a1",
    "IQ3_XXS": "60789ac17b994c34",
    "IQ3_S": "2c1789dfd4df2cfb",
}


@pytest.mark.parametrize("name", LATTICES)
def test_digest(name: str) -> None:
    book = codebook(name)
    data = book.codes.astype("<u2").tobytes() + book.values.tobytes()
    assert hashlib.sha256(data).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", LATTICES)
def test_agrees_with_the_gguf_package(name: str) -> None:
    quants = pytest.importorskip("gguf").quants
    reader: Any = getattr(quants, name if name != "IQ1_M" else "IQ1_S")
    reader.init_grid()
    grid = np.asarray(reader.grid, np.float32).reshape(codebook(name).values.shape)
    np.testing.assert_array_equal(codebook(name).values, grid)


@pytest.mark.parametrize("name", LATTICES)
def test_a_point_is_its_only_candidate(name: str) -> None:
    codes, near = codebook(name).codes, neighbours(name)
    np.testing.assert_array_equal(near.starts[codes + 1] - near.starts[codes], 1)
    np.testing.assert_array_equal(near.candidates[near.starts[codes]], codes)
    np.testing.assert_array_equal(near.index[codes], np.arange(len(codes)))
    assert np.count_nonzero(near.index >= 0) == len(codes)


@pytest.mark.parametrize("name", LATTICES)
def test_candidates_are_the_nearest_shells_in_order(name: str) -> None:
    """Against the definition, point by point, for a sample of the codes."""
    lattice, near = LATTICES[name], neighbours(name)
    codes = codebook(name).codes.astype(int)
    spread = lattice.bits * np.arange(lattice.dimensions)
    levels = codes[:, None] >> spread & (1 << lattice.bits) - 1
    random = np.random.default_rng(7)
    for _ in range(50):
        point = random.integers(0, len(lattice.values), lattice.dimensions)
        code = int((point << spread).sum())
        if near.index[code] >= 0:
            continue
        ranked = sorted((int(((row - point) ** 2).sum()), place) for place, row in enumerate(levels))
        shells = sorted({distance for distance, _ in ranked})[: lattice.shells]
        expected = [codes[place] for distance, place in ranked if distance in shells]
        assert near.candidates[near.starts[code] : near.starts[code + 1]].tolist() == expected


@pytest.mark.parametrize("name", LATTICES)
def test_tables_cannot_be_changed(name: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        codebook(name).values[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        neighbours(name).starts[0] = 1


@pytest.mark.parametrize("damage", ["nothing", "cut", "changed", "no folder"])
def test_neighbours_are_kept_on_disk(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happened to the file in between, the tables are the same."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("quantcli.kernels.blocks.codebooks.cache_directory", lambda: folder)
    build = neighbours.__wrapped__
    first = build("IQ3_XXS")
    (file,) = folder.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "no folder":
        file.unlink()
        folder.rmdir()
        folder.write_bytes(b"")
    second = build("IQ3_XXS")
    for field in fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
        assert not getattr(second, field.name).flags.writeable
    if damage != "no folder":
        assert file.read_bytes()[:2] == b"PK"
        assert list(folder.iterdir()) == [file]


def test_kept_neighbours_are_read_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantcli.kernels.blocks.codebooks.cache_directory", lambda: tmp_path)
    built = neighbours.__wrapped__("IQ3_XXS")
    (file,) = tmp_path.iterdir()
    np.savez(file, **{field.name: getattr(built, field.name) + 1 for field in fields(built)})
    read = neighbours.__wrapped__("IQ3_XXS")
    for field in fields(built):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(built, field.name) + 1)
