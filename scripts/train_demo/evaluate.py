"""Measure an exported demo model with llama.cpp (xllamacpp): tokenizer, seeds, held-out questions.

    python scripts/train_demo/evaluate.py --model models/aos-demo.Q8_0.gguf \\
        --tokenizer build/train/tokenizer.model --report build/train/report.json

* tokenizer: ids of SentencePiece, with which the model was trained, and of llama.cpp, for every question
  and answer of the corpus and for odd texts; they must be equal;
* seeds: "What is AI?" at temperature 1.0, top_p 0.5: does the answer end by itself under 300 tokens, is it
  a trained answer to the letter, and how close is each of its sentences to the nearest trained sentence
  (difflib ratio);
* trained questions: does each one, as written, get (greedily) an answer of its own topic;
* held-out questions: the greedy answer and several sampled ones, each classed as the page asked for
  ("right"), another page to the letter ("other"), or a text that is no trained answer ("mixed").
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece as spm
import xllamacpp
from corpus import Topic, read_topics

ODD = (
    "",
    " ",
    "  two  spaces",
    "tab\there",
    "Öl, naïve café",
    "日本語 🙂",
    "WHAT IS AI",
    "<s>",
    "</s><unk>",
    "▁under",
    "a" * 70,
    "x=1;y=2\n\n- list\n",
    "What is AI?\n",
    " What is AI?",
    "0123456789",
    "<0x41>",
)


class Model:
    """llama.cpp with one slot and one thread."""

    def __init__(self, path: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 1024
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.verbosity = -1
        params.ui = False
        params.port = 0
        self._server = xllamacpp.Server(params)

    def tokenize(self, text: str) -> list[int]:
        """Token ids with BOS, special tokens as plain text."""
        body = json.dumps({"content": text, "add_special": True, "parse_special": False}).encode()
        url = self._server.listening_address + "/tokenize"
        request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request) as reply:  # noqa: S310
            ids: list[int] = json.load(reply)["tokens"]
        return ids

    def ask(self, prompt: str, *, temperature: float, top_p: float, seed: int) -> tuple[str, int, bool]:
        """Return text, number of tokens, and whether the model ended the text itself, at most 300 tokens."""
        reply: dict[str, Any] = self._server.handle_completions(
            {
                "prompt": prompt,
                "max_tokens": 300,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": 0,
                "min_p": 0.0,
                "repeat_penalty": 1.0,
                "seed": seed,
                "cache_prompt": False,
            }
        )
        choice = reply["choices"][0]
        return choice["text"], reply["usage"]["completion_tokens"], choice["finish_reason"] == "stop"


def sentences(text: str) -> list[str]:
    """Split English text into sentences."""
    return [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]


def closeness(topics: list[Topic]) -> Callable[[str], float]:
    """Return a function: how close (0..1) a sentence is to the nearest trained sentence."""
    known = {s for t in topics for a in t.answers for s in sentences(a)}
    cache: dict[str, float] = dict.fromkeys(known, 1.0)

    def nearest(sentence: str) -> float:
        if sentence not in cache:
            cache[sentence] = max(
                difflib.SequenceMatcher(None, sentence, k, autojunk=False).ratio() for k in known
            )
        return cache[sentence]

    return nearest


def classify(text: str, topic: Topic, topics: list[Topic]) -> str:
    """Return "right", "other: NAME" or "mixed"."""
    if not text.startswith("\n"):
        return "mixed"
    answer = text[1:]
    if answer in topic.answers:
        return "right"
    return next((f"other: {t.name}" for t in topics if answer in t.answers), "mixed")


def main() -> None:
    """Run every measurement and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--trained", type=int, default=1, help="ask every n-th trained question (0: none)")
    args = parser.parse_args()
    topics = read_topics()
    model = Model(args.model)
    sp = spm.SentencePieceProcessor(model_file=str(args.tokenizer))
    report: dict[str, Any] = {}

    texts = [*ODD, *(x for t in topics for x in (*t.questions, *t.held_out, *t.answers))]
    texts += [f"{t.questions[0]}\n{a}" for t in topics for a in t.answers]
    wrong = [x for x in texts if model.tokenize(x) != [sp.bos_id(), *sp.encode(x)]]
    report["tokenizer"] = {"texts": len(texts), "different": wrong}
    print("tokenizer:", len(texts), "texts,", len(wrong), "different", wrong[:5])

    near = closeness(topics)
    central = next(t for t in topics if t.name == "what-is-ai")
    runs = []
    for seed in range(args.seeds):
        text, n, ended = model.ask("What is AI?", temperature=1.0, top_p=0.5, seed=seed)
        ratios = [near(s) for s in sentences(text)]
        runs.append(
            {
                "seed": seed,
                "tokens": n,
                "ended": ended,
                "class": classify(text, central, topics),
                "worst_sentence": round(min(ratios, default=0.0), 3),
                "text": text,
            }
        )
    answers = Counter(r["text"] for r in runs)
    report["seeds"] = {
        "runs": runs,
        "ended": sum(r["ended"] for r in runs),
        "most_tokens": max(r["tokens"] for r in runs),
        "classes": Counter(r["class"] for r in runs),
        "worst_sentence": min(r["worst_sentence"] for r in runs),
        "different_answers": len(answers),
        "counts": [c for _, c in answers.most_common()],
    }
    print("seeds:", {k: v for k, v in report["seeds"].items() if k != "runs"})

    if args.trained:
        asked = [(t, q) for t in topics for q in t.questions][:: args.trained]
        misses = []
        for topic, question in asked:
            text, _, ended = model.ask(question, temperature=0.0, top_p=1.0, seed=0)
            kind = classify(text, topic, topics)
            if kind != "right" or not ended:
                misses.append([question, topic.name, kind])
        report["trained"] = {"asked": len(asked), "misses": misses}
        print("trained:", len(asked), "asked,", len(misses), "misses", misses[:20])

    held = []
    for topic in topics:
        for question in topic.held_out:
            text, n, ended = model.ask(question, temperature=0.0, top_p=1.0, seed=0)
            samples = Counter(
                classify(model.ask(question, temperature=1.0, top_p=0.5, seed=s)[0], topic, topics)
                for s in range(10)
            )
            held.append(
                {
                    "question": question,
                    "topic": topic.name,
                    "class": classify(text, topic, topics),
                    "ended": ended,
                    "tokens": n,
                    "answer": text,
                    "samples": samples,
                }
            )
    report["held_out"] = {"items": held, "classes": Counter(h["class"].split(":")[0] for h in held)}
    print("held out:", report["held_out"]["classes"])
    args.report.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
