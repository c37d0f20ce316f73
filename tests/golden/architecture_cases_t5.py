"""Cases of encoders with decoders: T5, Flan-T5, mT5, UMT5, and encoders of theirs alone."""

from __future__ import annotations

from architecture_shapes import Case

SHARED = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")


def attention(place: str, heads: int, bias: bool = False) -> Case:
    """Projections of queries, keys, values and output, of 16 numbers for each head, and the bias by distance."""
    shapes = {f"{place}.{name}.weight": [16 * heads, 64] for name in "qkv"} | {f"{place}.o.weight": [64, 16 * heads]}
    return shapes | ({f"{place}.relative_attention_bias.weight": [8, heads]} if bias else {})


def stack(name: str, layers: int, heads: int, *, cross: bool, gated: bool, every: bool, cross_bias: bool = False) -> Case:
    """The encoder, or the decoder, which attends across too."""
    shapes: Case = {f"{name}.final_layer_norm.weight": [64]}
    for layer in range(layers):
        place = f"{name}.block.{layer}.layer."
        shapes |= attention(f"{place}0.SelfAttention", heads, layer == 0 or every)
        if cross:
            shapes |= attention(f"{place}1.EncDecAttention", heads, cross_bias and layer == 0)
        last = 2 if cross else 1
        shapes |= {f"{place}{part}.layer_norm.weight": [64] for part in range(last + 1)}
        for up in ("wi_0", "wi_1") if gated else ("wi",):
            shapes[f"{place}{last}.DenseReluDense.{up}.weight"] = [96, 64]
        shapes[f"{place}{last}.DenseReluDense.wo.weight"] = [64, 96]
    return shapes


def t5_case(
    directory: str, changes: Case, *, heads: int = 4, layers: int = 2, decoder: int = 2, gated: bool = False,
    every: bool = False, head: bool = False, cross_bias: bool = False, vocab: int = 512,
    copies: tuple[str, ...] = SHARED[:1], dtype: str = "BF16", **more: object,
) -> Case:  # fmt: skip
    """A T5; without a decoder where it has no layers. A change to None takes a key away."""
    config = {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 96,
        "num_layers": layers, "num_decoder_layers": decoder or None, "num_heads": heads, "vocab_size": 512,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 32, "layer_norm_epsilon": 1e-6, "decoder_start_token_id": 0, "pad_token_id": 0,
        "feed_forward_proj": "gated-gelu" if gated else "relu", "is_encoder_decoder": True, **changes,
    }  # fmt: skip
    shapes = stack("encoder", layers, heads, cross=False, gated=gated, every=every)
    if decoder:
        shapes |= stack("decoder", decoder, heads, cross=True, gated=gated, every=every, cross_bias=cross_bias)
    shapes |= {f"{name}.weight": [vocab, 64] for name in copies}
    if head:
        shapes["lm_head.weight"] = [vocab, 64]
    given = {key: value for key, value in config.items() if value is not None}
    tensors = {name: [dtype, shape] for name, shape in sorted(shapes.items())}
    return {"directory": directory, "config": given, "tensors": tensors, **more}

CASES: dict[str, Case] = {
    "t5": t5_case("t5-small", {"n_positions": 512, "feed_forward_proj": None, "num_decoder_layers": None}, cross_bias=True),
    "t5-old-class": t5_case(
        "t5-base", {"architectures": ["T5WithLMHeadModel"], "n_positions": 256, "decoder_start_token_id": 3}, copies=SHARED,
        decoder=1, heads=3, dtype="F16",
    ),
    "flan-t5": t5_case(
        "flan-t5-small", {"tie_word_embeddings": False, "is_gated_act": True, "num_decoder_layers": 2}, gated=True,
        head=True, heads=6, copies=SHARED,
    ),
    "mt5": t5_case(
        "mt5-small", {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5", "decoder_start_token_id": None,
                      "tie_word_embeddings": False, "feed_forward_proj": None},
        gated=True, head=True, layers=3, decoder=2, copies=SHARED[:2], dtype="F32",
    ),
    "umt5": t5_case(
        "umt5-small",
        {"architectures": ["UMT5ForConditionalGeneration"], "model_type": "umt5",
         "tie_word_embeddings": False},
        gated=True, head=True, every=True,
    ),
    "umt5-bare": t5_case(
        "umt5",
        {"architectures": ["UMT5Model"], "model_type": "umt5",
         "tie_word_embeddings": False, "num_decoder_layers": 1},
        gated=True, every=True, decoder=1,
    ),
    "t5-sparse-config": t5_case(
        "t5", {"vocab_size": None, "layer_norm_epsilon": None, "feed_forward_proj": None, "is_encoder_decoder": None,
               "pad_token_id": None},
        vocab=32128, layers=1, decoder=1,
    ),
    "t5encoder": t5_case(
        "sentence-t5-base", {"architectures": ["T5EncoderModel"], "n_positions": 512}, decoder=0, copies=SHARED[:2]
    ),
    "t5encoder-gated": t5_case(
        "t5-encoder", {"architectures": ["T5EncoderModel"], "decoder_start_token_id": None}, decoder=0, gated=True, heads=1,
        dtype="F16",
    ),
}  # fmt: skip
