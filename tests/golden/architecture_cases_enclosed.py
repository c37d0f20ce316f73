"""Cases of language models inside models that see, hear or speak: which enclose them in many ways."""

from __future__ import annotations

from architecture_cases_hybrid import lfm2_case
from architecture_cases_latent_attention import deepseek3_case
from architecture_cases_llama_shaped import MULTIPLIERS, qwen_case
from architecture_cases_mixture_of_experts import qwen3moe_case
from architecture_cases_renamed import phi3_case
from architecture_shapes import LLAMA3, Case, family, llama_case, renamed

SEES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}

SECTIONS = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 5e5}


def beside(*names: str) -> Case:
    """Tensors of other modalities by these names."""
    return {f"{name}.weight": ["BF16", [32, 16]] for name in names}


def enclosed(case: Case, outer: str, place: str, prefix: str, others: Case, named: bool = False, **config: object) -> Case:
    """The case inside a model of class and type `outer`, its configuration at `place`, its `model.` names at `prefix`.

    With `named` the language model's configuration names its own class.
    """
    name, model_type = outer.split()
    inner: object = {key: value for key, value in case["config"].items() if named or key != "architectures"}
    for key in reversed(place.split(".")):
        inner = {key: inner}
    whole = {"architectures": [name], "model_type": model_type, **config, **dict(inner)}  # type: ignore[call-overload]
    before = prefix.removesuffix("model.") if prefix.endswith(".model.") else ""
    tensors = {
        f"{prefix}{old.removeprefix('model.')}" if old.startswith("model.") else f"{before}{old}": kind
        for old, kind in case["tensors"].items()
    }
    return case | {"config": whole, "tensors": dict(sorted({**tensors, **others}.items()))}


def omni(case: Case, outer: str, *more: str) -> Case:
    """The case as what thinks in a model that sees, hears and speaks."""
    others = beside("thinker.visual.blocks.0.attn.proj", "thinker.audio_tower.layers.0.fc1", "talker.model.norm",
                    "code2wav.proj", "token2wav.proj", *more)  # fmt: skip
    return enclosed(case, outer, "thinker_config.text_config", "thinker.model.", others)


LLAVA = beside("vision_tower.vision_model.encoder.layers.0.mlp.fc1", "multi_modal_projector.linear_1")

CASES: dict[str, Case] = {
    "llava": enclosed(
        llama_case("llava-1.5-7b-hf", {}), "LlavaForConditionalGeneration llava", "text_config", "language_model.model.",
        LLAVA, vision_config={"model_type": "clip_vision_model", **SEES},
    ),
    "smolvlm": enclosed(
        llama_case("SmolVLM-Instruct", {"architectures": ["VLlama3ForCausalLM"], "rope_scaling": LLAMA3}),
        "Idefics3ForConditionalGeneration idefics3", "text_config", "model.text_model.",
        beside("model.vision_model.encoder.layers.0.mlp.fc1", "model.connector.modality_projection.proj"), named=True,
    ),
    "voxtral": enclosed(
        llama_case("Voxtral-Mini-3B", {"head_dim": 32}), "VoxtralForConditionalGeneration voxtral", "text_config",
        "language_model.model.", beside("audio_tower.layers.0.fc1", "multi_modal_projector.linear_1"),
    ),
    "internvl": enclosed(
        qwen_case("InternVL3-2B", 2, {}), "InternVLChatModel internvl_chat", "llm_config", "language_model.model.",
        beside("vision_model.encoder.layers.0.mlp.fc1", "mlp1.1"), named=True, vision_config=SEES,
    ),
    "glm-asr": enclosed(
        llama_case("GLM-ASR-Nano", {}), "GlmasrModel Glmasr", "lm_config", "model.",
        beside("audio_encoder.whisper.layers.0.fc1"), named=True,
    ),
    "lfm2-vl": enclosed(
        lfm2_case("LFM2-VL-450M", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}, {1}, 96),
        "Lfm2VlForConditionalGeneration lfm2_vl", "text_config", "model.language_model.",
        beside("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1", "model.multi_modal_projector.linear_1"),
        named=True,
    ),
    "granite-vision": enclosed(
        family("GraniteForCausalLM", "granite", "granite-vision-3.3-2b", MULTIPLIERS),
        "LlavaNextForConditionalGeneration llava_next", "text_config", "language_model.model.",
        LLAVA | {"image_newline": ["BF16", [64]]}, named=True,
    ),
    "granite-speech": enclosed(
        family("GraniteForCausalLM", "granite", "granite-speech-3.3-2b", MULTIPLIERS),
        "GraniteSpeechForConditionalGeneration granite_speech", "text_config", "language_model.model.",
        beside("encoder.layers.0.attn.to_q", "projector.linear"), named=True,
    ),
    "qwen2-audio": enclosed(
        qwen_case("Qwen2-Audio-7B", 2, {}), "Qwen2AudioForConditionalGeneration qwen2_audio", "text_config",
        "language_model.model.", beside("audio_tower.layers.0.fc1", "multi_modal_projector.linear"),
    ),
    "audio-flamingo": enclosed(
        qwen_case("audio-flamingo-3-hf", 2, {}), "AudioFlamingo3ForConditionalGeneration audioflamingo3", "text_config",
        "language_model.model.", beside("audio_tower.layers.0.fc1", "multi_modal_projector.linear_1"),
    ),
    "dots-ocr": qwen_case(
        "dots.ocr", 2, {"architectures": ["DotsOCRForCausalLM"], "model_type": "dots_ocr", "vision_config": SEES},
        extra=beside("vision_tower.blocks.0.attn.qkv", "vision_tower.merger.mlp.0"),
    ),
    "kormo": renamed(
        family("KORMoForCausalLM", "kormo", "KORMo-10B", {"attention_bias": False}),
        {"input_layernorm": "pre_attention_layernorm", "post_attention_layernorm": "pre_mlp_layernorm"},
    ),
    "iquest-coder": llama_case(
        "IQuest-Coder-V1", {"architectures": ["IQuestCoderForCausalLM"], "model_type": "iquestcoder", "head_dim": 16}
    ),
    "qwen2_5-omni": omni(
        qwen_case("Qwen2.5-Omni-3B", 2, {"model_type": "qwen2_5_omni_text", "rope_scaling": SECTIONS}),
        "Qwen2_5OmniModel qwen2_5_omni",
    ),
    "qwen3-omni": omni(
        qwen3moe_case("Qwen3-Omni-30B-A3B", {"model_type": "qwen3_omni_moe_text", "rope_scaling":
                       {**SECTIONS, "mrope_section": [6, 5, 5]}}),
        "Qwen3OmniMoeForConditionalGeneration qwen3_omni_moe",
    ),
    "qwen3-asr": enclosed(
        qwen_case("Qwen3-ASR-0.6B", 3, {"head_dim": 16, "rope_scaling": {**SECTIONS, "mrope_section": [3, 3, 2]}}),
        "Qwen3ASRForConditionalGeneration qwen3_asr", "thinker_config.text_config", "thinker.model.",
        beside("thinker.audio_tower.layers.0.fc1"),
    ),
    "step-vl": enclosed(
        qwen_case("Step3-VL-10B", 3, {"head_dim": 16}), "StepVLForConditionalGeneration step_robotics", "text_config",
        "model.", beside("vision_model.transformer.resblocks.0.attn.out_proj", "vit_large_projector"), named=True,
        vision_config=SEES,
    ),
    "phi4-vision": phi3_case(
        "Phi-4-reasoning-vision", {"architectures": ["Phi4ForCausalLMV"], "model_type": "phi4-siglip",
                                   "original_max_position_embeddings": 2048},
        beside("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1", "model.mm_projector.0"),
    ),
    "kimi-vl": enclosed(
        deepseek3_case("Kimi-VL-A3B", {}), "KimiVLForConditionalGeneration kimi_vl", "text_config", "language_model.model.",
        beside("vision_tower.encoder.blocks.0.wo", "multi_modal_projector.linear_1"), vision_config=SEES,
    ),
    "kimi-k2_5": enclosed(
        deepseek3_case("Kimi-K2.5", {}), "KimiK25ForConditionalGeneration kimi_k25", "text_config", "language_model.model.",
        beside("vision_tower.encoder.blocks.0.wo", "mm_projector.proj.0"), named=True, vision_config=SEES,
    ),
}  # fmt: skip
