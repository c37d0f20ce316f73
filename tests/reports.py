"""Made-up reports, for tests of pages."""

from __future__ import annotations

from collections.abc import Sequence

from quantcli.core.block_types import TYPES
from quantcli.quality.evaluate import TextEvaluation
from quantcli.quality.positions import Band
from quantcli.quality.report.content import OUTSIDE, Report, ReportFile, ReportTensor, ReportText
from quantcli.quality.statistics import Divergence, Estimate, Evaluation
from quantcli.quality.tensor_errors import TensorError

PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
KINDS = {"Q2_K": 0.3, "Q4_0": 0.06, "IQ4_XS": 0.05, "Q8_0": 0.001}
"""Types and divergences of the files of a report."""


def tensor(name: str, layer: int, kind: str, *, weights: int = 1 << 20, reason: str = "") -> ReportTensor:
    part = name.removeprefix(f"blk.{layer}.").removesuffix(".weight")
    block = TYPES[kind]
    nbytes = weights * block.block_bytes // block.block_length
    return ReportTensor(name, layer, part, block, weights, nbytes, weights > 4096, reason)


def error(name: str, kind: str, relative: float) -> TensorError:
    return TensorError(name, ("F16", kind), 1 << 20, relative, relative, 20.0, 0.99, relative, 256, None)


def file(kind: str, layers: int = 3, *, compared: bool = True, label: str | None = None) -> ReportFile:
    tensors = [tensor("token_embd.weight", OUTSIDE, "Q6_K"), tensor("output_norm.weight", OUTSIDE, "F32", weights=256)]
    for layer in range(layers):
        tensors += [tensor(f"blk.{layer}.{part}.weight", layer, kind, reason=f"the base type of {kind}") for part in PARTS]
    errors = {each.name: error(each.name, kind, 0.01 + each.layer / 1000) for each in tensors if each.is_matrix}
    return ReportFile(
        path=f"folder/model-{kind}.gguf",
        label=label or kind,
        title="A model",
        file_bytes=sum(each.nbytes for each in tensors) + 1000,
        parameters=sum(each.weights for each in tensors),
        recipe=kind,
        facts=(("Architecture", "llama"),),
        tensors=tuple(tensors),
        errors=errors if compared else {},
    )


def evaluation(divergence: float | None, perplexity: float = 9.0) -> Evaluation:
    if divergence is None:
        return Evaluation(perplexity, 0.1, 160, 10, None)
    d = divergence
    beside = Divergence(
        8.0, 0.1, Estimate(d, 0.01), d, d / 20, d / 2, d * 5, d * 8, d * 9, 0.9, 0.01, Estimate(0.02, 0.001)
    )
    return Evaluation(perplexity, 0.1, 160, 10, beside)


def bands(divergence: float | None) -> tuple[Band, ...]:
    found = None if divergence is None else Estimate(divergence, divergence / 10)
    return tuple(Band(start, start + 4, 40, Estimate(2.0, 0.1), found) for start in range(16, 32, 4))


def text(name: str, divergences: Sequence[float | None]) -> ReportText:
    evaluations = tuple(evaluation(each) for each in divergences)
    return ReportText(name, TextEvaluation(evaluations, (), tuple(bands(each) for each in divergences)))


def report(
    *, texts: Sequence[str] = ("prose", "code"), compared: bool = True, layers: int = 3, copies: int = 1
) -> Report:
    files = [
        file(kind, layers, compared=compared, label=kind if copies == 1 else f"{kind}-{copy}")
        for copy in range(copies)
        for kind in KINDS
    ]
    costs = [cost if compared else None for _ in range(copies) for cost in KINDS.values()]
    base = file("F16", layers, compared=False) if compared else None
    made = tuple(text(name, costs) for name in texts)
    return Report("A model", tuple(files), base, made, 32, (("Program", "quantcli"),))
