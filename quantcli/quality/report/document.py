"""The report as a JSON document: what the page shows beside the document of `quantize eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from quantcli.quality.positions import Band
from quantcli.quality.report.content import OUTSIDE, Report, ReportFile, ReportTensor
from quantcli.quality.report.page import report_prices
from quantcli.quality.report.prices import Price
from quantcli.quality.statistics import Estimate


def document(report: Report) -> dict[str, Any]:
    """The document."""
    return {
        "title": report.title,
        "base": None if report.base is None else report.base.path,
        "files": [_file(file) for file in report.files],
        "prices": [_price(price) for price in report_prices(report)],
        "positions": [
            {"text": text.name, "path": file.path, "bands": [_band(band) for band in bands]}
            for text in report.texts
            for file, bands in zip(report.files, text.result.bands, strict=False)
        ],
        "origin": _facts(report.origin),
    }


def _file(file: ReportFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "label": file.label,
        "name": file.title,
        "file_type": file.recipe,
        "file_bytes": file.file_bytes,
        "parameters": file.parameters,
        "bits_per_weight": file.bits_per_weight,
        "facts": _facts(file.facts),
        "tensors": [_tensor(file, tensor) for tensor in file.tensors],
    }


def _facts(facts: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"label": label, "text": text} for label, text in facts]


def _tensor(file: ReportFile, tensor: ReportTensor) -> dict[str, Any]:
    error = file.errors.get(tensor.name)
    return {
        "name": tensor.name,
        "layer": None if tensor.layer == OUTSIDE else tensor.layer,
        "type": tensor.type.name,
        "weights": tensor.weights,
        "bytes": tensor.nbytes,
        "reason": tensor.reason or None,
        **({} if error is None else {"error": _error(asdict(error))}),
    }


def _error(error: dict[str, Any]) -> dict[str, Any]:
    """The figures of `quantize compare`, without what the tensor has already."""
    return {key: value for key, value in error.items() if key not in ("name", "types", "weights")}


def _price(price: Price) -> dict[str, Any]:
    return {
        "label": price.label,
        "bytes": price.size,
        "cost": _estimate(price.cost),
        "perplexity": _estimate(price.perplexity),
        "same_top": None if price.same_top is None else _estimate(price.same_top),
        "dominated_by": price.dominated,
    }


def _band(band: Band) -> dict[str, Any]:
    divergence = None if band.divergence is None else _estimate(band.divergence)
    return {"start": band.start, "stop": band.stop, "loss": _estimate(band.loss), "kl_divergence": divergence}


def _estimate(found: Estimate) -> dict[str, float]:
    return {"mean": found.value, "stderr": found.stderr}
