"""`quantize compare` as a user meets it; `quality` tests the figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import run_command

from quantcli.conversion.convert import convert
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.formats.imatrix_sums import ImatrixSums, Sums, write_sums
from quantcli.tensors.tensor import TensorInfo


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    for kind in ("F32", "Q8_0"):
        convert(golden / "stories260K", kind, folder / f"{kind}.gguf")
    name = "blk.0.attn_q.weight"
    sums = Sums(np.ones((1, 64), np.float32), np.ones(1, np.float32))
    write_sums(folder / "imatrix.gguf", ImatrixSums(("text",), 1, 32, {name: sums}), overwrite=True)
    return folder


def test_a_comparison_is_one_document(files, golden, capsys):
    status, out, err = run_command(
        capsys, "compare", golden / "stories260K", files / "Q8_0.gguf", "--imatrix", files / "imatrix.gguf", "--json"
    )
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found.keys() == {"first", "second", "imatrix", "tensors", "only_in_first", "only_in_second", "shapes"}
    relative = [row["relative_rmse"] for row in found["tensors"]]
    assert relative == sorted(relative, reverse=True)
    assert relative[0] > 0 == relative[-1]
    weighted = {row["name"]: row["weighted_rmse"] for row in found["tensors"] if row["weighted_rmse"] is not None}
    rmse = {row["name"]: row["rmse"] for row in found["tensors"]}
    # Equal importance values weight nothing.
    assert weighted == {"blk.0.attn_q.weight": pytest.approx(rmse["blk.0.attn_q.weight"])}


def test_a_comparison_reads_well(files, tmp_path, capsys):
    status, out, err = run_command(capsys, "compare", files / "F32.gguf", files / "Q8_0.gguf", "--threads", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["tensor", "A", "B", "RMSE", "relative", "SQNR", "dB", "cosine", "block", "RMSE"]
    assert lines[1].split()[1:3] == ["F32", "Q8_0"]
    assert "tensors have equal weights" in lines[-1]
    with open_gguf(files / "F32.gguf") as file:
        kept = [tensor for name, tensor in file.tensors.items() if name != "output_norm.weight"]
        infos = [TensorInfo(tensor.name, tensor.shape, tensor.type) for tensor in kept]
        with GGUFWriter(tmp_path / "less.gguf", file.metadata, infos) as writer:
            for index, tensor in enumerate(kept):
                writer.write(index, 0, file.map(tensor))
    status, out, _ = run_command(capsys, "compare", files / "F32.gguf", tmp_path / "less.gguf")
    assert status == 0
    assert f"Only in {files / 'F32.gguf'}: output_norm.weight" in out
    assert "RMSE" not in out


def test_a_missing_file_ends_with_one_line(files, capsys):
    status, out, err = run_command(capsys, "compare", files / "F32.gguf", files / "none.gguf")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert "none.gguf" in err.splitlines()[0]
