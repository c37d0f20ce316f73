"""Train tests/golden/unigram.model: a small SentencePiece unigram model with a character map of its own.

    python tests/golden/make_unigram.py

sentencepiece must be installed. The text is what `random_texts` gives and the sentences below.
"""

from __future__ import annotations

import io
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from texts import random_texts  # noqa: E402

SENTENCES = (
    "The hare was once boasting of her speed before the other animals.",
    "I have never yet been beaten, said she, when I put forth my full speed; I challenge any one here to race with me.",
    "The tortoise said quietly: I accept your challenge. That is a good joke, said the hare, I could dance round you.",
    "A lion lay asleep in the forest, his great head resting on his paws; a timid little mouse came upon him.",
)
MAPPED = {"ﬁ": "fi", "Ａ": "A", "e\u0301": "é", "a\u0302\u0301": "ấ", "a\u0302": "â", "…": "..."}
MAPPED |= {"\t": " ", "\n": " ", "\u200b": ""}


def main() -> None:
    """See the module's description."""
    import sentencepiece

    model = io.BytesIO()
    texts = [text.replace("\n", " ") for text in random_texts(11, 100)]
    with tempfile.TemporaryDirectory() as temporary, chdir(temporary):
        rules = Path("rules.tsv")  # which is noted in the model, so without the directory

        def points(text: str) -> str:
            return " ".join(f"{ord(character):X}" for character in text)

        rules.write_text("".join(f"{points(key)}\t{points(value)}\n" for key, value in MAPPED.items()), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*SENTENCES * 40, *texts]),
            model_writer=model,
            vocab_size=300,
            model_type="unigram",
            character_coverage=0.98,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=["<new line>"],
            normalization_rule_tsv=str(rules),
            num_threads=1,
            minloglevel=2,
        )
    (HERE / "unigram.model").write_bytes(model.getvalue())


if __name__ == "__main__":
    main()
