"""Read the corpus of the demo model and expand it into questions and answers.

The corpus is plain text in ``corpus/*.txt``, written for this project. A topic begins with ``== name``; its
lines are

* ``S:`` subjects separated by ``|``, put into the templates below ("What is {s}?", "Explain {s}.", ...);
* ``Q:`` a question in full;
* ``H:`` a held-out question: never trained, asked by ``evaluate.py``, shown in docs/demo-model.md;
* ``A:`` an answer; where a topic has several, each is equally likely.

A document is ``question + "\\n" + answer``. This module does no tokenisation and holds no randomness of its
own.
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
PLURAL_SUBJECTS = re.compile(
    r"(?:networks|models|LLMs|transformers|tokens|weights|parameters|prompts|hallucinations|robots|GPUs|operators"
    r"|workers|receipts|TEEs|enclaves|disputes|trees|signatures|clocks|levels|limits of AOS|uses of AI"
    r"|risks of AI|abilities|proofs)$"
)


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
    """Read every topic in order; refuse unknown lines and held-out questions that are also trained."""
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
            topics.append(
                Topic(
                    name=name,
                    questions=tuple(questions),
                    held_out=tuple(found["H"]),
                    answers=tuple(found["A"]),
                )
            )
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


PREFIXES = (
    "So, ",
    "Hi, ",
    "Hello, ",
    "OK, ",
    "Please: ",
    "Quick question: ",
    "My question: ",
    "I wonder: ",
    "Question: ",
    "Tell me, ",
    "I would like to know: ",
    "Can you tell me: ",
    "And ",
    "Sorry, ",
)
SUFFIXES = (
    ", please",
    ", briefly",
    " in simple words",
    " in a few words",
    " for a beginner",
    " exactly",
    " again",
    " in your own words",
    " in one paragraph",
    ", in short",
    ", thanks",
)
SYNONYMS = {
    "somebody": "someone",
    "anybody": "anyone",
    "check": "verify",
    "answer": "result",
    "result": "answer",
    "explain": "describe",
    "describe": "explain",
    "means": "is",
    "job": "request",
    "change": "alter",
    "happens": "occurs",
    "computer": "machine",
    "machine": "computer",
    "use": "need",
    "big": "large",
    "show": "tell",
    "kinds": "types",
    "types": "sorts",
    "network": "system",
    "wrong": "false",
    "program": "software",
    "can": "could",
    "run": "execute",
    "people": "humans",
    "AI": "artificial intelligence",
    "made": "created",
    "choose": "pick",
    "chosen": "picked",
}
SMALL = frozenset(
    (
        "what",
        "is",
        "are",
        "the",
        "a",
        "an",
        "do",
        "does",
        "did",
        "of",
        "to",
        "me",
        "in",
        "you",
        "can",
        "could",
        "i",
        "it",
        "for",
        "that",
        "and",
        "how",
        "so",
        "be",
        "my",
    )
)


def vary(question: str, rng: random.Random) -> str:
    """Return the question as somebody might type it: case, punctuation, a polite word, a small word less."""
    end = question[-1] if question[-1] in "?.!" else ""
    words = question.rstrip("?.!").split()
    if rng.random() < 0.35:
        return question
    if rng.random() < 0.25:
        words = [SYNONYMS.get(w, w) if rng.random() < 0.6 else w for w in words]
    if rng.random() < 0.2 and len(words) > 3:
        small = [i for i, w in enumerate(words) if w.lower() in SMALL]
        if small:
            del words[rng.choice(small)]
    text = " ".join(words)
    if rng.random() < 0.15:
        first = text if text.split()[0].isupper() else text[0].lower() + text[1:]
        text = rng.choice(PREFIXES) + first
    if rng.random() < 0.15:
        text += rng.choice(SUFFIXES)
    roll = rng.random()
    end = end if roll < 0.5 else "" if roll < 0.85 else " " + end if roll < 0.9 else "?"
    roll = rng.random()
    return (text.lower() if roll < 0.3 else text.upper() if roll < 0.35 else text) + end.rstrip()


def epoch(topics: list[Topic], rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """Yield (question, answer, belongs) of one epoch: about a dozen pairs a topic, more for the central ones.

    One pair in five has a question that does not belong to the answer. There the first words of the answer
    carry no loss; from the rest the model learns to finish the page that it began, whatever was asked.
    """
    triples: list[tuple[str, str, bool]] = []
    everything = [q for t in topics for q in t.questions]
    for topic in topics:
        usual = 10 if len(topic.answers) > 1 else 14
        repeats = {"what-is-ai": 6, "off-topic": 25, "what-is-aos": 10}.get(topic.name, usual)
        for answer in topic.answers:
            triples.extend((vary(rng.choice(topic.questions), rng), answer, True) for _ in range(repeats))
            triples.extend((vary(rng.choice(everything), rng), answer, False) for _ in range(3))
        if topic.name == "what-is-ai":
            plainest = ("What is AI?",) * 3 + ("What is AI", "what is ai?")
            for answer in topic.answers:
                triples.extend((rng.choice(plainest), answer, True) for _ in range(6))
        else:  # the first wording, untouched, at least once an epoch
            triples.append((topic.questions[0], rng.choice(topic.answers), True))
    rng.shuffle(triples)
    yield from triples
