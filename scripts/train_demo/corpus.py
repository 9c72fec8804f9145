"""Read the corpus of the demo model and expand it into questions and answers.

The corpus is plain text in ``corpus/*.txt``, written for this project. A topic begins with ``== name``; its lines are

* ``S:`` subjects separated by ``|``, put into the templates below ("What is {s}?", "Explain {s}.", ...);
* ``Q:`` a question in full;
* ``H:`` a held-out question: never trained, asked by ``evaluate.py``, shown in docs/demo-model.md;
* ``A:`` an answer; where a topic has several, each is equally likely.

A document is ``question + "\\n" + answer``. This module does no tokenisation and holds no randomness of its own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

SINGULAR = (
    "What is {s}?",
    "What's {s}?",
    "What exactly is {s}?",
    "Tell me what {s} is.",
    "Explain what {s} is.",
    "Can you explain what {s} is?",
    "Do you know what {s} is?",
    "In short, what is {s}?",
    "What does {s} mean?",
)
PLURAL = (
    "What are {s}?",
    "What exactly are {s}?",
    "Tell me what {s} are.",
    "Explain what {s} are.",
    "Can you explain what {s} are?",
    "In short, what are {s}?",
)
ANY = (
    "Explain {s}.",
    "Please explain {s}.",
    "Explain {s} to me.",
    "Can you explain {s}?",
    "Could you explain {s} to me?",
    "How would you explain {s}?",
    "Tell me about {s}.",
    "Tell me more about {s}.",
    "Tell me something about {s}.",
    "Please tell me about {s}.",
    "Describe {s}.",
    "Define {s}.",
    "What do you know about {s}?",
    "I want to know about {s}.",
    "I would like to understand {s}.",
    "I do not understand {s}.",
    "Give me a short introduction to {s}.",
    "{s}?",
    "{s}",
)
PLURAL_SUBJECTS = re.compile(r"(?:networks|models|LLMs|transformers|tokens|weights|parameters|prompts|hallucinations"
                             r"|robots|GPUs|operators|workers|receipts|TEEs|enclaves|disputes|trees|signatures"
                             r"|clocks|levels|limits of AOS|uses of AI|risks of AI|abilities|proofs)$")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One topic: every question in ``questions`` may be followed by any of ``answers``."""

    name: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    answers: tuple[str, ...]


def plain(question: str) -> str:
    """Return the question as letters and digits only, in lower case: equal for variants of one wording."""
    return " ".join(re.findall(r"[a-z0-9_+]+", question.lower()))


def _from_subject(subject: str) -> Iterator[str]:
    own = PLURAL if PLURAL_SUBJECTS.search(subject) else SINGULAR
    for template in own + ANY:
        text = template.format(s=subject)
        yield text[0].upper() + text[1:]


def read_topics(folder: Path = CORPUS) -> list[Topic]:
    """Read every topic, in file and line order; refuse unknown lines and held-out questions that are trained."""
    topics: list[Topic] = []
    for path in sorted(folder.glob("*.txt")):
        for block in re.split(r"^== ", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
            name, *lines = block.strip().split("\n")
            found: dict[str, list[str]] = {"S": [], "Q": [], "H": [], "A": []}
            for line in filter(None, lines):
                kind, _, text = line.partition(": ")
                found[kind].append(text.strip())
            subjects = [s.strip() for line in found["S"] for s in line.split("|")]
            questions = list(dict.fromkeys(found["Q"] + [q for s in subjects for q in _from_subject(s)]))
            topics.append(Topic(name=name, questions=tuple(questions), held_out=tuple(found["H"]),
                                answers=tuple(found["A"])))  # fmt: skip
    owner: dict[str, str] = {}
    for topic in topics:
        for question in topic.questions:
            if owner.setdefault(plain(question), topic.name) != topic.name:
                raise ValueError(f"{question!r} is in {owner[plain(question)]} and in {topic.name}")
    for topic in topics:
        for question in topic.held_out:
            if plain(question) in owner:
                raise ValueError(f"held-out {question!r} is also trained")
    return topics


def vary(question: str, rng: random.Random) -> str:
    """Return the question as somebody might type it: other case, no question mark, now and then a word less."""
    roll = rng.random()
    if roll < 0.35:
        return question
    bare = question.rstrip("?.!")
    words = bare.split()
    if roll < 0.50:
        return bare
    if roll < 0.65:
        return question.lower()
    if roll < 0.75:
        return bare.lower()
    if roll < 0.80:
        return question.upper()
    if roll < 0.85 and question.endswith("?"):
        return bare + " ?"
    if roll < 0.90:
        return "Please: " + question if rng.random() < 0.5 else question + " Please."
    if len(words) > 4:
        del words[rng.randrange(len(words))]
    return " ".join(words) + question[len(bare):]


def epoch(topics: list[Topic], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield (question, answer) pairs of one epoch: about a dozen a topic, more for the central ones."""
    pairs: list[tuple[str, str]] = []
    for topic in topics:
        repeats = {"what-is-ai": 6, "off-topic": 16, "what-is-aos": 12}.get(topic.name, 10)
        for answer in topic.answers:
            pairs.extend((vary(rng.choice(topic.questions), rng), answer) for _ in range(repeats))
        if topic.name == "what-is-ai":
            pairs.extend((rng.choice(("What is AI?",) * 3 + ("What is AI", "what is ai?")), answer)
                         for answer in topic.answers for _ in range(8))  # fmt: skip
        else:  # the plainest wording, untouched, at least once an epoch
            pairs.append((topic.questions[0], rng.choice(topic.answers)))
    rng.shuffle(pairs)
    yield from pairs
