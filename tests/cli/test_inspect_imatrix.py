"""`quantize inspect` of importance matrices in both layouts: what they are made from, layers, experts with few tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import run_command

from quantcli.cli.imatrix_description import expert_notes
from quantcli.formats.imatrix_sums import ImatrixSums, Sums, write_legacy, write_sums


def sums(columns: int, *counts: int) -> Sums:
    """Each expert's mean squares are its number, from 1 on, and 1 without tokens."""
    values = np.array(counts, np.float32)
    return Sums(np.outer(values * np.arange(1, len(counts) + 1), np.ones(columns)).astype(np.float32), values)


MATRIX = ImatrixSums(
    ("prose.txt", "code.txt"), 40, 512,
    {
        "blk.0.attn_q.weight": sums(8, 20480),
        "blk.10.ffn_up_exps.weight": sums(4, 9000, 0, 255, 11000),
        "blk.10.ffn_down_exps.weight": sums(4, 9000, 0, 255, 11000),
        "output.weight": sums(16, 20480),
    },
)  # fmt: skip
LAYERS = """\
Layer          Tensors       Tokens  Sum  Share  Largest column
0                    1       20,480    8   8.3%           12.5%
10                   2  0 to 11,000   72  75.0%           11.1%
output.weight        1       20,480   16  16.7%            6.2%
"""


def test_the_summary_has_texts_layers_and_experts_with_few_tokens(tmp_path, capsys):
    path = tmp_path / "imatrix.gguf"
    write_sums(path, MATRIX)
    status, said, errors = run_command(capsys, "inspect", path)
    assert (status, errors) == (0, "")
    facts, layers = said.split("\n\nImportance by layer\n")
    assert [tuple(part.strip() for part in line.split("  ", 1)) for line in facts.splitlines()] == [
        ("Importance matrix", str(path)),
        ("Texts", "prose.txt, code.txt"),
        ("Tokens", "20,480 in 40 chunks of 512"),
        ("Tensors", "4"),
        ("Layer 10", "no token reached expert 1: quantized without importance"),
        ("Layer 10", "fewer than 256 tokens reached expert 2: their importance is uncertain, and more text would help"),
    ]
    assert layers == LAYERS


def test_one_document(tmp_path, capsys):
    write_sums(tmp_path / "imatrix.gguf", MATRIX)
    document = json.loads(run_command(capsys, "inspect", tmp_path / "imatrix.gguf", "--json")[1])
    found = document["importance"]
    assert (found["datasets"], found["chunks"], found["chunk_size"]) == (["prose.txt", "code.txt"], 40, 512)
    assert found["unused_experts"] == {name: [1] for name in MATRIX.entries if "exps" in name}
    assert found["scarce_experts"] == {name: [2] for name in MATRIX.entries if "exps" in name}
    assert found["tensors"][0] == {
        "name": "blk.0.attn_q.weight", "values": 8, "sum": 8.0, "largest": 1.0, "tokens": [20480],
    }  # fmt: skip
    assert document["metadata"]["imatrix.chunk_count"] == 40


def test_the_older_layout(tmp_path, capsys):
    path = tmp_path / "imatrix.dat"
    write_legacy(path, MATRIX)
    status, said, _ = run_command(capsys, "inspect", path)
    assert status == 0
    assert "Layout             the older one, without the tokens of single experts" in said
    assert [line.split()[:3] for line in said.splitlines()[-3:]] == [
        ["0", "1", "unknown"], ["10", "2", "unknown"], ["output.weight", "1", "unknown"],
    ]  # fmt: skip
    document = json.loads(run_command(capsys, "inspect", path, "--json")[1])
    assert document["importance"]["chunks"] == 40
    path.write_bytes(path.read_bytes()[:-1])
    status, _, errors = run_command(capsys, "inspect", path)
    assert status == 1
    assert errors.startswith("error: ")


@pytest.mark.parametrize(
    ("entries", "labels"),
    [
        ({"blk.3.ffn_up_exps.weight": sums(4, 0, 300)}, ["layer 3"]),
        ({"blk.3.ffn_up_exps.weight": sums(4, 0, 300), "blk.3.ffn_down_exps.weight": sums(4, 300, 0)}, [
            "blk.3.ffn_up_exps.weight", "blk.3.ffn_down_exps.weight",
        ]),
        ({"output.weight": sums(4, 100)}, []),  # one matrix: the text is short, which the tokens say
    ],
)  # fmt: skip
def test_experts_are_named_by_layer_where_its_tensors_agree(entries, labels):
    assert [label for label, _ in expert_notes(ImatrixSums((), 1, 512, entries))] == labels
