"""The pieces quantized checkpoints are decoded with: bit streams, small floats, grids of scales, transposes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from quantcli.core.block_types import ELEMENT_TYPES
from quantcli.core.errors import UnsupportedError
from quantcli.formats.checkpoint.pytorch import open_pytorch
from quantcli.formats.prequantized import decode, transposed
from quantcli.formats.prequantized.numbers import FLOAT_TABLES, PackedRows, integers, read_floats, unpack, with_rows
from quantcli.formats.prequantized.scaled import column_grid, group_width, scale_grid
from quantcli.formats.prequantized.transposed import block_cache, packed_along_columns, packed_along_rows, transposed_floats
from quantcli.tensors.files import InputFile
from quantcli.tensors.strided import StridedTensor
from quantcli.tensors.tensor import Tensor, stored_tensor

FIXTURES = Path(__file__).parent / "fixtures"


def stored(place: Path, values: np.ndarray, kind: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """A tensor in a file of its own."""
    path = place / f"{len(list(place.iterdir()))}.bin"
    path.write_bytes(values.tobytes())
    return stored_tensor(path.name, shape or values.shape, ELEMENT_TYPES[kind], InputFile(path), 0)


def stream(levels: list[int], bits: int) -> np.ndarray:
    """Codes as a stream of bits in whole 32-bit words, by way of a string of binary digits."""
    digits = "".join(f"{level:0{bits}b}"[::-1] for level in levels)
    digits += "0" * (-len(digits) % 32)
    return np.array([int(digits[at : at + 32][::-1], 2) for at in range(0, len(digits), 32)], np.uint32)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 31, 32, 33, 100])
def test_codes_of_any_width(bits: int, count: int) -> None:
    rows = np.random.default_rng(count).integers(0, 1 << bits, (3, count))
    words = np.stack([stream(row.tolist(), bits) for row in rows])
    np.testing.assert_array_equal(unpack(words, bits, count), rows)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("outputs", [32, 96, 160])
def test_codes_packed_along_columns_or_rows(
    bits: int, outputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transposed, "BLOCK_BYTES", 700)
    levels = np.random.default_rng(bits).integers(0, 1 << bits, (outputs, 64))
    along_columns = stored(tmp_path, np.stack([stream(row.tolist(), bits) for row in levels]).T.copy(), "I32")
    along_rows = stored(tmp_path, np.stack([stream(column.tolist(), bits) for column in levels.T]), "I32")
    rows = PackedRows(
        stored(tmp_path, np.stack([stream(c.tolist(), bits) for c in levels.T]).T.copy(), "I32"), bits, integers(bits)
    )
    for numbers in (
        packed_along_columns(along_columns, bits, 64, integers(bits), block_cache()),
        packed_along_rows(along_rows, bits, integers(bits), block_cache()),
        rows,
    ):
        for start, stop in ((0, outputs), (5, 6), (29, 32), (31, outputs - 1), (7, 7)):
            np.testing.assert_array_equal(numbers.rows(start, stop), levels[start:stop].astype(np.float32))


def float_of(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """A small float, by its definition."""
    sign, rest = divmod(code, 1 << (exponent_bits + mantissa_bits))
    exponent, mantissa = divmod(rest, 1 << mantissa_bits)
    fraction = mantissa / (1 << mantissa_bits)
    value = fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias)
    return -value if sign else value


@pytest.mark.parametrize(
    ("name", "layout", "special"),
    [
        ("F8_E4M3", (4, 3, 7), {0x7F, 0xFF}),
        ("F8_E5M2", (5, 2, 15), {code | sign for code in range(0x7C, 0x80) for sign in (0, 0x80)}),
        ("F8_E4M3FNUZ", (4, 3, 8), {0x80}),
        ("F8_E5M2FNUZ", (5, 2, 16), {0x80}),
    ],
)
def test_every_float_of_eight_bits(name: str, layout: tuple[int, int, int], special: set[int]) -> None:
    table = FLOAT_TABLES[name]
    for code in set(range(256)) - special:
        assert struct.pack("f", table[code]) == struct.pack("f", float_of(code, *layout)), hex(code)
    infinite = {0x7C: np.inf, 0xFC: -np.inf} if name == "F8_E5M2" else {}
    for code in special:
        np.testing.assert_equal(table[code], np.float32(infinite.get(code, np.nan)))


def test_every_power_of_two() -> None:
    assert FLOAT_TABLES["F8_E8M0"][:255].tolist() == [2.0 ** (code - 127) for code in range(255)]
    assert np.isnan(FLOAT_TABLES["F8_E8M0"][255])


@pytest.mark.parametrize(
    ("scales", "weight", "block", "expected"),
    [
        ((), (4, 6), None, np.zeros((4, 6))),
        ((1, 1), (2, 4, 6), None, np.zeros((8, 6))),
        ((4,), (4, 6), None, np.arange(4)[:, None]),
        ((4, 1), (4, 6), None, np.arange(4)[:, None]),
        ((2,), (2, 4, 6), None, np.arange(8)[:, None] // 4),
        ((2, 1, 1), (2, 4, 6), None, np.arange(8)[:, None] // 4),
        ((2, 4, 1), (2, 4, 6), None, np.arange(8)[:, None]),
        ((4, 3), (4, 6), None, np.arange(4)[:, None] * 3 + np.arange(6) // 2),
        ((2, 2), (4, 6), (3, 4), np.arange(4)[:, None] // 3 * 2 + np.arange(6) // 4),
        (
            (2, 2, 2),
            (2, 4, 6),
            (3, 4),
            (np.arange(8)[:, None] // 4 * 2 + np.arange(8)[:, None] % 4 // 3) * 2 + np.arange(6) // 4,
        ),
    ],
)
def test_scales_of_every_shape(
    scales: tuple[int, ...], weight: tuple[int, ...], block: tuple[int, int] | None, expected: np.ndarray, tmp_path: Path
) -> None:
    values = np.arange(np.prod(scales, dtype=int), dtype=np.float32)
    grid = scale_grid(stored(tmp_path, values, "F32", scales), weight, block)
    rows = int(np.prod(weight[:-1]))
    whole = np.broadcast_to(expected, (rows, weight[-1]))
    for start, stop in ((0, rows), (1, 3), (3, rows), (rows - 1, rows)):
        found = np.broadcast_to(grid.over(start, stop, weight[-1]), (stop - start, weight[-1]))
        np.testing.assert_array_equal(found, whole[start:stop])


@pytest.mark.parametrize("scales", [(2, 1, 6), (2, 6, 1), (12,)])
def test_scales_of_columns(scales: tuple[int, ...], tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32)
    grid = column_grid(stored(tmp_path, values, "F32", scales), (2, 6, 6))
    whole = values.reshape(2, 1, 6).repeat(6, 1).reshape(12, 6)
    for start, stop in ((0, 12), (4, 8), (6, 7), (11, 12)):
        found = np.broadcast_to(grid.over(start, stop, 6), (stop - start, 6))
        np.testing.assert_array_equal(found, whole[start:stop])
    with pytest.raises(ValueError, match="do not fit a weight of shape"):
        column_grid(stored(tmp_path, values, "F32", scales), (2, 6, 5))


@pytest.mark.parametrize(
    ("scales", "block"),
    [((3,), None), ((4, 4), None), ((4, 0), None), ((2, 2), None), ((2, 3), (3, 4)), ((5, 1), None), ((4, 7), None)],
)
def test_scales_that_do_not_fit(scales: tuple[int, ...], block: tuple[int, int] | None, tmp_path: Path) -> None:
    source = stored(tmp_path, np.zeros(np.prod(scales, dtype=int), np.float32), "F32", scales)
    with pytest.raises(ValueError, match="do not fit a weight of shape"):
        scale_grid(source, (4, 6), block)


def test_views_are_decoded_like_what_lies_in_one_piece(tmp_path: Path) -> None:
    """Transposed tensors, as PyTorch files have them."""
    path = tmp_path / "x.bin"
    codes = np.arange(96, dtype=np.uint8)
    path.write_bytes(codes.tobytes())
    view = StridedTensor("x", (12, 8), ELEMENT_TYPES["F8_E4M3"], InputFile(path), 0, (1, 12))
    expected = FLOAT_TABLES["F8_E4M3"][codes.reshape(8, 12).T]
    np.testing.assert_array_equal(read_floats(view, 0, 12), expected)
    np.testing.assert_array_equal(read_floats(view, 3, 5), expected[3:5])
    np.testing.assert_array_equal(decode({"x": view}, None)["x"].load(), expected)
    np.testing.assert_array_equal(read_floats(with_rows(view, 3), 0, 32), expected.reshape(-1, 3))


@pytest.mark.parametrize("kind", FLOAT_TABLES)
@pytest.mark.parametrize("strided", [False, True])
def test_scales_keep_their_type_in_rows_of_another_length(kind: str, strided: bool, tmp_path: Path) -> None:
    """The bytes of small floats must never be taken for integers, however they are laid out anew."""
    codes = np.arange(96, 120, dtype=np.uint8)
    source = stored(tmp_path, codes, kind, (4, 6))
    if strided:
        source = StridedTensor("x", (4, 6), ELEMENT_TYPES[kind], source.file, 0, (6, 1))
    rows = with_rows(source, 3)
    assert rows.type.name == kind
    expected = FLOAT_TABLES[kind][codes]
    np.testing.assert_array_equal(read_floats(rows, 0, 8), expected.reshape(8, 3))
    grid = scale_grid(source, (4, 12))
    np.testing.assert_array_equal(grid.over(0, 4, 12), expected.reshape(4, 6).repeat(2, 1))


@pytest.mark.parametrize(
    ("kind", "shape"), [("BOOL", (4, 6)), ("C64", (4, 6)), ("F4", (4, 6)), ("F6_E2M3", (4, 8)), ("C128", (2, 4))]
)
def test_what_is_no_number_is_refused(kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    source = stored(tmp_path, np.zeros(256, np.uint8), kind, shape)
    with pytest.raises(UnsupportedError, match=f"numbers stored as {kind} are not supported, only F64, F32"):
        read_floats(source, 0, 1)


def test_powers_of_two_as_torch_saves_them(tmp_path: Path) -> None:
    """An FP8 checkpoint in a PyTorch file, whose scales are `torch.float8_e8m0fnu`, once through a transpose."""
    torch = pytest.importorskip("torch", reason="the file is written by torch")
    codes = torch.arange(96, dtype=torch.uint8).repeat(64, 1).view(torch.float8_e4m3fn)
    bits = torch.arange(100, 112, dtype=torch.uint8)
    for scale in (bits.reshape(4, 3).view(torch.float8_e8m0fnu), bits.reshape(3, 4).view(torch.float8_e8m0fnu).T):
        torch.save({"m.weight": codes, "m.weight_scale_inv": scale}, tmp_path / "pytorch_model.bin")
        config = {"quant_method": "fp8", "weight_block_size": [16, 32], "scale_fmt": "ue8m0"}
        found = decode(open_pytorch(tmp_path / "pytorch_model.bin"), config)["m.weight"].load()
        wide = scale.float().repeat_interleave(16, 0).repeat_interleave(32, 1)
        np.testing.assert_array_equal(found, (codes.float() * wide).numpy())


@pytest.mark.parametrize(("width", "groups", "given", "expected"), [
    (200, 2, 128, 128), (200, 2, None, 100), (201, 2, None, None), (192, 3, 128, 64), (64, 1, 128, 128), (0, 0, None, None),
    (128, 4, 0, 32), (128, 4, -1, 32),
])  # fmt: skip
def test_how_wide_groups_are(width: int, groups: int, given: int | None, expected: int | None) -> None:
    assert group_width(width, groups, given) == expected


def test_small_floats_of_a_pytorch_file() -> None:
    tensors = open_pytorch(FIXTURES / "types.pt")
    decoded = decode(tensors, None)
    for name in ("f8_e4m3", "f8_e5m2"):
        raw = read_floats(tensors[name], 0, tensors[name].rows)
        np.testing.assert_array_equal(decoded[name].load(), raw)
    assert {name for name in tensors if decoded[name] is not tensors[name]} == {"f8_e4m3", "f8_e5m2"}


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16", "I8", "U8", "U16", "U32", "I32", "I64"])
def test_columns_of_any_type_as_rows(kind: str, tmp_path: Path) -> None:
    floats = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    code = floats.get(kind) or f"<{kind[0].lower()}{int(kind.lstrip('BFIU')) // 8}"
    values = np.array([[1, 2, 3], [100, 250 if kind[0] == "U" else 25, 7]])
    raw = (values.astype("<f4").view("<u4") >> 16).astype("<u2") if kind == "BF16" else values.astype(code)
    rows = transposed_floats(stored(tmp_path, raw, kind), block_cache())
    np.testing.assert_array_equal(rows.rows(0, 3), values.T.astype(np.float32))
    assert rows.rows(1, 2).dtype == np.float32
