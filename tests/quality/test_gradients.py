"""Second moments of gradients: against those that torch gives for each token, stored, used, refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_calibrate import CALIBRATED, TEXTS
from transformers_model import VOCABULARY, random_model

from quantcli.conversion.convert import convert
from quantcli.conversion.encode import TwoSidedEncoder
from quantcli.core.errors import FormatError, UnsupportedError
from quantcli.quality import calibrate, gradients
from quantcli.quality.calibrate import Calibration, calibrated_stages
from quantcli.quality.calibration_text import calibration_text
from quantcli.quality.checkpoint_rows import checkpoint_rows
from quantcli.quality.gradients import SKETCHED, OutputGradients, check_unasked, collect_gradients
from quantcli.quality.stored_moments import StoredMoments

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
CHUNKS = np.random.default_rng(4).integers(3, VOCABULARY, (3, 48)).tolist()
HELD = 1
Doubles = NDArray[np.float64]


def expected_gradients(model: Any) -> tuple[dict[str, Doubles], dict[str, Doubles]]:
    """For each linear layer the sum of g g^T of the chunks that are not held out, and the random sums of the other.

    Labels are drawn as in `collect_gradients`, from one generator, after the signs of a chunk.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    moments: dict[str, Doubles] = {}
    sums: dict[str, Doubles] = {}
    outputs: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, given, output, name=name: outputs.__setitem__(name, output))
    for number, chunk in enumerate(CHUNKS):
        signs = 2 * torch.randint(0, 2, (SKETCHED, len(chunk)), generator=draw) - 1
        logits = model(torch.tensor([chunk])).logits[0]
        upto = torch.softmax(logits.detach(), -1).cumsum(-1)
        labels = (upto < torch.rand(len(chunk), 1, generator=draw) * upto[:, -1:]).sum(-1)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        found = torch.autograd.grad(loss, list(outputs.values()), allow_unused=True)
        for name, gradient in zip(outputs, found, strict=True):
            g = gradient[0].numpy().astype(np.float64) if gradient.ndim == 3 else gradient.numpy().astype(np.float64)
            if number == HELD:
                sums[name] = signs.numpy() @ g
            else:
                moments[name] = moments.get(name, 0) + g.T @ g
    return moments, sums


def llama_order(heads: int, rows: int) -> NDArray[np.int64]:
    """The rows of Q or K in the order of llama.cpp, which rotates neighbours."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def collected(path: Path, **more: Any) -> dict[str, OutputGradients]:
    return collect_gradients(path, CHUNKS, lambda number: number == HELD, lambda name: name.startswith("blk."), **more)


def test_gradients_are_those_of_torch_in_the_order_of_the_rows_of_gguf(tmp_path: Path) -> None:
    model = random_model(tmp_path, "llama", SIZES)
    moments, sums = expected_gradients(model)
    found = collected(tmp_path, device="cpu", threads=1)
    assert len(found) == 14
    for gguf, name, order in (
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj", llama_order(4, 64)),
        ("blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj", llama_order(2, 32)),
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj", np.arange(32)),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj", np.arange(64)),
    ):
        own, moment = found[gguf], moments[name][np.ix_(order, order)]
        np.testing.assert_allclose(own.moment, moment, rtol=0, atol=1e-4 * np.abs(moment).max(), err_msg=gguf)
        scale = np.abs(sums[name]).max()
        np.testing.assert_allclose(own.sketch, sums[name][:, order], rtol=0, atol=1e-4 * scale, err_msg=gguf)
        assert own.count == 2 * 48


def test_rows_of_the_layers_that_are_counted() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "rms_norm_eps": 1e-5, **SIZES,
        "num_hidden_layers": 1, "tie_word_embeddings": True,
    }  # fmt: skip
    layer = {
        "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
        "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (32, 64), "model.norm.weight": (64,)}
    shapes |= {f"model.layers.0.{name}.weight": (64,) for name in ("input_layernorm", "post_attention_layernorm")}
    linear = [name for name in shapes if "proj" in name]
    found = {name: (source, rows) for name, source, rows in checkpoint_rows(config, shapes, linear.__contains__, bool)}
    assert len(found) == 7
    source, rows = found["blk.0.attn_q.weight"]
    assert source == "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(rows, llama_order(4, 64))
    # Only layers that are counted: the embedding is none.
    assert "token_embd.weight" not in found


def gradients_of(rows: int, seed: int) -> OutputGradients:
    """Those of rows that depend on each other."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((rows, rows)) / np.sqrt(rows) + np.eye(rows) / 4
    g, held = (random.standard_normal((2, 3 * rows, rows)) @ mixing).astype(np.float32)
    return OutputGradients(np.triu(g.T @ g), len(g), held[:SKETCHED])


def test_gradients_are_stored_and_read(tmp_path: Path) -> None:
    given = {"blk.0.attn_q.weight": gradients_of(64, 1), "blk.0.ffn_up.weight": gradients_of(96, 2)}
    stored = StoredMoments(tmp_path, {"model": "a", "text": "b"})
    assert stored.read_gradients() is None
    stored.write_gradients(given)
    again = stored.read_gradients()
    assert again is not None
    assert again.keys() == given.keys()
    for name, expected in given.items():
        np.testing.assert_array_equal(again[name].moment, expected.moment)
        np.testing.assert_array_equal(again[name].sketch, expected.sketch)
        assert again[name].count == expected.count
    with pytest.raises(FormatError, match="made from another text"):
        StoredMoments(tmp_path, {"model": "a", "text": "c"}).read_gradients()
    path = tmp_path / "gradients.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FormatError, match="damaged"):
        stored.read_gradients()


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tensors that are rounded with feedback between rows."""
    names: list[str] = []
    original = calibrate.Choice.encoder

    def watched(self: Any, planned: Any, *more: Any) -> Any:
        encoder = original(self, planned, *more)
        if isinstance(encoder, TwoSidedEncoder):
            names.append(planned.name)
        return encoder

    monkeypatch.setattr(calibrate.Choice, "encoder", watched)
    return names


@pytest.fixture
def convert_with(tmp_path: Path) -> Callable[..., bytes]:
    text = calibration_text().text

    def run(device: str | None, moments: Path, threads: int = 2) -> bytes:
        how = Calibration(texts=[("text", text)], tokens=6144, moments=moments, device=device, threads=threads)
        stages = partial(calibrated_stages, how)
        convert(
            TEXTS / "storyteller", "Q4_K_M", tmp_path / "made.gguf", options=CALIBRATED, stages=stages, threads=threads,
            overwrite=True,
        )  # fmt: skip
        return (tmp_path / "made.gguf").read_bytes()

    return run


@pytest.mark.filterwarnings("ignore:the perplexity of the calibration text")
def test_the_bytes_follow_from_stored_gradients(
    convert_with: Callable[..., bytes], chosen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = convert_with("none", tmp_path / "moments")
    assert not chosen

    def made_up(path: Path, chunks: Any, held: Any, wanted: Callable[[str], bool], **more: Any) -> Any:
        return {name: gradients_of(rows, rows) for name, rows in sizes.items() if wanted(name)}

    sizes = {"blk.0.attn_q.weight": 256, "blk.1.ffn_up.weight": 768, "token_embd.weight": 2048}
    monkeypatch.setattr(calibrate, "collect_gradients", made_up)
    monkeypatch.setattr(calibrate, "is_installed", lambda: True)
    first = convert_with("cpu", tmp_path / "moments")
    monkeypatch.setattr(calibrate, "collect_gradients", None)
    second = convert_with(None, tmp_path / "moments", threads=1)
    assert first == second != without
    assert chosen == 2 * ["blk.0.attn_q.weight", "blk.1.ffn_up.weight"]


def test_without_the_packages_gradients_are_left_out_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="gradients need torch and transformers") as caught:
        collected(tmp_path, device="cpu")
    assert caught.value.hint == "pip install 'quantcli-gguf[calibrate]'"


def test_a_model_that_transformers_does_not_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="it refuses the model")
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(UnsupportedError, match="transformers does not run this model"):
        collected(tmp_path, device="cpu")


def test_large_models_have_gradients_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    check_unasked(270_000_000, [2048] * 36, 512 * 262144)
    with pytest.raises(UnsupportedError, match=r"gradients take 9.9 GiB of memory; --gradients cpu takes them"):
        check_unasked(1_100_000_000, [5632, 5632, 2048] * 22, 512 * 32000)
    monkeypatch.setattr(gradients, "_free_memory", lambda: 1 << 30)
    with pytest.raises(UnsupportedError, match="gradients take"):
        check_unasked(270_000_000, [2048] * 36, 512 * 262144)
