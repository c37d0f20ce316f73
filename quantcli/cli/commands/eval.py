"""`quantize eval FILE...`: perplexity, accuracy, and KL divergence from a less quantized file of the same model.

Texts, the built-in ones by subject, and multiple-choice questions are evaluated in one run. Of an embedding
model, a reranker or a classifier, the embeddings or scores of the texts' lines are compared with those of the base.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.commands import described
from quantcli.cli.evaluating import named_texts, open_files
from quantcli.cli.evaluation_kinds import Work, evaluate_lines, evaluate_predictions
from quantcli.cli.evaluations import Request
from quantcli.cli.local_models import local_model
from quantcli.cli.options import PATH, json_option, model_options, text_files_option
from quantcli.cli.output import print_json, show
from quantcli.cli.resuming import resumed
from quantcli.core.errors import UsageError

if TYPE_CHECKING:
    from quantcli.quality.journal import Steps
    from quantcli.runner.load import LoadedModel


@described("eval")
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True)
@text_files_option("Text file, UTF-8; - reads stdin; repeatable.", required=False)
@click.option("--subjects", is_flag=True, help="Evaluate the built-in texts: prose, law, code, mathematics, Chinese ...")
@click.option("--choices", type=PATH, multiple=True, metavar="F", help="Multiple-choice questions, JSON lines; repeatable.")
@click.option(
    "--ctx", "context", type=click.IntRange(min=4), default=512, show_default=True, metavar="N",
    help="Tokens per chunk; only the second half of each chunk is scored.",
)  # fmt: skip
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Maximum number of chunks per text. Default: all.")
@click.option("--base", type=PATH, metavar="FILE", help="Base model, such as F16: measure the KL divergence from it.")
@click.option("--plot", is_flag=True, help="Also draw size against KL divergence, or perplexity without --base.")
@click.option("--resume", type=PATH, metavar="FILE", help="Keep what is done in FILE, and continue from what it has.")
@model_options
@json_option()
def command(**options: Any) -> None:
    """Perplexity is computed as by llama-perplexity. With --base, also the Kullback-Leibler divergence from the base model
    in nats, how often both models have the same top token, and the RMS change of the right token's probability. Results are
    comparable only with the same text, --ctx and --chunks.

    Several files are evaluated together: the base runs once for all of them. Each file is compared with the first one,
    with 95 % confidence intervals. The differences are taken at each position, so that they show smaller differences than
    the standard errors of the files. --weights applies to all files, not to the base.

    --subjects evaluates twelve built-in texts. With --base, the subjects with the highest divergence relative to the
    entropy of the base's predictions come first. A long document is also shown by position in the context.

    --choices answers questions by the likelihood of their endings. A line has the keys of HellaSwag (ctx, endings, label)
    or MMLU (question, choices, answer); or prompt, endings and answer: endings continue the prompt as they are, and answer
    is the index of the right one. With --base, also how many answers are different.

    Embedding models are compared with --base on the lines of the texts, at most --chunks of each, cut to --ctx tokens: the
    cosine of both embeddings of a line, whether its nearest other line is the same, and the rank correlation of its
    similarities. So are rerankers and classifiers: the change of the scores, whether the highest is the same, and their
    rank correlation.

    --resume continues an interrupted evaluation of the same files with the same options, with the same figures. FILE is
    removed in the end.

    \b
    quantize eval model-Q4_K_M.gguf --text wiki.test.raw
    quantize eval model-Q4_K_M.gguf --text wiki.test.raw --chunks 50 --base model-F16.gguf
    quantize eval model-Q4_K_M.gguf model-IQ4_XS.gguf --text wiki.test.raw --text code.txt --base model-F16.gguf
    quantize eval model-F16.gguf --weights Q4_K --text wiki.test.raw --base model-F16.gguf
    quantize eval model-Q4_K_M.gguf --subjects --chunks 4 --base model-F16.gguf
    quantize eval model-Q4_K_M.gguf --choices hellaswag_val.jsonl --base model-F16.gguf
    quantize eval bge-small-Q4_K_M.gguf bge-small-Q8_0.gguf --subjects --base bge-small-F32.gguf
    quantize eval model-Q4_K_M.gguf --text wiki.test.raw --base model-F16.gguf --resume eval.progress
    """
    _check(options)
    work = _read(options)
    files = tuple(map(local_model, options["files"]))
    base_file = None if options["base"] is None else local_model(options["base"])
    request = Request(files, options["texts"], base_file, options["context"])
    started = time.perf_counter()
    loaded, base = open_files(
        request.files, request.base, threads=options["threads"], weights=options["weights"], arch_file=options["arch_file"]
    )
    from quantcli.runner.embed import is_embedder

    embedders = [model for model in loaded if is_embedder(model)]
    if embedders:
        _check_embedder(embedders[0], options)
    evaluate = evaluate_lines if embedders else evaluate_predictions
    with _steps(request, work, options) as steps:
        found = evaluate(work, loaded, base, context=request.context, limit=options["chunks"], steps=steps)
        if options["as_json"]:
            print_json(found.document(request, time.perf_counter() - started))
        else:
            show(*found.views(request, plot=options["plot"]))


def _check(options: Mapping[str, Any]) -> None:
    texts = options["texts"] or options["subjects"]
    if not (texts or options["choices"]):
        raise UsageError("nothing to evaluate, expected --text, --subjects or --choices")
    if options["plot"] and options["as_json"]:
        raise UsageError("--plot and --json do not go together: a JSON document has no plot")
    if options["plot"] and not texts:
        raise UsageError("--plot draws divergence or perplexity: it needs --text or --subjects")


def _check_embedder(model: LoadedModel, options: Mapping[str, Any]) -> None:
    kind, what = ("an embedding model", "embeddings") if model.model.classifier is None else ("a classifier", "scores")
    if options["base"] is None:
        what = f"its {what} are compared with those of another file"
        raise UsageError(f"{model.path} is {kind}: {what}", hint="--base FILE")
    for option in ("choices", "plot"):
        if options[option]:
            raise UsageError(f"{model.path} is {kind}: it predicts no tokens, which --{option} needs")


def _read(options: Mapping[str, Any]) -> Work:
    from quantcli.quality.questions import read_questions
    from quantcli.quality.subjects import SUBJECTS

    questions = [(file, read_questions(file)) for file in options["choices"]]
    return Work(named_texts(options["texts"]), SUBJECTS if options["subjects"] else (), questions)


def _steps(request: Request, work: Work, options: Mapping[str, Any]) -> AbstractContextManager[Steps]:
    """The steps of the evaluation, those that `--resume` has among them."""
    models = [*request.files, *([] if request.base is None else [request.base])]
    contents = [*work.named, *((str(file), repr(questions)) for file, questions in work.questions)]
    changed = options["arch_file"]
    settings = {
        "--base": request.base is not None,
        "--ctx": request.context,
        "--chunks": options["chunks"],
        "--weights": options["weights"],
        "--arch-file": None if changed is None else sha256(changed.read_bytes()).hexdigest(),
    }
    return resumed(options["resume"], models, contents, settings)
