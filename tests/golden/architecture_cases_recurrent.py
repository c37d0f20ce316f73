"""Cases of models without attention: Mamba 1 and 2.

The logarithms of decays start out as those of whole numbers, and in F32 they are here: of other numbers the reference's own
exponential function is off by one unit in the last place now and then, depending on its machine.
"""

from __future__ import annotations

from typing import Any

from architecture_cases_gpt import linear
from architecture_shapes import Case


def recurrent(directory: str, config: Case, top: Case, layer: Case, dtype: str, kinds: Case, **more: Any) -> Case:
    """A checkpoint of two layers; `kinds` are other types than `dtype`, by the end of a name. None takes a key away."""
    shapes = dict(top)
    for number in range(2):
        shapes |= {f"backbone.layers.{number}.{name}": shape for name, shape in layer.items()}
    tensors = {}
    for name, shape in sorted(shapes.items()):
        kind = next((kind for ending, kind in kinds.items() if name.endswith(ending)), dtype)
        tensors[more.get("prefix", "") + name] = [kind, shape]
    more.pop("prefix", None)
    given = {key: value for key, value in config.items() if value is not None}
    return {"directory": directory, "config": given, "tensors": tensors, **more}


def mamba_case(
    directory: str, changes: Case, *, kernel: int = 4, state: int = 16, rank: int = 4, head: bool = False,
    bias: bool = False, embedding: str = "embeddings", rows: int = 512, dtype: str = "F16",
    kinds: Case | None = None, **more: Any,
) -> Case:  # fmt: skip
    """A Mamba."""
    config = {
        "architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "state_size": state, "conv_kernel": kernel, "time_step_rank": rank, "vocab_size": 512,
        "layer_norm_epsilon": 1e-5, "use_bias": bias, "use_conv_bias": True, **changes,
    }  # fmt: skip
    top = {f"backbone.{embedding}.weight": [rows, 64], "backbone.norm_f.weight": [64]}
    if head:
        top["lm_head.weight"] = [rows, 64]
    layer = {
        "norm.weight": [64], **linear("mixer.in_proj", 256, 64, bias), "mixer.conv1d.weight": [128, 1, kernel],
        "mixer.conv1d.bias": [128], **linear("mixer.x_proj", rank + 2 * state, 128, False),
        **linear("mixer.dt_proj", 128, rank), "mixer.A_log": [128, state], "mixer.D": [128],
        **linear("mixer.out_proj", 64, 128, bias),
    }  # fmt: skip
    return recurrent(directory, config, top, layer, dtype, kinds or {}, **more)


def mamba2_case(
    directory: str, changes: Case, *, kernel: int = 4, state: int = 16, groups: int = 1, heads: int = 4, head: bool = False,
    bias: bool = False, embedding: str = "embeddings", dtype: str = "F16", kinds: Case | None = None, **more: Any,
) -> Case:  # fmt: skip
    """A Mamba 2."""
    config = {
        "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 2,
        "state_size": state, "conv_kernel": kernel, "n_groups": groups, "head_dim": 128 // heads, "num_heads": heads,
        "expand": 2, "vocab_size": 512, "layer_norm_epsilon": 1e-5, "use_bias": bias, "use_conv_bias": True, **changes,
    }  # fmt: skip
    width = 128 + 2 * groups * state
    top = {f"backbone.{embedding}.weight": [512, 64], "backbone.norm_f.weight": [64]}
    if head:
        top["lm_head.weight"] = [512, 64]
    layer = {
        "norm.weight": [64], **linear("mixer.in_proj", 128 + width + heads, 64, bias),
        "mixer.conv1d.weight": [width, 1, kernel], "mixer.conv1d.bias": [width], "mixer.dt_bias": [heads],
        "mixer.A_log": [heads], "mixer.D": [heads], "mixer.norm.weight": [128], **linear("mixer.out_proj", 64, 128, bias),
    }  # fmt: skip
    return recurrent(directory, config, top, layer, dtype, kinds or {}, **more)


LOGARITHMS = {"A_log": "F32 logarithms"}
"""In a checkpoint of another type too, decays and what else must be exact are F32."""

CASES: dict[str, Case] = {
    "mamba": mamba_case("mamba-130m-hf", {"expand": 2, "time_step_scale": 1.0}),
    "mamba-untied": mamba_case(
        "mamba-untied", {"tie_word_embeddings": False}, head=True, kernel=3, state=8, rank=5, dtype="BF16", kinds=LOGARITHMS
    ),
    "mamba-biases": mamba_case("mamba-biases", {}, bias=True, dtype="F32", kinds=LOGARITHMS, rows=520),
    "mamba-original": mamba_case(
        "mamba-130m",
        {"architectures": None, "model_type": None, "hidden_size": None, "intermediate_size": None,
         "num_hidden_layers": None, "state_size": None, "conv_kernel": None, "time_step_rank": None,
         "layer_norm_epsilon": None, "use_bias": None,
         "use_conv_bias": None, "vocab_size": 509, "d_model": 64, "n_layer": 2, "ssm_cfg": {}, "rms_norm": True,
         "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8},
        embedding="embedding",
    ),
    "mamba-library": mamba_case(
        "mamba-library",
        {"architectures": ["MambaLMHeadModel"], "hidden_size": None, "d_model": 64, "intermediate_size": None,
         "d_inner": 128, "state_size": None, "d_state": 4, "conv_kernel": None, "d_conv": 2, "time_step_rank": None,
         "dt_rank": 7,
         "layer_norm_epsilon": None, "rms_norm_eps": 1e-6},
        state=4, kernel=2, rank=7, dtype="F32", kinds=LOGARITHMS,
    ),
    "falcon-mamba": mamba_case(
        "falcon-mamba-7b",
        {"architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba", "tie_word_embeddings": False},
        head=True, dtype="BF16", kinds=LOGARITHMS,
    ),
    "mamba2": mamba2_case("mamba2-130m-hf", {"tie_word_embeddings": True}),
    "mamba2-groups": mamba2_case(
        "Mamba-Codestral-7B-v0.1", {"tie_word_embeddings": False, "chunk_size": 256}, groups=2, heads=8, state=8, head=True,
        prefix="model.", dtype="BF16", kinds=LOGARITHMS,
    ),
    "mamba2-biases": mamba2_case(
        "mamba2-biases", {"intermediate_size": 128, "n_groups": None, "state_size": None, "expand": None}, bias=True,
        state=128, kernel=3, heads=2, dtype="F32", kinds=LOGARITHMS,
    ),
    "mamba2-original": mamba2_case(
        "mamba2-130m",
        {"architectures": None, "model_type": None, "hidden_size": None, "num_hidden_layers": None, "state_size": None,
         "conv_kernel": None, "n_groups": None, "head_dim": None, "num_heads": None, "layer_norm_epsilon": None,
         "use_bias": None, "use_conv_bias": None, "expand": None, "d_model": 64, "n_layer": 2,
         "ssm_cfg": {"layer": "Mamba2"}},
        embedding="embedding", state=128, heads=2, dtype="BF16", kinds=LOGARITHMS,
    ),
}  # fmt: skip
