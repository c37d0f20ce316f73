"""A request is a value: in another process it asks for the same bytes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantcli.conversion.convert import carry_out
from quantcli.conversion.model_changes import Changes
from quantcli.conversion.plan import PlanOptions, parse_override
from quantcli.conversion.request import Request
from quantcli.core.block_types import ELEMENT_TYPES, TYPES, block_type
from quantcli.formats.gguf.spec import string
from quantcli.formats.imatrix import Imatrix

ROOT = Path(__file__).parents[2]
STORYTELLER = ROOT / "examples" / "storyteller"

ELSEWHERE = """
import pickle, sys
from quantcli.conversion.convert import carry_out
carry_out(pickle.load(open(sys.argv[1], "rb")))
"""


@pytest.mark.parametrize("types", [("Q4_K_M",), ("Q4_0", "Q8_0")])
def test_a_pickled_request_gives_the_same_bytes_in_another_process(types: tuple[str, ...], tmp_path: Path) -> None:
    guide = Imatrix("guide.gguf", (), 1, {"blk.0.ffn_up.weight": np.linspace(0.5, 2, 256, dtype=np.float32)})
    options = PlanOptions(overrides=[parse_override("attn_v=Q8_0")], output_tensor_type=block_type("Q6_K"))
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    asked = {"model": STORYTELLER, "types": types, "options": options, "imatrix": guide}
    asked["changes"] = Changes(metadata={"general.author": string("me")}, prune_layers=(1,))
    carry_out(Request(output=tmp_path / "here", **asked))
    (tmp_path / "request").write_bytes(pickle.dumps(Request(output=tmp_path / "there", **asked)))
    subprocess.run([sys.executable, "-c", ELSEWHERE, tmp_path / "request"], check=True, cwd=ROOT)
    made = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert len(made) == len(types)
    for name in made:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@pytest.mark.parametrize("kind", [*TYPES.values(), *ELEMENT_TYPES.values()], ids=lambda kind: kind.name)
def test_a_pickled_type_is_the_type(kind) -> None:
    assert pickle.loads(pickle.dumps(kind)) is kind
