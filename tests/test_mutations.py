"""Files changed at random, with a sense of what they are made of: each is shown, and run or refused in one line."""

from __future__ import annotations

import random
import runpy
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from changed_file import write_changed
from tiny_model import write_model

from quantcli.cli.commands import inspect
from quantcli.cli.output import print_json, show
from quantcli.core.errors import QuantcliError, clipped
from quantcli.formats.gguf.reader import GGUFFile, open_gguf
from quantcli.formats.gguf.spec import Field, ValueType, array, string, u32
from quantcli.formats.gguf.vocabulary import BYTES
from quantcli.runner.cache import Cache
from quantcli.runner.embed import pooling_of
from quantcli.runner.load import LoadedModel
from quantcli.runner.model import Model
from quantcli.runner.pooling import POOLINGS
from quantcli.runner.text.sampling import Sampler
from quantcli.runner.text.sampling_options import SamplingOptions
from quantcli.runner.text.tokenizer import load_tokenizer

CASES = runpy.run_path(str(Path(__file__).parent / "golden/logit_cases.py"))["CASES"]
MUTATIONS = 60
TEXT = "Once upon\n a <s>tïme🚀</s> \udcff"

pytestmark = pytest.mark.filterwarnings("ignore::quantcli.core.errors.QuantcliWarning")

INTEGERS = {
    ValueType.UINT8: (0, 255), ValueType.INT8: (-128, 127), ValueType.UINT16: (0, 65535), ValueType.INT16: (-32768, 32767),
    ValueType.UINT32: (0, 2**32 - 1), ValueType.INT32: (-(2**31), 2**31 - 1), ValueType.UINT64: (0, 2**64 - 1),
    ValueType.INT64: (-(2**63), 2**63 - 1),
}  # fmt: skip
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-30, 3.4e38, -3.4e38, float("nan"), float("inf"), float("-inf")]
TEXTS = [
    "", "llama", "yarn", "longrope", "none", "default", "gpt2", "bert", "t5", "\udcff", "\0", "a" * 300, "<s>", "{{ x }}",
    "\n",
]  # fmt: skip


def scalar(kind: ValueType, dice: random.Random):
    if kind in INTEGERS:
        low, high = INTEGERS[kind]
        return dice.choice([low, high, max(low, -1), 0, 1, 2, 3, 4, 7, 8, 64, 100, dice.randint(low, high)])
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        return dice.choice([*FLOATS, 1e300] if kind == ValueType.FLOAT64 else FLOATS)
    return dice.random() < 0.5 if kind == ValueType.BOOL else dice.choice(TEXTS)


def any_field(dice: random.Random, length: int) -> Field:
    """A value of any type; arrays are often as long as the one before."""
    kind = dice.choice(list(ValueType))
    if kind != ValueType.ARRAY:
        return Field(kind, scalar(kind, dice))
    element = dice.choice([kind for kind in ValueType if kind != ValueType.ARRAY])
    count = dice.choice([length, length, length + 1, max(0, length - 1), 0, 1])
    return array(element, [scalar(element, dice) for _ in range(count)])


def other_value(field: Field, dice: random.Random) -> Field:
    """Another value of the same type: of an array, some other elements."""
    if field.element is None:
        return Field(field.type, scalar(field.type, dice))
    items = field.elements()
    for _ in range(dice.choice([1, 1, 3])):
        if items:
            items[dice.randrange(len(items))] = scalar(field.element, dice)
    return array(field.element, items)


def changed(metadata: Mapping[str, Field], dice: random.Random) -> dict[str, Field]:
    result = dict(metadata)
    for _ in range(dice.choice([1, 1, 2, 3])):
        key = dice.choice(list(result))
        kind, field = dice.random(), result[key]
        if kind < 0.1:
            del result[key]
        elif kind < 0.5:
            result[key] = other_value(field, dice)
        else:
            result[key] = any_field(dice, field.count if field.element is not None else 1)
    return result


def use(file: GGUFFile) -> None:
    """What `inspect`, `tokenize`, `run` and `embed` do with a file. Raises QuantcliError, or nothing at all."""
    print_json(inspect.document(file))
    show(*inspect.summary(file), inspect.metadata_view(file), inspect.tensors_view(file))
    for attempt in (tokenize, compute):
        try:
            attempt(file)
        except QuantcliError as error:
            assert "\n" not in error.message
            assert len(error.message) < 1000, clipped(error.message)


def tokenize(file: GGUFFile) -> None:
    tokenizer = load_tokenizer(file.metadata)
    for special in (True, False):
        tokenizer.decode(tokenizer.encode(TEXT, add_special=special, parse_special=special), special=special)
    for id_ in (*range(min(8, len(tokenizer))), len(tokenizer) - 1, *tokenizer.end_of_generation):
        tokenizer.piece(id_)


def compute(file: GGUFFile) -> None:
    model = Model(file)
    loaded = LoadedModel(file.path, file.metadata, model, 0)
    hidden = model.hidden([1, 2], Cache(model.sizes, 4, "f32"))
    POOLINGS[pooling_of(loaded)](hidden)
    logits = model.forward([1, 2, 3], Cache(model.sizes, 4, "f32"))[0]
    Sampler(SamplingOptions(seed=1)).choose(logits, [1, 2, 3])


def byte_level() -> dict[str, Field]:
    tokens = [*BYTES, "ab", "<s>", "</s>", *(f"<{number}>" for number in range(512 - len(BYTES) - 3))]
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(ValueType.INT32, [1] * 257 + [3] * 255),
        "tokenizer.ggml.merges": array(ValueType.STRING, ["a b", "o n"]),
        "tokenizer.ggml.bos_token_id": u32(257),
        "tokenizer.ggml.eos_token_id": u32(258),
        "tokenizer.chat_template": string("{{ messages }}"),
    }


@pytest.fixture(scope="module")
def sources(golden, tmp_path_factory) -> Iterator[list[GGUFFile]]:
    """Tiny models: of a llama with the vocabulary of stories260K as SentencePiece, unigram and WordPiece; of others with a
    byte-level one."""
    from quantcli.conversion.convert import convert

    folder = tmp_path_factory.mktemp("mutations")
    convert(golden / "stories260K", "F32", folder / "stories.gguf")
    with open_gguf(folder / "stories.gguf") as stories:
        found = [
            replace(stories, metadata={**stories.metadata, "tokenizer.ggml.model": string(kind)})
            for kind in ("llama", "t5", "bert")
        ]
        for name in ("gemma2", "deepseek3", "mamba2"):
            place = folder / name
            place.mkdir()
            with open_gguf(write_model(place, *CASES[name])) as file:
                found.append(replace(file, metadata={**file.metadata, **byte_level()}))
        yield found


@pytest.mark.parametrize("number", range(6))
def test_metadata_of_any_type_and_value_are_used_or_refused(number, sources, capsys):
    source, dice = sources[number], random.Random(number)
    use(source)
    for _ in range(MUTATIONS):
        use(replace(source, metadata=changed(source.metadata, dice)))


def test_headers_with_any_bytes_are_read_or_refused(golden, tmp_path, capsys, sources):
    dice = random.Random(7)
    path = write_changed(sources[0].path, tmp_path / "model.gguf", {
        "tokenizer.ggml.tokens": None, "tokenizer.ggml.scores": None, "tokenizer.ggml.token_type": None,
        "tokenizer.ggml.flag": Field(ValueType.BOOL, True), "tokenizer.ggml.model": None,
    })  # fmt: skip
    with open_gguf(path) as file:
        header = file.data_offset
    whole = path.read_bytes()
    for _ in range(2 * MUTATIONS):
        data = bytearray(whole)
        for _ in range(dice.choice([1, 1, 2, 4])):
            place = dice.randrange(8, header - 8)
            size = dice.choice([1, 1, 4, 8])
            number = dice.choice([0, 1, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1, dice.getrandbits(64)]) % 2 ** (8 * size)
            data[place : place + size] = struct.pack("<Q", number)[:size]
        path.write_bytes(data)
        try:
            with open_gguf(path) as file:
                use(file)
        except QuantcliError as error:
            assert "\n" not in error.message
