"""Convert random checkpoints with the reference converter and with quantcli, and tell where they differ.

    python tests/golden/fuzz_architectures.py PATH_OF_LLAMA_CPP TOKENIZER_MODEL [--count N] [--seed N] [--keep DIR]
                                              [--verbose] [FAMILY ...]

What the paths are is said in `make_architecture_goldens.py`. Every family of `fuzz_families_*.py` is tried with `--count`
random configurations, which are then disguised: as older libraries wrote them, with keys left out or null, without the
head, in other types. Both converters must write the same names, order, types, bytes and metadata, or both must refuse;
where only one does, and why, is told. A checkpoint that they disagree on is kept in `--keep` as a JSON table that can
become a case of an `architecture_cases*.py`. Exit status 1 where they disagree.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "architectures"), str(HERE.parents[1])]

import fuzz_families_decoders as decoders  # noqa: E402
import fuzz_families_encoders as encoders  # noqa: E402
import fuzz_families_gpt as gpt  # noqa: E402
import fuzz_families_hybrid as hybrid  # noqa: E402
import fuzz_families_mixture_of_experts as mixture_of_experts  # noqa: E402
import fuzz_families_recent as recent  # noqa: E402
import fuzz_families_vision as vision  # noqa: E402
from fuzz_families import Family  # noqa: E402
from make_architecture_goldens import convert, described, end_recursion, leave_out_vocabularies  # noqa: E402
from test_architecture_goldens import digest, plain, written  # noqa: E402
from tiny_checkpoint import write_checkpoint  # noqa: E402

from quantcli.architectures.transforms import as_float32  # noqa: E402
from quantcli.core.errors import ModelError, QuantcliError  # noqa: E402
from quantcli.formats.checkpoint.checkpoint import open_checkpoint  # noqa: E402

Case = dict[str, Any]
FAMILIES: dict[str, Family] = {
    name: family
    for module in (decoders, gpt, mixture_of_experts, encoders, hybrid, vision, recent)
    for name, family in module.FAMILIES.items()
}

# --- Disguises: the same model as other people would have saved it --------------------------------------------------------


def as_before_transformers_5(config: Case, random: Random) -> None:
    """Rotary parameters at the top level and in `rope_scaling`, whose kind is a `type`."""
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "full_attention" in rope:
        return
    rope = config.pop("rope_parameters")
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            config[key] = rope.pop(key)
    kind = rope.pop("rope_type", "default")
    config["rope_scaling"] = None if kind == "default" else {random.choice(["type", "rope_type"]): kind, **rope}


SIZES = re.compile(
    "architectures|model_type|vocab_size|padded_vocab_size|hidden_size|.*intermediate_size.*|n_embd|d_model|num_attention_heads"
    "|n_head|n_heads|num_.*layers|n_layers?|num_(local_)?experts|n_routed_experts|.*_(rank|head_dim)|ffn_hidden_size"
)
"""What a checkpoint seldom fits without."""


OPTIONAL = re.compile(
    "head_dim|num_key_value_heads|num_kv_heads|n_inner|.*_bias|tie_word_embeddings|rope_.*|sliding_window|max_position_embeddings"
    "|.*_eps(ilon)?|partial_rotary_factor|layer_types|clip_qkv|q_lora_rank|shared_intermediate_size|.*_softcapping"
)
"""What people leave null."""


def sparser(config: Case, random: Random) -> None:
    """Some keys left out, and seldom one that says how large a tensor is."""
    for key in list(config):
        if random.random() < (0.004 if SIZES.fullmatch(key) else 0.2):
            del config[key]


def with_nulls(config: Case, random: Random) -> None:
    """Some keys null, and some that were not there."""
    for key in list(config):
        if random.random() < (0.004 if SIZES.fullmatch(key) else 0.2) and (SIZES.fullmatch(key) or OPTIONAL.fullmatch(key)):
            config[key] = None
    for key in ("head_dim", "rope_scaling", "sliding_window", "num_key_value_heads", "rope_theta", "attention_bias"):
        if random.random() < 0.2:
            config.setdefault(key, None)


def of_an_unknown_type(config: Case, random: Random) -> None:
    """A model type that transformers does not know, so that nothing is filled in."""
    config["model_type"] = "of_mine"


def with_leftovers(case: Case, random: Random) -> None:
    """Tensors that old libraries stored and no model needs."""
    name = next((name for name in case["tensors"] if ".0." in name and "self_attn" in name), "model.layers.0.self_attn.x")
    place = name.partition(".self_attn")[0]
    ending = random.choice(["rotary_emb.inv_freq", "attention.masked_bias", "attention.bias"])
    case["tensors"][f"{place}.self_attn.{ending}"] = ["F32", [4]]


def with_another_head(case: Case, random: Random) -> None:
    """The embeddings once more as the head, or no head though none is tied."""
    if "lm_head.weight" in case["tensors"]:
        del case["tensors"]["lm_head.weight"]
    elif "model.embed_tokens.weight" in case["tensors"]:
        case["tensors"]["lm_head.weight"] = list(case["tensors"]["model.embed_tokens.weight"])


DISGUISES = {as_before_transformers_5: 0.5, sparser: 0.3, with_nulls: 0.25, of_an_unknown_type: 0.1}


def disguised(case: Case, family: Family, random: Random) -> tuple[Case, list[str]]:
    """The case as somebody else would have it, and in which ways."""
    case = copy.deepcopy(case)
    done = []
    for disguise, share in DISGUISES.items():
        if random.random() < share:
            disguise(case["config"], random)
            done.append(disguise.__name__)
    if family.bare and random.random() < 0.2:
        done.append("bare")
        case["config"]["architectures"] = [family.bare]
        case["tensors"] = {
            name.partition(".")[2]: kind for name, kind in case["tensors"].items() if not name.startswith("lm_head")
        }
    for change in (with_leftovers, with_another_head):
        if random.random() < 0.07:
            change(case, random)
            done.append(change.__name__)
    if random.random() < 0.05:
        done.append("wrapped")
        case["tensors"] = {f"language_model.{name}": kind for name, kind in case["tensors"].items()}
    kinds = random.choice([["BF16"], ["F16"], ["F32"], ["BF16", "F32"], ["F16", "BF16"]])
    for entry in case["tensors"].values():
        entry[0] = random.choice(kinds)
    case["tensors"] = dict(sorted(case["tensors"].items()))
    return case, [*done, "+".join(kinds)]


def sharded(directory: Path, random: Random) -> None:
    """The same tensors in several files with an index, each file's in another order than their names'."""
    data = (directory / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, data = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = list(header)
    count = random.randint(2, 3)
    where = {name: random.randrange(count) for name in names}
    random.shuffle(names)
    (directory / "model.safetensors").unlink()
    index = {}
    for shard in range(count):
        file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        own, chunk = {}, b""
        for name in names:
            if where[name] == shard:
                start, stop = header[name]["data_offsets"]
                own[name] = {**header[name], "data_offsets": [len(chunk), len(chunk) + stop - start]}
                chunk += data[start:stop]
                index[name] = file
        text = json.dumps(own).encode()
        (directory / file).write_bytes(len(text).to_bytes(8, "little") + text + chunk)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


# --- The two converters ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The reference says much, and shows progress."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def of_the_reference(reference: Path, directory: Path, output: Path) -> dict[str, Any] | str:
    """What it writes, or why it does not."""
    found: dict[str, Any] = {}
    for outtype in ("f32", "auto"):
        try:
            with silence():
                convert(reference, directory, outtype, output)
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error}"
        found[outtype] = described(output)
    return found


def of_quantcli(directory: Path) -> dict[str, Any] | QuantcliError:
    """The same of ours. Any other error than one of the tree is a mistake, and ends the run."""
    try:
        with open_checkpoint(directory) as checkpoint:
            tensors, metadata = written(checkpoint)
            return {
                "metadata": plain(metadata),
                "f32": [[t.name, "F32", list(t.shape), digest(as_float32(t))] for t in tensors],
                "auto": [[t.name, t.type.name, list(t.shape), digest(t)] for t in tensors],
            }
    except QuantcliError as error:
        return error


def differences(ours: dict[str, Any], theirs: dict[str, Any], *, one_type: bool) -> list[str]:
    """What is not the same, in words."""
    rows = [row for row in theirs["f32"]["metadata"] if row[0] != "general.quantization_version"]
    expected = [[key, types[:1] + types[-1:] * (types[0] == "ARRAY"), value] for key, types, value in rows]
    found = compared("metadata", ours["metadata"], expected)
    found += compared("tensor", ours["f32"], theirs["f32"]["tensors"])
    return found + (compared("16 bits", ours["auto"], theirs["auto"]["tensors"]) if one_type and not found else [])


def compared(kind: str, ours: list[list[Any]], theirs: list[list[Any]]) -> list[str]:
    mine, other = {row[0]: row for row in ours}, {row[0]: row for row in theirs}
    found = [f"{kind}: ours only {mine[name]}" for name in mine if name not in other]
    found += [f"{kind}: theirs only {other[name]}" for name in other if name not in mine]
    both = [name for name in mine if name in other]
    found += [f"{kind}: ours {mine[name]}, theirs {other[name]}" for name in both if mine[name] != other[name]]
    return found or ([f"{kind}: another order: {list(mine)} / {list(other)}"] if list(mine) != list(other) else [])


KNOWN = {
    "gpt2": "feed_forward_length",
    "gpt_bigcode": "feed_forward_length|attention.head_count_kv|blk.*.attn_qkv",
    "falcon": "feed_forward_length",
    "baichuan": "context_length",  # null, where another key has it
    "dots1": "expert_gating_func",  # absent, and then taken for another
    **dict.fromkeys(("modernbert", "modernbert-new"), "layer_norm_epsilon"),  # under another name
    **dict.fromkeys(("deepseek2-raw", "deepseek_v2", "deepseek_v3"), "layer_norm_rms_epsilon"),  # null
}
"""Where ours differ on purpose, since llama.cpp could not load what the reference writes."""


# --- The run --------------------------------------------------------------------------------------------------------------


def judged(
    name: str, case: Case, ways: list[str], reference: Path, tokenizer: Path, random: Random
) -> tuple[str, list[str]]:
    """What came of a case, in one word, and what there is to say of it."""
    with tempfile.TemporaryDirectory() as place:
        directory = write_checkpoint(Path(place), case)
        if random.random() < 0.15:
            ways.append("sharded")
            sharded(directory, random)
        ours = of_quantcli(directory)
        shutil.copy(tokenizer, directory / "tokenizer.model")
        theirs = of_the_reference(reference, directory, Path(place) / "out.gguf")
    if isinstance(ours, QuantcliError):
        if isinstance(theirs, str):
            return "both refuse", [ours.message, theirs]
        ragged = isinstance(ours, ModelError) and {"sparser", "with_nulls", "with_another_head"} & set(ways)
        return ("misfit" if ragged else "WE REFUSE"), [ours.message]
    if isinstance(theirs, str):
        return "reference refuses", [theirs]
    wide = {kind for kind, shape in case["tensors"].values() if len(shape) > 1}
    told = differences(ours, theirs, one_type=len(wide) == 1 and wide != {"F32"})
    told = [words for words in told if not re.search(f"'[^']*({KNOWN.get(name, '$.')})", words)]
    return ("DIFFERENT", told) if told else ("same", [])


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--verbose", action="store_true", help="tell of misfits and of what the reference refuses, too")
    options = parser.parse_intermixed_args()
    sys.path[:0] = [str(options.reference), str(options.reference / "gguf-py")]
    leave_out_vocabularies()
    end_recursion()
    logging.disable(logging.CRITICAL)
    all_told: Counter[str] = Counter()
    for name in options.families:
        told: Counter[str] = Counter()
        for number in range(options.count):
            random = Random(f"{name} {options.seed} {number}")
            try:
                with silence():
                    case = FAMILIES[name].case(random)
            except Exception as error:  # choices that transformers does not allow
                told["no model"] += 1
                if options.verbose:
                    print(f"  {name} {number} no model: {type(error).__name__} {str(error)[:200]}")
                continue
            case, ways = disguised(case, FAMILIES[name], random)
            verdict, words = judged(name, case, ways, options.reference, options.tokenizer, random)
            told[verdict] += 1
            if verdict.isupper() or (options.verbose and words):
                print(f"  {name} {number} {verdict} ({', '.join(ways)})")
                for word in words[:6]:
                    print(f"      {word[:500]}")
                if verdict.isupper() and options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{name}-{options.seed}-{number}.json").write_text(json.dumps(case))
        print(f"{name}: " + ", ".join(f"{count} {verdict}" for verdict, count in told.items()), flush=True)
        all_told += told
    print("all: " + ", ".join(f"{count} {verdict}" for verdict, count in all_told.items()))
    sys.exit(any(verdict.isupper() for verdict in all_told))


if __name__ == "__main__":
    main()
