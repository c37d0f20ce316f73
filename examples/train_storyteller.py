"""Train a small language model like the one in `storyteller/`, and save a checkpoint that quantcli converts.

    pip install -e ".[train]"
    python examples/train_storyteller.py --text stories.txt --output my-storyteller
    quantize my-storyteller --type Q8_0

The texts are stories separated by `<|endoftext|>`, as in TinyStories. The result is a Hugging Face checkpoint, which
transformers loads too. The defaults give a model of the size of `storyteller/`, and training it needs a GPU. For a trial of
a minute on a CPU: `--steps 80 --batch 4 --context 128 --validate-every 20`.

On a CPU, training is deterministic: on one machine, the same texts, options and number of threads give the same model. On a
GPU it is as deterministic as PyTorch allows.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

SEPARATOR = "<|endoftext|>"
UNKNOWN, BEGIN, END = range(3)
"""The ids of `<unk>`, `<s>` and `</s>`, where llama's vocabularies have them."""

ROPE_BASE = 10000.0
NORM_EPSILON = 1e-5
INITIAL_DEVIATION = 0.02
VALIDATION_SHARE = 0.05
VALIDATION_WINDOWS = 64


def option(default: float, help: str) -> Any:
    """A field that is also an option of the command line, with this default."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Options:
    """The shape of the model, and how it is trained. K types need `hidden` and `feed_forward` to be multiples of 256."""

    hidden: int = option(256, "width of the residual stream")
    feed_forward: int = option(768, "width inside the feed-forward blocks")
    layers: int = option(4, "number of layers")
    heads: int = option(4, "query heads, each of hidden / heads dimensions")
    key_value_heads: int = option(2, "key-value heads, each shared by several query heads (GQA)")
    vocabulary: int = option(2048, "tokens, including 256 bytes and 3 special tokens")
    context: int = option(512, "longest sequence, in tokens")
    steps: int = option(2000, "updates of the weights")
    batch: int = option(32, "sequences per update")
    learning_rate: float = option(2e-3, "peak learning rate, with cosine decay to a tenth of it")
    warm_up: int = option(100, "updates of linear learning-rate warm-up")
    validate_every: int = option(100, "updates between measurements of the validation loss")
    seed: int = option(0, "random seed of the initial weights, the validation split and the order of training")

    @property
    def head(self) -> int:
        """The width of one head."""
        return self.hidden // self.heads

    def rate(self, step: int) -> float:
        """The share of the learning rate that update `step`, counted from 0, uses."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2


class Attention(nn.Module):
    """Causal grouped-query attention (GQA) with rotary position embeddings (RoPE)."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.head = options.head
        self.group = options.heads // options.key_value_heads
        self.q_proj = nn.Linear(options.hidden, options.heads * options.head, bias=False)
        self.k_proj = nn.Linear(options.hidden, options.key_value_heads * options.head, bias=False)
        self.v_proj = nn.Linear(options.hidden, options.key_value_heads * options.head, bias=False)
        self.o_proj = nn.Linear(options.heads * options.head, options.hidden, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """`(batch, length, hidden)` to the same; `rotation` is cosines and sines of `(length, head / 2)`."""
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        key, value = (shared.repeat_interleave(self.group, dim=1) for shared in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply RoPE: rotate each pair of numbers by the angle of its position.

    Hugging Face checkpoints pair number i of a head with number i + half. GGUF files of llama pair adjacent numbers, so a
    converter permutes the rows of `q_proj` and `k_proj`.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).type_as(x)


class FeedForward(nn.Module):
    """SwiGLU: the SiLU of one projection multiplies another projection."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(options.hidden, options.feed_forward, bias=False)
        self.up_proj = nn.Linear(options.hidden, options.feed_forward, bias=False)
        self.down_proj = nn.Linear(options.feed_forward, options.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, length, hidden)` to the same."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward with pre-normalization: each reads the normalized residual stream and adds to it."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(options.hidden, NORM_EPSILON)
        self.self_attn = Attention(options)
        self.post_attention_layernorm = nn.RMSNorm(options.hidden, NORM_EPSILON)
        self.mlp = FeedForward(options)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """`(batch, length, hidden)` to the same."""
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The llama architecture with tied embeddings.

    Modules have the names of Hugging Face checkpoints. `state_dict` only lacks the prefix `model.`.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(options.vocabulary, options.hidden)
        self.layers = nn.ModuleList(Layer(options) for _ in range(options.layers))
        self.norm = nn.RMSNorm(options.hidden, NORM_EPSILON)
        frequencies = ROPE_BASE ** -(torch.arange(0, options.head, 2) / options.head)
        angles = torch.outer(torch.arange(options.context), frequencies)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                # Projections that add to the residual stream start smaller, so that the stream does not grow with depth.
                adds = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=INITIAL_DEVIATION / (math.sqrt(2 * options.layers) if adds else 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids `(batch, length)` to the logits of the next tokens `(batch, length, vocabulary)`."""
        rotation = self.cosine[: tokens.shape[1]], self.sine[: tokens.shape[1]]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, rotation)
        return functional.linear(self.norm(x), self.embed_tokens.weight)


def read_stories(paths: list[Path]) -> list[str]:
    """Every story of the files, without the white space around it."""
    texts = (path.read_text(encoding="utf-8") for path in paths)
    return [story.strip() for text in texts for story in text.split(SEPARATOR) if story.strip()]


def train_tokenizer(stories: list[str], vocabulary: int) -> bytes:
    """A SentencePiece BPE model with byte fallback, serialized."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for story in stories for line in story.splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        # As in llama: no normalization, and all spaces are kept.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=UNKNOWN,
        bos_id=BEGIN,
        eos_id=END,
        minloglevel=1,
    )
    return model.getvalue()


class Stories:
    """Stories as one stream of tokens, `<s> story </s> <s> story ...`, and windows of it for training."""

    def __init__(self, stories: list[str], tokenizer: sentencepiece.SentencePieceProcessor, context: int) -> None:
        encoded = [[BEGIN, *tokens, END] for tokens in tokenizer.encode(stories)]
        self.starts = torch.tensor([0, *map(len, encoded)]).cumsum(0)[:-1]
        stream = torch.tensor([token for tokens in encoded for token in tokens])
        self.context, self.tokens = context, len(stream)
        # The stream is repeated, so that the last stories have a full window too.
        self.stream = torch.cat([stream] * (2 + context // len(stream)))

    def windows(self, stories: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets `(n, context)`. Windows begin at the start of a story, as generation does."""
        places = self.starts[stories][:, None] + torch.arange(self.context + 1)
        tokens = self.stream[places].to(device)
        return tokens[:, :-1], tokens[:, 1:]


def loss_of(model: Llama, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy in nats per token. On a GPU matrix products are in bfloat16, which needs no loss scaling."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        logits = model(inputs)
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def validate(model: Llama, held_out: Stories, batch: int, device: torch.device) -> float:
    """The validation loss, always on the same held-out stories."""
    chosen = torch.arange(min(len(held_out.starts), VALIDATION_WINDOWS)).split(batch)
    losses = [loss_of(model, *held_out.windows(part, device)).item() * len(part) for part in chosen]
    return sum(losses) / sum(map(len, chosen))


def train(model: Llama, stories: Stories, held_out: Stories, options: Options, device: torch.device) -> None:
    """Train, and leave the model with the weights of the lowest validation loss: a small text is soon overfitted."""
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    scales = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, options.rate)
    generator = torch.Generator().manual_seed(options.seed)
    best, weights, started = math.inf, model.state_dict(), time.perf_counter()
    for step in range(1, options.steps + 1):
        chosen = torch.randint(len(stories.starts), (options.batch,), generator=generator)
        loss = loss_of(model, *stories.windows(chosen, device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if step % options.validate_every == 0 or step == options.steps:
            validation = validate(model, held_out, options.batch, device)
            if validation < best:
                best, weights = validation, {name: weight.clone() for name, weight in model.state_dict().items()}
            seconds = time.perf_counter() - started
            print(f"step {step:6}  loss {loss.item():.4f}  validation {validation:.4f}  {seconds:7.1f} s", flush=True)
    model.load_state_dict(weights)


def save(model: Llama, tokenizer: bytes, options: Options, folder: Path) -> None:
    """Write a bfloat16 checkpoint in the format of transformers."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options.hidden,
        "intermediate_size": options.feed_forward,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.key_value_heads,
        "head_dim": options.head,
        "vocab_size": options.vocabulary,
        "max_position_embeddings": options.context,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_BASE,
        "tie_word_embeddings": True,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "torch_dtype": "bfloat16",
    }
    tokenizer_config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": options.context,
    }
    documents = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": BEGIN, "eos_token_id": END},
        "tokenizer_config.json": tokenizer_config,
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer)
    tensors = {f"model.{name}": weight.to("cpu", torch.bfloat16) for name, weight in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Parse the command line, train the tokenizer and the model, and save the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help=f"text files, stories separated by {SEPARATOR}")
    parser.add_argument("--output", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="processor threads (%(default)s)")
    for entry in fields(Options):
        name, about = f"--{entry.name.replace('_', '-')}", f"{entry.metadata['help']} (%(default)s)"
        parser.add_argument(name, type=type(entry.default), default=entry.default, help=about)
    arguments = parser.parse_args()
    options = Options(**{entry.name: getattr(arguments, entry.name) for entry in fields(Options)})
    if options.hidden % (2 * options.heads) or options.heads % options.key_value_heads:
        parser.error("--hidden must be an even multiple of --heads, and --heads a multiple of --key-value-heads")
    stories = read_stories(arguments.text)
    held_out = max(1, round(VALIDATION_SHARE * len(stories)))
    if len(stories) <= held_out:
        parser.error("one story is not enough: validation and training each need at least one")
    arguments.output.mkdir(parents=True, exist_ok=True)  # before training, so that an error comes early

    # cuBLAS is deterministic only with this workspace configuration.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(options.seed)
    random.Random(options.seed).shuffle(stories)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    tokenizer = train_tokenizer(stories[held_out:], options.vocabulary)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    learned = Stories(stories[held_out:], processor, options.context)
    model = Llama(options).to(device)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{parameters:,} parameters, {len(learned.starts):,} stories, {learned.tokens:,} tokens, on {device}", flush=True)
    train(model, learned, Stories(stories[:held_out], processor, options.context), options, device)
    save(model, tokenizer, options, arguments.output)
    print(f"saved: {arguments.output}")


if __name__ == "__main__":
    main()
