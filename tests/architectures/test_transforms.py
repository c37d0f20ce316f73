"""Lazy transforms against the same arithmetic on whole arrays, by arbitrary stretches of rows and from several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from memory import counting, memory_tensor

from quantcli.architectures.transforms import (
    add,
    as_float32,
    concatenate,
    cut,
    have_same_numbers,
    llama3_rope_factors,
    negative_exp,
    part,
    rearrange_rows,
    reshape,
    rope_factors,
    rope_halves,
    rope_pairs,
    stack,
    transpose,
    ungroup_rows,
)
from quantcli.core.block_types import TYPES
from quantcli.core.errors import ModelError
from quantcli.tensors import column_blocks, transposed
from quantcli.tensors.column_blocks import BLOCK_BYTES, READ_BYTES
from quantcli.tensors.files import InputFile
from quantcli.tensors.tensor import StoredTensor


def rope_permuted(weights, heads):
    """The permutation as the reference converter does it, on a whole array."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)
    )


def rope_split(weights, head_size, rotated):
    """Of every head the even rows of those rotated, then the odd ones, then the rest."""
    order = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, head_size)]
    return weights.reshape(-1, head_size, *weights.shape[1:])[:, order].reshape(weights.shape)


W = counting(24, 5)
E = counting(3, 8, 6)
B = (np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
H = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float16)

CASES = {
    "rope_pairs": (rope_pairs(memory_tensor(W), 4), rope_permuted(W, 4)),
    "rope_pairs of one head": (rope_pairs(memory_tensor(W), 1), rope_permuted(W, 1)),
    "rope_pairs of a bias": (rope_pairs(memory_tensor(counting(24)), 3), rope_permuted(counting(24), 3)),
    "rope_pairs of bf16": (rope_pairs(memory_tensor(B[:6]), 1), rope_permuted(B[:6], 1)),
    "rope_halves": (rope_halves(memory_tensor(W), 6, 6), rope_split(W, 6, 6)),
    "rope_halves of a part": (rope_halves(memory_tensor(W), 8, 4), rope_split(W, 8, 4)),
    "rope_halves of a bias": (rope_halves(memory_tensor(counting(24)), 12, 6), rope_split(counting(24), 12, 6)),
    "rope_halves of nothing": (rope_halves(memory_tensor(W), 6, 0), W),
    "fused per head to fused per kind": (
        rearrange_rows(memory_tensor(W), [4, 3, -1], [1, 0, 2]),
        W.reshape(4, 3, 2, 5).transpose(1, 0, 2, 3).reshape(24, 5),
    ),
    "first part": (part(memory_tensor(W), 0, 0, 3), W[:8]),
    "last part": (part(memory_tensor(W), 0, 2, 3), W[16:]),
    "part of experts": (part(memory_tensor(E), -2, 1, 2), E[:, 4:]),
    "part of a vector": (part(memory_tensor(counting(12)), 0, 1, 3), counting(12)[4:8]),
    "part of a part": (part(part(memory_tensor(W), 0, 1, 2), 0, 1, 3), W[16:20]),
    "cut of rows": (cut(memory_tensor(W), 0, 3, 11), W[3:11]),
    "cut of experts": (cut(memory_tensor(E), 1, 2, 5), E[:, 2:5]),
    "cut of whole experts": (cut(memory_tensor(E), 0, 1, 3), E[1:3]),
    "every second row": (cut(memory_tensor(W), 0, 1, 24, 2), W[1::2]),
    "every third row of experts": (cut(memory_tensor(E), -2, 1, 8, 3), E[:, 1::3]),
    "every second of a vector": (cut(memory_tensor(counting(12)), 0, 0, 12, 2), counting(12)[::2]),
    "reshape": (reshape(memory_tensor(W), [2, 3, 4, 5]), W.reshape(2, 3, 4, 5)),
    "reshape to longer rows": (reshape(memory_tensor(W), [4, 30]), W.reshape(4, 30)),
    "reshape to shorter rows": (reshape(memory_tensor(E), [48, 3]), E.reshape(48, 3)),
    "reshape across rows": (reshape(memory_tensor(W), [2, 15, 4]), W.reshape(2, 15, 4)),
    "reshape of a vector to columns": (reshape(memory_tensor(H[0]), [4, 1]), H[0].reshape(4, 1)),
    "reshape to a vector": (reshape(memory_tensor(W), [120]), W.reshape(120)),
    "negative exp": (negative_exp(memory_tensor(W / 64)), -np.exp(W.astype(np.float64) / 64).astype(np.float32)),
    "negative exp of f16": (negative_exp(memory_tensor(H)), -np.exp(H.astype(np.float64)).astype(np.float16)),
    "cut of reshaped": (cut(reshape(memory_tensor(W), [4, 6, 5]), 1, 4, 6), W.reshape(4, 6, 5)[:, 4:]),
    "every second column": (cut(transpose(memory_tensor(W)), 0, 0, 5, 2), W.T[::2]),
    "transpose": (transpose(memory_tensor(W)), W.T),
    "transpose of experts": (transpose(memory_tensor(E)), E.transpose(0, 2, 1)),
    "transpose of f16": (transpose(memory_tensor(H)), H.T),
    "ungroup rows": (
        ungroup_rows(memory_tensor(W), 2, [8, 2, 2]), np.concatenate([W[:8], W[12:20], W[8:10], W[20:22], W[10:12], W[22:]])
    ),
    "ungroup rows of a vector": (
        ungroup_rows(memory_tensor(counting(12)), 3, [2, 1, 1]), counting(12)[[0, 1, 4, 5, 8, 9, 2, 6, 10, 3, 7, 11]]
    ),
    "ungroup one group": (ungroup_rows(memory_tensor(W), 1, [20, 2, 2]), W),
    "stack": (stack([memory_tensor(W), memory_tensor(W + 1)]), np.stack([W, W + 1])),
    "stack of vectors": (stack([memory_tensor(W[0]), memory_tensor(W[1])]), W[:2]),
    "concatenate": (concatenate([memory_tensor(W), memory_tensor(W[:7])]), np.concatenate([W, W[:7]])),
    "concatenate vectors": (
        concatenate([memory_tensor(counting(4)), memory_tensor(counting(3))]),
        np.concatenate([counting(4), counting(3)]),
    ),
    "stack of several types": (
        stack([memory_tensor(H), memory_tensor(counting(6, 4))]), np.stack([H.astype(np.float32), counting(6, 4)])
    ),
    "concatenate several types": (
        concatenate([memory_tensor(B), memory_tensor(counting(2, 9))]),
        np.concatenate([(B.astype(np.uint32) << 16).view(np.float32), counting(2, 9)]),
    ),
    "add in f32": (add(memory_tensor(W), 1), W + 1),
    "add in f16": (add(memory_tensor(H), 1), H + np.float16(1)),
    "add to bf16": (add(memory_tensor(B), 1), (B.astype(np.uint32) << 16).view(np.float32) + np.float32(1)),
    "bf16 as f32": (as_float32(memory_tensor(B)), (B.astype(np.uint32) << 16).view(np.float32)),
    "f16 as f32": (as_float32(memory_tensor(H)), H.astype(np.float32)),
    "f64 as f32": (as_float32(memory_tensor(counting(3, 4, dtype=np.float64) / 3)),
                   (counting(3, 4, dtype=np.float64) / 3).astype(np.float32)),
    "transpose of a transpose": (transpose(cut(transpose(memory_tensor(E)), 1, 0, 6, 2)), E[:, :, ::2]),
    "transforms of transforms": (rope_pairs(transpose(memory_tensor(counting(5, 24))), 4),
                                 rope_permuted(counting(5, 24).T, 4)),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def rows_of(tensor, start, stop):
    out = np.full((stop - start, tensor.row_bytes), 0xAA, np.uint8)
    tensor.read(start, stop, out)
    return out


def test_whole(case):
    tensor, expected = case
    assert tensor.shape == expected.shape
    np.testing.assert_array_equal(tensor.load(), expected)


def test_every_stretch_of_rows(case):
    tensor, expected = case
    whole = np.ascontiguousarray(expected).view(np.uint8).reshape(tensor.rows, tensor.row_bytes)
    for start in range(tensor.rows + 1):
        for stop in range(start, tensor.rows + 1):
            np.testing.assert_array_equal(rows_of(tensor, start, stop), whole[start:stop])


def test_from_several_threads_at_once():
    values = counting(512, 64)
    tensor = rope_pairs(transpose(memory_tensor(np.ascontiguousarray(values.T))), 8)
    expected = rope_permuted(values, 8).view(np.uint8)
    with ThreadPoolExecutor(8) as pool:
        stretches = [(start, start + 37) for start in range(0, 470, 11)] * 4
        for (start, stop), rows in zip(stretches, pool.map(lambda s: rows_of(tensor, *s), stretches), strict=True):
            np.testing.assert_array_equal(rows, expected[start:stop])


def test_reads_no_more_than_it_is_asked_for():
    source = memory_tensor(counting(1024, 4))
    rows_of(rope_pairs(source, 8), 130, 190)
    assert sum(source.read_rows) == 60


def test_transposing_reads_its_source_in_blocks(monkeypatch):
    monkeypatch.setattr(column_blocks, "BLOCK_BYTES", 64)
    source = memory_tensor(counting(100, 4))
    np.testing.assert_array_equal(transpose(source).load(), source.values.T)
    assert max(source.read_rows) * source.row_bytes <= 64 < BLOCK_BYTES


def test_transposing_in_stretches_reads_a_block_once(monkeypatch):
    monkeypatch.setattr(transposed, "BLOCK_BYTES", 4 * 100 * 8)
    source = memory_tensor(counting(3, 100, 20))
    tensor = transpose(source)
    rows = np.concatenate([rows_of(tensor, start, start + 4) for start in range(0, 60, 4)]).view(np.float32)
    np.testing.assert_array_equal(rows, source.values.transpose(0, 2, 1).reshape(60, 100))
    assert sum(source.read_rows) == 3 * 100 * 3  # blocks of 8, 8 and 4 of 20 columns


def test_blocks_of_other_tensors_are_their_own(monkeypatch):
    monkeypatch.setattr(transposed, "BLOCK_BYTES", 1 << 12)
    for number in range(20):
        values = counting(6, 8) + number
        np.testing.assert_array_equal(rows_of(transpose(memory_tensor(values)), 2, 3).view(np.float32), values.T[2:3])


def test_transposing_long_rows_of_a_file_reads_only_their_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(transposed, "BLOCK_BYTES", 1)
    values = counting(2, 3, 2 * READ_BYTES)
    path = tmp_path / "data"
    path.write_bytes(b"head" + values.tobytes())
    source = StoredTensor("source", values.shape, TYPES["F32"], InputFile(path), 4)
    read = []
    monkeypatch.setattr(
        InputFile, "read_into", lambda self, out, position, plain=InputFile.read_into: (
            read.append(len(out)), plain(self, out, position)
        ),
    )  # fmt: skip
    turned = transpose(source)
    assert turned.shape == (2, 2 * READ_BYTES, 3)
    start, stop = 2 * READ_BYTES - 5, 2 * READ_BYTES + 7
    expected = values.transpose(0, 2, 1).reshape(-1, 3)[start:stop]
    np.testing.assert_array_equal(rows_of(turned, start, stop).view(np.float32), expected)
    assert sorted(read) == [20, 20, 20, 28, 28, 28]


def test_what_does_not_divide_is_refused():
    for head_size, rotated in ((5, 2), (6, 3), (6, 8), (0, 2)):
        with pytest.raises(ModelError, match=f"24 rows are not heads of {head_size} with {rotated} to rotate"):
            rope_halves(memory_tensor(W), head_size, rotated)
    with pytest.raises(ModelError, match="24 rows cannot be reshaped to 5 x 2 x -1"):
        rope_pairs(memory_tensor(W), 5)
    with pytest.raises(ModelError, match="not valid extents"):
        rope_pairs(memory_tensor(W), 0)
    with pytest.raises(ModelError, match="into 5 equal parts"):
        part(memory_tensor(W), 0, 0, 5)
    with pytest.raises(ModelError, match="no range 0:1 along axis 1"):
        part(memory_tensor(W), 1, 0, 5)
    with pytest.raises(ModelError, match="into 5 equal parts along axis 2"):
        part(memory_tensor(W), 2, 0, 5)
    with pytest.raises(ModelError, match="no range 20:25 along axis 0"):
        cut(memory_tensor(W), 0, 20, 25)
    with pytest.raises(ModelError, match="cannot be reshaped to 4 x 31"):
        reshape(memory_tensor(W), [4, 31])
    with pytest.raises(ModelError, match="cannot be reshaped to -4 x -30"):
        reshape(memory_tensor(W), [-4, -30])
    with pytest.raises(ModelError, match="cannot be reshaped to 5 x 5"):
        reshape(memory_tensor(W), [5, 5])
    with pytest.raises(ModelError, match=r"24 rows are not 5 groups of 3 \+ 1 \+ 1"):
        ungroup_rows(memory_tensor(W), 5, [3, 1, 1])
    with pytest.raises(ModelError, match="24 rows are not -4 groups"):
        ungroup_rows(memory_tensor(W), -4, [-2, -2, -2])


def test_reshaping_reads_only_the_rows_that_hold_what_is_asked_for():
    source = memory_tensor(counting(64, 6))
    found = rows_of(reshape(source, [96, 4]), 3, 5).view(np.float32)
    np.testing.assert_array_equal(found, counting(384)[12:20].reshape(2, 4))
    assert source.read_rows == [2]


def test_the_negative_exp_of_logarithms_of_small_numbers_is_torchs():
    torch = pytest.importorskip("torch", reason="the reference computes with torch")
    logarithms = np.log(np.arange(1.0, 65.0)).astype(np.float32)
    expected = -torch.exp(torch.from_numpy(logarithms))
    np.testing.assert_array_equal(negative_exp(memory_tensor(logarithms)).load(), expected.numpy())


@pytest.mark.parametrize("place", [0, 300_000])
def test_tensors_are_compared_until_they_differ(place):
    values = counting(400_000, 1)
    other = values.copy()
    other[place] += 1
    assert have_same_numbers(memory_tensor(values), memory_tensor(values.copy()))
    source = memory_tensor(values)
    assert not have_same_numbers(source, memory_tensor(other))
    step = BLOCK_BYTES // 4
    assert sum(source.read_rows) == min(400_000, (place // step + 1) * step)
    assert not have_same_numbers(source, memory_tensor(values.reshape(-1, 2)))
    assert not have_same_numbers(source, memory_tensor(values.astype(np.float64)))


def test_what_does_not_fit_is_not_joined():
    with pytest.raises(ModelError, match="cannot be concatenated"):
        stack([memory_tensor(W), memory_tensor(W[:7])])
    with pytest.raises(ModelError, match="cannot be concatenated"):
        concatenate([memory_tensor(W, "a"), memory_tensor(counting(2, 3), "b")])


def test_llama3_rope_factors_against_torch():
    torch = pytest.importorskip("torch", reason="torch computes what the reference writes")
    for base, size, context in [(500000.0, 128, 8192), (500000.0, 64, 8192), (10000.0, 80, 300), (1e6, 256, 4096)]:
        rope = {"rope_theta": base, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": context}  # fmt: skip
        expected = []
        for frequency in 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)):
            wavelength = 2 * torch.pi / frequency
            smooth = (context / wavelength - 1.0) / 3.0
            between = 1 / ((1 - smooth) / 8.0 + smooth)
            expected.append(1.0 if wavelength < context / 4 else 8.0 if wavelength > context else float(between))
        np.testing.assert_allclose(llama3_rope_factors(rope, size), np.float32(expected), rtol=2e-7)


def test_rope_factors_are_as_many_numbers_as_the_rope_has_pairs():
    assert rope_factors([1, 2.5], 2).tobytes() == np.array([1, 2.5], np.float32).tobytes()
    for wrong in ([1.0], [[1.0, 2.0]], ["one", "two"]):
        with pytest.raises(ValueError, match=r"expected 2|convert"):
            rope_factors(wrong, 2)
