"""Importance matrices: against what llama.cpp collects, against NumPy, written, merged, resumed."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from reference_imatrix import reference_imatrix
from tiny_model import write_model

from quantcli.conversion.convert import convert
from quantcli.conversion.source import open_source
from quantcli.core.errors import FormatError, GenerationError, UsageError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.imatrix import read_imatrix
from quantcli.formats.imatrix_sums import ImatrixSums, Sums, merge_sums, read_sums, write_legacy, write_sums
from quantcli.quality.imatrix import Collector, collect, cut_texts, even_shares
from quantcli.quality.source_file import SourceFile
from quantcli.runner.cache import Cache
from quantcli.runner.load import prepare_model

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = runpy.run_path(str(GOLDEN / "logit_cases.py"))["CASES"]
STORY = "Once upon a time there was a little dog named Max. He lived in a small house near the big park. " * 12

pytestmark = pytest.mark.filterwarnings("ignore:.*has no effect")


def observed(path):
    with open_gguf(path) as file:
        collector = Collector.of(file)
        return prepare_model(file, None, collector), collector


def collected(path, chunks, **how):
    loaded, collector = observed(path)
    pieces = cut_texts(loaded.tokenizer, [("story", STORY)], 32, chunks)
    return collect(loaded.model, collector, pieces, ["story"], **how)


def random_chunk(model):
    return np.random.default_rng(0).integers(3, model.vocabulary, 48).tolist()


@pytest.fixture(scope="module")
def stories(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("imatrix") / "stories.gguf"
    convert(golden / "stories260K", "F32", path)
    return path


def same(one: ImatrixSums, other: ImatrixSums, rtol: float = 1e-6) -> None:
    assert one.entries.keys() == other.entries.keys()
    assert (one.chunks, one.chunk_size) == (other.chunks, other.chunk_size)
    for name, sums in one.entries.items():
        np.testing.assert_array_equal(sums.counts, other.entries[name].counts)
        np.testing.assert_allclose(sums.squares, other.entries[name].squares, rtol=rtol, err_msg=name)


def test_sums_are_those_of_the_reference(stories):
    pytest.importorskip("llama_cpp")
    with open_gguf(stories) as file:
        tokenizer = prepare_model(file).tokenizer
    found = collected(stories, chunks=3)
    expected = reference_imatrix(stories, cut_texts(tokenizer, [("story", STORY)], 32, 3))
    assert len(expected) == 5 * 7
    assert found.entries.keys() == expected.keys()
    for name, (squares, counts) in expected.items():
        np.testing.assert_array_equal(found.entries[name].counts, counts)
        close = np.abs(found.entries[name].squares - squares.reshape(len(counts), -1)).max()
        assert close < 1e-5 * squares.max(), name


@pytest.mark.parametrize("name", ["mixtral", "deepseek3", "qwen2"])
def test_experts_and_heads_are_those_of_the_reference(name, tmp_path):
    pytest.importorskip("llama_cpp")
    path = write_model(tmp_path, *CASES[name])
    loaded, collector = observed(path)
    chunk = random_chunk(loaded.model)
    found = collect(loaded.model, collector, [chunk])
    expected = reference_imatrix(path, [chunk])
    assert found.entries.keys() == expected.keys()
    for tensor, (squares, counts) in expected.items():
        np.testing.assert_array_equal(found.entries[tensor].counts, counts, err_msg=tensor)
        close = np.abs(found.entries[tensor].squares.reshape(squares.shape) - squares).max()
        assert close < 1e-4 * squares.max(), tensor


def test_sums_are_those_of_the_observed_inputs(stories):
    seen: dict[str, list[np.ndarray]] = {}
    with open_gguf(stories) as file:
        loaded = prepare_model(file, None, lambda name, rows, index: seen.setdefault(name, []).append(rows.copy()))
    for chunk in cut_texts(loaded.tokenizer, [("story", STORY)], 32, 2):
        loaded.model.hidden(chunk, Cache(loaded.model.sizes, 32, "f32"))
    found = collected(stories, chunks=2)
    for name, sums in found.entries.items():
        rows = np.concatenate(seen[name]).astype(np.float64)
        np.testing.assert_allclose(sums.squares[0], (rows**2).sum(0), rtol=1e-5)
        assert sums.counts == len(rows) == 64


def test_the_file_is_laid_out_as_the_references(stories, tmp_path):
    found = collected(stories, chunks=2)
    write_sums(tmp_path / "new.gguf", found)
    with open_gguf(tmp_path / "new.gguf") as ours, open_gguf(GOLDEN / "imatrix.gguf") as theirs:
        assert [(key, field.type, field.element) for key, field in ours.metadata.items()] == [
            (key, field.type, field.element) for key, field in theirs.metadata.items()
        ]
        assert [name.rpartition(".")[2] for name in ours.tensors] == ["in_sum2", "counts"] * (len(ours.tensors) // 2)
        for file in (ours, theirs):
            assert list(file.tensors) == sorted(file.tensors, key=lambda name: (name.rpartition(".")[0], "c" in name[-6:]))
            counts = {tensor.shape for name, tensor in file.tensors.items() if name.endswith("counts")}
            assert counts == {(1,)}
    same(read_sums(tmp_path / "new.gguf"), found, rtol=0)
    means = read_imatrix(tmp_path / "new.gguf")
    assert (means.datasets, means.chunks) == (("story",), 2)
    name = "blk.0.attn_q.weight"
    np.testing.assert_allclose(means.entries[name], found.entries[name].squares[0] / 64, rtol=1e-6)


def test_the_older_layout_has_the_same_means(stories, tmp_path):
    found = collected(stories, chunks=3)
    write_sums(tmp_path / "new.gguf", found)
    write_legacy(tmp_path / "old.dat", found)
    new, old = read_imatrix(tmp_path / "new.gguf"), read_imatrix(tmp_path / "old.dat")
    assert (old.datasets, old.chunks, old.entries.keys()) == (("story",), 3, new.entries.keys())
    for name, values in new.entries.items():
        np.testing.assert_allclose(old.entries[name], values, rtol=1e-6)


def test_an_expert_without_tokens_is_named_and_stored_as_ones(tmp_path):
    squares = np.array([[4, 8], [0, 0], [6, 3]], np.float32)
    found = ImatrixSums(("t",), 1, 16, {"blk.0.ffn_up_exps.weight": Sums(squares, np.array([2, 0, 3], np.float32))})
    assert found.unused() == {"blk.0.ffn_up_exps.weight": [1]}
    write_legacy(tmp_path / "old.dat", found)
    write_sums(tmp_path / "new.gguf", found)
    for name in ("old.dat", "new.gguf"):
        values = read_imatrix(tmp_path / name).entries["blk.0.ffn_up_exps.weight"].reshape(3, 2)
        np.testing.assert_allclose(values, [[2, 4], [1, 1], [2, 1]], rtol=1e-6)


def test_parts_merged_are_the_whole(stories):
    whole = collected(stories, chunks=4)
    first = collected(stories, chunks=1)
    rest = collected(stories, chunks=4, before=first)
    same(rest, whole)
    assert rest.datasets == whole.datasets == ("story",)
    doubled = merge_sums([("a", whole), ("b", whole)])
    assert doubled.datasets == ("story", "story")
    assert doubled.chunks == 8
    name = "blk.1.ffn_down.weight"
    np.testing.assert_array_equal(doubled.entries[name].squares, 2 * whole.entries[name].squares)
    narrow = Sums(np.ones((1, 3), np.float32), np.ones(1, np.float32))
    with pytest.raises(FormatError, match="is it another model's"):
        merge_sums([("a", whole), ("b", ImatrixSums((), 1, 32, {name: narrow}))])
    with pytest.raises(FormatError, match="chunks of 16 tokens, expected 32"):
        merge_sums([("a", whole), ("b", ImatrixSums((), 1, 16, {}))])


def test_a_checkpoint_gives_what_its_file_gives(golden, stories):
    with open_source(golden / "stories260K") as source:
        file = SourceFile.of(source)
        collector = Collector.of(file)
        loaded = prepare_model(file, None, collector)
    pieces = cut_texts(loaded.tokenizer, [("story", STORY)], 32, 2)
    same(collect(loaded.model, collector, pieces), collected(stories, chunks=2))


@pytest.mark.parametrize(
    ("counts", "limit", "shares"),
    [
        ([9, 9], None, [9, 9]),
        ([9, 9], 7, [3, 4]),
        ([9, 2, 9], 12, [5, 2, 5]),  # what a short text leaves goes to the others
        ([1, 1], 12, [1, 1]),
        ([4, 4, 4], 2, [0, 1, 1]),
    ],
)
def test_texts_have_equal_shares_of_the_chunks(counts, limit, shares):
    assert even_shares(counts, limit) == shares


def test_texts_are_cut_one_by_one(stories):
    with open_gguf(stories) as file:
        tokenizer = prepare_model(file).tokenizer
    alone = cut_texts(tokenizer, [("a", STORY)], 32, None)
    both = cut_texts(tokenizer, [("a", STORY), ("b", STORY)], 32, None)
    assert both == alone * 2
    assert {chunk[0] for chunk in both} == {tokenizer.bos}
    assert cut_texts(tokenizer, [("a", STORY), ("b", STORY)], 32, 5) == alone[:2] + alone[:3]
    with pytest.raises(GenerationError, match=r"b: the text has \d+ tokens, and chunks of 32 need 64 or more"):
        cut_texts(tokenizer, [("a", STORY), ("b", STORY[:100])], 32, None)
    with pytest.raises(UsageError, match="context of 8 tokens is too short"):
        cut_texts(tokenizer, [("a", STORY)], 8, None)


@pytest.mark.parametrize("name", ["qwen2", "mixtral", "gemma3"])
def test_the_output_matrix_is_collected_where_it_is_asked_for(name, tmp_path):
    loaded, collector = observed(write_model(tmp_path, *CASES[name]))
    chunk = random_chunk(loaded.model)
    assert "output.weight" not in collect(loaded.model, collector, [chunk]).entries
    asked = collect(loaded.model, collector, [chunk], process_output=True).entries
    # Where it is the embedding, it is not, as in llama.cpp.
    assert ("output.weight" in asked) == ("output.weight" in collector.shapes)


def test_inputs_that_are_not_finite_are_named(stories):
    with open_gguf(stories) as file:
        collector = Collector.of(file)
    collector("blk.1.ffn_up.weight", np.full((2, 4), np.inf, np.float32), None)
    with pytest.raises(GenerationError, match=r"blk\.1\.ffn_up\.weight: the sums of its squared inputs are not finite"):
        collector.check()
