"""The scripts in examples/, run as a reader would run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantcli.conversion.convert import convert
from quantcli.formats.gguf.reader import open_gguf
from quantcli.runner.text.tokenizer import load_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
STORYTELLER = EXAMPLES / "storyteller"

WORDS = ("cat", "dog", "bird", "frog", "girl", "boy", "tree", "boat")
STORIES = "<|endoftext|>\n".join(f"A {one} saw a {other}.\nThe {other} was happy.\n" for one in WORDS for other in WORDS)

TINY = {
    "hidden": 64, "feed-forward": 96, "layers": 2, "heads": 4, "key-value-heads": 2, "vocabulary": 320, "context": 32,
    "steps": 2, "batch": 2, "warm-up": 1, "validate-every": 1, "threads": 1,
}  # fmt: skip


def run(script: str, *words: str | Path, folder: Path) -> str:
    """What a script prints. Its warnings, apart from those of other packages on import, are errors."""
    command = [sys.executable, "-W", "error::UserWarning", EXAMPLES / script, *words]
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quantize_rows_prints_each_types_size_and_error(tmp_path: Path) -> None:
    lines = run("quantize_rows.py", "Q8_0", "Q4_0", folder=tmp_path).splitlines()
    assert "4,194,304 bytes as float32" in lines[0]
    sizes = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    assert sizes["Q8_0"][:2] == ["8.5000", "1,114,112"]
    assert sizes["Q4_0"][:2] == ["4.5000", "589,824"]
    errors = [float(sizes[name][2].rstrip("%")) for name in ("Q8_0", "Q4_0")]
    assert 0 < errors[0] < 2 < errors[1] < 15


def test_plan_mix_shows_what_changes_and_writes_nothing(tmp_path: Path) -> None:
    lines = [line.split() for line in run("plan_mix.py", folder=tmp_path).splitlines()]
    changes = {words[0]: (words[1], words[3]) for words in lines if "->" in words}
    assert changes["blk.0.attn_v.weight"] == ("Q4_K", "Q8_0")
    assert changes["blk.3.ffn_down.weight"] == ("Q6_K", "Q4_K")
    assert [words[0] for words in lines[-2:]] == ["Q4_K_M", "mixed"]
    assert not list(tmp_path.iterdir())


def test_look_inside_lists_the_largest_tensors_first(tmp_path: Path) -> None:
    convert(STORYTELLER, "F16", tmp_path / "model.gguf")
    lines = run("look_inside.py", "model.gguf", folder=tmp_path).splitlines()
    assert lines[0].startswith("Storyteller: llama, 38 tensors, ")
    assert lines[2].split()[:6] == ["token_embd.weight", "F16", "2048", "x", "256", "1,048,576"]
    sizes = [int(line.split()[5].replace(",", "")) for line in lines[2:]]
    assert sizes == sorted(sizes, reverse=True)


def test_look_inside_without_a_file_says_how_it_is_used(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / "look_inside.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "look_inside.py model.gguf" in done.stderr


def test_the_model_card_reaches_the_file(tmp_path: Path) -> None:
    convert(STORYTELLER, "F16", tmp_path / "model.gguf")
    with open_gguf(tmp_path / "model.gguf") as file:
        assert file.get("general.name") == "Storyteller"
        assert file.get("general.license") == "mit"
        assert list(file.get("general.languages")) == ["en"]


def train(folder: Path, name: str) -> Path:
    """A model of two updates, in `folder / name`."""
    (folder / "stories.txt").write_text(STORIES, encoding="utf-8")
    options = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    printed = run("train_storyteller.py", "--text", "stories.txt", "--output", name, *options, folder=folder)
    assert printed.count("validation") == 2
    return folder / name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="training needs torch")
    return train(tmp_path_factory.mktemp("training"), "tiny")


def test_a_trained_model_converts(trained: Path, tmp_path: Path) -> None:
    convert(trained, "Q8_0", tmp_path / "tiny.gguf")
    with open_gguf(tmp_path / "tiny.gguf") as file:
        assert file.get("llama.attention.head_count_kv") == 2
        assert file.get("llama.rope.freq_base") == 10000
        assert file.tensors["blk.1.attn_k.weight"].shape == (32, 64)
        assert "output.weight" not in file.tensors  # the embedding is the output matrix
        tokenizer = load_tokenizer(file.metadata)
    assert tokenizer.bos == 1
    assert tokenizer.decode(tokenizer.encode("A frog saw a boat.")[1:]).strip() == "A frog saw a boat."


def test_training_again_gives_the_same_model(trained: Path, tmp_path: Path) -> None:
    again = train(tmp_path, "again")
    assert (again / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert (again / "tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()


def test_transformers_computes_what_was_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    transformers = pytest.importorskip("transformers", reason="the other implementation")
    from safetensors.torch import load_file

    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_storyteller

    config = json.loads((trained / "config.json").read_text())
    shape = {name.replace("-", "_"): value for name, value in TINY.items() if name != "threads"}
    model = train_storyteller.Llama(train_storyteller.Options(**shape))
    weights = load_file(trained / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): weight.float() for name, weight in weights.items()})
    tokens = torch.randint(config["vocab_size"], (2, config["max_position_embeddings"]), generator=torch.manual_seed(0))
    reference = transformers.LlamaForCausalLM.from_pretrained(trained, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), reference(tokens).logits, rtol=1e-5, atol=1e-5)
