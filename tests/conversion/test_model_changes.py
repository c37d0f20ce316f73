"""Conversions that change more than types: metadata that is set, layers that are left out, outputs and models in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_quantize import reference_plan

from quantcli.conversion.convert import Conversion, convert
from quantcli.conversion.model_changes import Changes, apply_changes
from quantcli.conversion.plan import PlanOptions
from quantcli.conversion.recipes import RECIPES
from quantcli.conversion.source import Source, open_source
from quantcli.core.errors import OutputError, UnsupportedError, UsageError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.shards import by_size, shard_path
from quantcli.formats.gguf.spec import Metadata, ValueType, array, boolean, f32, string, u32
from quantcli.formats.gguf.split import split_gguf
from quantcli.formats.imatrix import Imatrix

ROOT = Path(__file__).parents[2]
STORYTELLER = ROOT / "examples" / "storyteller"
STORIES = ROOT / "tests" / "golden" / "stories260K"
OVERRIDES: Metadata = {
    "general.name": string("Another name"),
    "llama.context_length": u32(77),
    "llama.rope.freq_base": f32(1e6),
    "tokenizer.ggml.add_bos_token": boolean(False),
    "new.key": string("été"),
}


def read_model(path: Path) -> tuple[Metadata, dict[str, bytes]]:
    with open_gguf(path) as file:
        return file.metadata, {name: file.map(tensor).tobytes() for name, tensor in file.tensors.items()}


# --- metadata -------------------------------------------------------------------------------------------------------------


def test_metadata_is_set_at_the_end_and_nothing_else_changes(tmp_path: Path) -> None:
    convert(STORIES, "Q8_0", tmp_path / "plain.gguf")
    convert(STORIES, "Q8_0", tmp_path / "set.gguf", changes=Changes(metadata=OVERRIDES))
    (plain, data), (changed, same_data) = read_model(tmp_path / "plain.gguf"), read_model(tmp_path / "set.gguf")
    assert same_data == data
    assert list(changed) == [*(key for key in plain if key not in OVERRIDES), *OVERRIDES]
    for key, entry in OVERRIDES.items():
        assert (changed[key].type, changed[key].element) == (entry.type, entry.element)
        assert changed[key].value == pytest.approx(entry.value)


def test_the_plan_is_made_with_the_metadata_that_is_set() -> None:
    def downs(blocks: int) -> list[str]:
        changes = Changes(metadata={"llama.block_count": u32(blocks)})
        plan = convert(STORYTELLER, "Q4_K_M", changes=changes, dry_run=True)[0].plan
        return [tensor.type.name for tensor in plan if "ffn_down" in tensor.name]

    # Q4_K_M spends more on the first and last eighth of the layers, and every third between them.
    assert downs(4) == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert downs(64) == ["Q6_K"] * 4


# --- layers ---------------------------------------------------------------------------------------------------------------


def test_layers_are_left_out_of_a_checkpoint(tmp_path: Path) -> None:
    convert(STORIES, "Q8_0", tmp_path / "whole.gguf")
    convert(STORIES, "Q8_0", tmp_path / "pruned.gguf", changes=Changes(prune_layers=[1, 3]))
    (metadata, whole), (pruned_metadata, pruned) = (read_model(tmp_path / f"{name}.gguf") for name in ("whole", "pruned"))
    layers = metadata["llama.block_count"].value
    kept = [layer for layer in range(layers) if layer not in (1, 3)]
    assert list(pruned_metadata)[-1] == "llama.block_count"
    assert pruned_metadata["llama.block_count"] == u32(len(kept))
    expected = {name: data for name, data in whole.items() if not name.startswith("blk.")}
    for new, old in enumerate(kept):
        prefix = f"blk.{old}."
        expected |= {name.replace(prefix, f"blk.{new}."): data for name, data in whole.items() if name.startswith(prefix)}
    assert pruned == expected


def test_a_layer_that_does_not_exist_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no layer 99"):
        convert(STORIES, "Q8_0", tmp_path / "out.gguf", changes=Changes(prune_layers=[99]))
    assert not list(tmp_path.iterdir())


def test_importance_goes_with_its_layer() -> None:
    with open_source(STORIES) as source:
        entries = {f"blk.{layer}.ffn_down.weight": np.full(172, layer, np.float32) for layer in range(5)}
        given = Imatrix("m.gguf", (), 1, entries)
        changed = apply_changes(source, Changes(prune_layers=[0, 2]), given)
        assert changed.imatrix is not None
        assert {name: values[0] for name, values in changed.imatrix.entries.items()} == {
            "blk.0.ffn_down.weight": 1,
            "blk.1.ffn_down.weight": 3,
            "blk.2.ffn_down.weight": 4,
        }
        # The note in the file counts what the matrix has, as llama-quantize does.
        assert changed.output_metadata(RECIPES["Q8_0"])["quantize.imatrix.entries_count"] == u32(5)


def test_a_model_with_a_list_by_layer_is_not_pruned() -> None:
    metadata: Metadata = {
        "llama.block_count": u32(3),
        "llama.attention.head_count_kv": array(ValueType.INT32, [1, 2, 1]),
    }
    source = Source(Path("m.gguf"), (), "llama", {}, metadata, 0)
    assert apply_changes(source).metadata == metadata
    with pytest.raises(UnsupportedError, match=r"llama\.attention\.head_count_kv has a value for each layer"):
        apply_changes(source, Changes(prune_layers=[0]))


# --- shards ---------------------------------------------------------------------------------------------------------------


def shards_of(conversion: Conversion) -> list[bytes]:
    return [shard.path.read_bytes() for shard in conversion.shards]


def test_an_output_in_parts_is_the_output_split(tmp_path: Path) -> None:
    whole, shards = convert(STORYTELLER, "Q8_0", tmp_path / "whole.gguf"), []
    for threads in (1, 3):
        output = tmp_path / f"{threads}.gguf"
        shards.append(convert(STORYTELLER, "Q8_0", output, max_shard_bytes=1_000_000, threads=threads)[0])
        assert shards[-1].output == tmp_path / f"{threads}-00001-of-{len(shards[-1].shards):05}.gguf"
    with open_gguf(tmp_path / "whole.gguf") as source:
        expected = split_gguf(source, tmp_path / "expected", by_size(1_000_000))
    assert len(expected) > 2
    assert shards_of(shards[0]) == shards_of(shards[1]) == [shard.path.read_bytes() for shard in expected]
    assert shards[0].output_bytes == sum(shard.file_bytes for shard in expected) > whole[0].output_bytes
    assert shards[0].as_json()["parts"][0] == {
        "path": str(shards[0].output),
        "tensors": expected[0].tensors,
        "bytes": expected[0].file_bytes,
    }
    assert "parts" not in whole[0].as_json()


def test_a_model_in_parts_converts_like_the_whole_one(tmp_path: Path) -> None:
    convert(STORYTELLER, "F16", tmp_path / "whole.gguf")
    first = convert(STORYTELLER, "F16", tmp_path / "split.gguf", max_shard_bytes=3_000_000)[0].output
    assert first is not None
    convert(tmp_path / "whole.gguf", "Q4_0", tmp_path / "a.gguf")
    convert(first, "Q4_0", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    (tmp_path / "out").mkdir()
    named = convert(first, "Q4_0", tmp_path / "out")[0].output
    assert named == tmp_path / "out" / "split-Q4_0.gguf"


def test_each_of_several_types_has_its_own_shards(tmp_path: Path) -> None:
    results = convert(STORYTELLER, ["Q8_0", "Q4_0"], tmp_path, max_shard_bytes=1_000_000)
    for result in results:
        alone = convert(STORYTELLER, result.type, tmp_path / "alone.gguf", max_shard_bytes=1_000_000, overwrite=True)[0]
        assert shards_of(result) == shards_of(alone)
        assert result.shards[0].path == shard_path(tmp_path / f"storyteller-{result.type}", 1, len(result.shards))
    assert len(results[0].shards) > len(results[1].shards) > 1


def test_a_dry_run_tells_the_shards(tmp_path: Path) -> None:
    planned = convert(STORYTELLER, "Q8_0", tmp_path / "m.gguf", max_shard_bytes=1_000_000, dry_run=True)[0]
    assert planned.output is None
    assert not list(tmp_path.iterdir())
    written = convert(STORYTELLER, "Q8_0", tmp_path / "m.gguf", max_shard_bytes=1_000_000)[0]
    assert planned.shards == written.shards
    assert [shard.path.stat().st_size for shard in written.shards] == [shard.file_bytes for shard in planned.shards]


def test_an_existing_part_stops_the_conversion(tmp_path: Path) -> None:
    shards = convert(STORIES, "Q8_0", tmp_path / "m.gguf", max_shard_bytes=100_000, dry_run=True)[0].shards
    assert len(shards) > 2
    shards[1].path.write_bytes(b"mine")
    with pytest.raises(OutputError, match=f"{shards[1].path.name}: the file exists"):
        convert(STORIES, "Q8_0", tmp_path / "m.gguf", max_shard_bytes=100_000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {shards[1].path.name: b"mine"}


def test_no_part_of_the_source_is_overwritten(tmp_path: Path) -> None:
    first = convert(STORIES, "F16", tmp_path / "m.gguf", max_shard_bytes=300_000)[0]
    before = shards_of(first)
    for shard in first.shards:
        with pytest.raises(OutputError, match="replace the model"):
            convert(first.shards[0].path, "Q8_0", shard.path, overwrite=True)
    assert shards_of(first) == before


# --- the reference --------------------------------------------------------------------------------------------------------


@pytest.fixture
def llama_cpp() -> Any:
    return pytest.importorskip("llama_cpp", reason="is the reference")


@pytest.mark.parametrize("layers", [[], [0], [7], [2, 3, 5]])
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q3_K_L", "COPY"])
def test_whole_files_equal_the_reference(
    recipe: str, layers: list[int], shared: Path, tmp_path: Path, llama_cpp: Any
) -> None:
    model, expected, output = shared / "golden" / "llama-8x256.bf16.gguf", tmp_path / "expected.gguf", tmp_path / "out.gguf"
    assert reference_plan(llama_cpp, model, RECIPES[recipe], PlanOptions(), expected, OVERRIDES, layers)
    convert(model, recipe, output, changes=Changes(metadata=OVERRIDES, prune_layers=layers))
    assert output.read_bytes() == expected.read_bytes()


def test_a_pruned_file_with_importance_equals_the_reference(shared: Path, tmp_path: Path, llama_cpp: Any) -> None:
    model, expected, output = shared / "golden" / "llama-8x256.bf16.gguf", tmp_path / "expected.gguf", tmp_path / "out.gguf"
    with open_gguf(model) as file:
        rows = {name: tensor.row_length for name, tensor in file.tensors.items() if len(tensor.shape) == 2}
    ones = Imatrix("ones.gguf", ("text",), 3, {name: np.ones(length, np.float32) for name, length in rows.items()})
    options = PlanOptions(importance=ones.sizes)
    overrides = {"general.name": string("B"), **ones.metadata()}
    assert reference_plan(llama_cpp, model, RECIPES["IQ3_XXS"], options, expected, overrides, [1, 6])
    changes = Changes(metadata={"general.name": string("B")}, prune_layers=[1, 6])
    convert(model, "IQ3_XXS", output, imatrix=ones, changes=changes)
    assert output.read_bytes() == expected.read_bytes()


def test_the_reference_reads_our_shards(tmp_path: Path, llama_cpp: Any) -> None:
    convert(STORIES, "F16", tmp_path / "whole.gguf")
    first = convert(STORIES, "F16", tmp_path / "split.gguf", max_shard_bytes=200_000)[0]
    assert len(first.shards) > 2
    for name, model in (("a", tmp_path / "whole.gguf"), ("b", first.shards[0].path)):
        assert reference_plan(llama_cpp, model, RECIPES["Q8_0"], PlanOptions(), tmp_path / f"{name}.gguf")
    convert(first.shards[0].path, "Q8_0", tmp_path / "c.gguf")
    made = [(tmp_path / f"{name}.gguf").read_bytes() for name in "abc"]
    assert made[0] == made[1] == made[2]
