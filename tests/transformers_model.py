"""Random models of transformers, saved as their library saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

VOCABULARY = 128


def random_model(place: Path, kind: str, sizes: dict[str, Any]) -> Any:
    """A model of `model_type` KIND, saved at `place`."""
    torch = pytest.importorskip("torch", reason="the models are made by torch")
    transformers = pytest.importorskip("transformers", reason="the models are those of transformers")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    torch.manual_seed(7)
    torch.set_num_threads(1)
    config = transformers.AutoConfig.for_model(kind, vocab_size=VOCABULARY, **ids, **sizes)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in made.parameters():  # layers start out too much alike to tell mistakes by
            parameter.add_(0.1 * torch.randn(parameter.shape))
    made.save_pretrained(place)
    return made.eval()
