"""Models of transformers, converted and exported again, give the logits in transformers that they gave before."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_converted
from transformers_model import random_model

from quantcli.conversion.export.export import export
from quantcli.formats.checkpoint.checkpoint import open_checkpoint

LOGITS = runpy.run_path(str(Path(__file__).parents[1] / "architectures" / "test_logits.py"))
MODELS, TOKENS = LOGITS["MODELS"], LOGITS["TOKENS"]
REFUSED = ("mamba", "mamba-untied", "falcon-mamba", "mamba2", "granitehybrid", "granitehybrid-dense")
"""Their transforms have no inverse."""

INEXACT = ("gpt-oss",)
"""GGUF does not say that YaRN's borders are not rounded."""


@pytest.mark.parametrize("name", [name for name in MODELS if name not in REFUSED])
def test_the_exported_model_computes_the_same(name, tmp_path):
    made = random_model(tmp_path / "model", *MODELS[name])
    import torch
    import transformers

    with open_checkpoint(tmp_path / "model") as checkpoint:
        write_converted(checkpoint, tmp_path / "model.gguf")
    export(tmp_path / "model.gguf", tmp_path / "again", type_name="F32")
    again, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not told["missing_keys"] | told["unexpected_keys"]
    with torch.no_grad():
        before, after = (model(torch.tensor([TOKENS])).logits[0].numpy() for model in (made, again.eval()))
    share = 5e-4 if name in INEXACT else 1e-6
    np.testing.assert_allclose(after, before, rtol=0, atol=share * np.ptp(before))
