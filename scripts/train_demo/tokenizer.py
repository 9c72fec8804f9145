"""Train the demo model's tokenizer: SentencePiece BPE with byte fallback, as llama-spm files have it.

Ids: 0 <unk>, 1 <s>, 2 </s>, 3..258 the bytes <0x00>..<0xFF>, then the pieces with score -rank. A newline is
in no piece, so that it is always the byte <0x0A> and the tokens of a prompt are a prefix of the tokens of
its document.
"""

from __future__ import annotations

import io
import random
import string

import sentencepiece as spm
from corpus import Topic, vary

VOCAB = 2048


def train(topics: list[Topic], seed: int) -> bytes:
    """Return the serialised SentencePiece model; the same topics and seed give the same bytes."""
    rng = random.Random(seed)
    lines = [answer for topic in topics for answer in topic.answers for _ in range(4)]
    lines += [question for topic in topics for question in topic.questions]
    lines += [vary(question, rng) for topic in topics for question in topic.questions]
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=False,
        split_digits=True,
        character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        max_sentence_length=20000,
        minloglevel=2,
    )
    return out.getvalue()
