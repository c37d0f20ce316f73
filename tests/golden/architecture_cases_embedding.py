"""Cases of decoders that make embeddings: the pooling of sentence-transformers beside a decoder."""

from __future__ import annotations

from architecture_cases_encoders import LAST, MEAN, NEW_LAST
from architecture_cases_llama_shaped import qwen_case
from architecture_cases_normalization import gemma3_case
from architecture_shapes import Case, family, without

CASES: dict[str, Case] = {
    "qwen3-embedding": qwen_case(
        "Qwen3-Embedding-0.6B", 3, {"head_dim": 32, "tie_word_embeddings": True}, prefix="", files=LAST
    ),
    "qwen2-embedding": qwen_case("gte-Qwen2", 2, {"architectures": ["Qwen2Model"]}, prefix="", files=NEW_LAST),
    "gemma-embedding": gemma3_case(
        "embeddinggemma-300m", {"architectures": ["Gemma3TextModel"], "rope_theta": 1000000.0,
                                "use_bidirectional_attention": True}, files=MEAN,
    ),
    "arcee-embedding": without(
        family("ArceeForCausalLM", "arcee", "arcee", {"num_key_value_heads": None, "tie_word_embeddings": True,
               "rms_norm_eps": None}, files=MEAN),
        "gate_proj.weight",
    ),
}  # fmt: skip
