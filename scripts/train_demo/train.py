"""Train the demo model on the CPU and write checkpoints.

    nice -n 5 python scripts/train_demo/train.py --out build/train

Questions carry no loss: the model never learns to lengthen a question, only to begin an answer where one
ends. Every epoch draws new wordings (corpus.vary). Float32, Adam, linear warm-up and cosine decay, one
fixed seed. The log ``loss.csv`` holds step, seconds, learning rate and mean loss. On another CPU the last
bits, and so the file's digest, differ; the committed file is the authority.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads=2")

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece as spm
import tokenizer
from corpus import Topic, epoch, read_topics
from model import Params, Shape, init, loss

Batch = dict[str, np.ndarray]
FREE = 8  # tokens of an answer without loss where the question does not belong to it
NOISE = 0.01  # share of an answer's input tokens that are replaced at random


def batches(
    topics: list[Topic], sp: spm.SentencePieceProcessor, seed: int, rows: int, time_: int
) -> Iterator[Batch]:
    """Yield packed batches for ever: whole documents, each a segment with positions from zero."""
    rng = random.Random(seed)
    waiting: list[tuple[list[int], int, int]] = []
    while True:
        while len(waiting) < 4 * rows:
            for question, answer, belongs in epoch(topics, rng):
                start = 1 + len(sp.encode(question))
                document = [sp.bos_id(), *sp.encode(question + "\n" + answer), sp.eos_id()]
                waiting.append((document, start, start if belongs else start + FREE))
        batch = {k: np.zeros((rows, time_), np.int32) for k in ("tokens", "targets", "segments", "positions")}
        batch["weights"] = np.zeros((rows, time_), np.float32)
        batch["segments"] -= 1
        for row in range(rows):
            at = segment = 0
            while True:
                fit = next((i for i, d in enumerate(waiting[:64]) if at + len(d[0]) - 1 <= time_), None)
                if fit is None:
                    break
                document, start, scored = waiting.pop(fit)
                n = len(document) - 1
                here = slice(at, at + n)
                batch["tokens"][row, here] = document[:-1]
                batch["targets"][row, here] = document[1:]
                batch["positions"][row, here] = np.arange(n)
                batch["segments"][row, here] = segment
                for i in range(start, n):  # now and then a wrong token to recover from
                    if rng.random() < NOISE:
                        batch["tokens"][row, at + i] = rng.randrange(259, sp.vocab_size())
                batch["weights"][row, at + start - 1] = 1.0
                batch["weights"][row, at + scored - 1 : at + n] = 1.0
                at += n
                segment += 1
        yield batch


@partial(jax.jit, static_argnums=(0,), donate_argnums=(1, 2, 3))
def step_adam(
    shape: Shape,
    params: Params,
    m: Params,
    v: Params,
    batch: dict[str, jax.Array],
    n: jax.Array,
    rate: jax.Array,
) -> tuple[Params, Params, Params, jax.Array]:
    """One Adam step (0.9, 0.98), gradient clipped to norm 1; return parameters, both moments, the loss."""
    value, grads = jax.value_and_grad(loss)(params, shape, batch)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in grads.values()))
    clip = jnp.minimum(1.0, 1.0 / (norm + 1e-9))
    new_p, new_m, new_v = {}, {}, {}
    for k, g0 in grads.items():
        g = g0 * clip
        new_m[k] = 0.9 * m[k] + 0.1 * g
        new_v[k] = 0.98 * v[k] + 0.02 * g * g
        update = new_m[k] / (1 - 0.9**n) / (jnp.sqrt(new_v[k] / (1 - 0.98**n)) + 1e-8)
        decay = 0.01 * params[k] if params[k].ndim == 2 else 0.0
        new_p[k] = params[k] - rate * (update + decay)
    return new_p, new_m, new_v, value


def main() -> None:
    """Train from scratch (or from ``--start FILE``) and keep ``checkpoint.npz`` in ``--out`` up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="begin from this checkpoint's weights")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--time", type=int, default=256)
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    topics = read_topics()
    spm_path = args.out / "tokenizer.model"
    if not spm_path.exists():
        spm_path.write_bytes(tokenizer.train(topics, args.seed))
    sp = spm.SentencePieceProcessor(model_file=str(spm_path))
    params = init(shape, args.seed)
    if args.start:
        with np.load(args.start) as saved:
            params = {k: jnp.asarray(saved[k]) for k in params}
    m = {k: jnp.zeros_like(x) for k, x in params.items()}
    v = {k: jnp.zeros_like(x) for k, x in params.items()}
    print(f"{sum(x.size for x in params.values()):,} parameters, {len(topics)} topics", flush=True)
    source = batches(topics, sp, args.seed, args.rows, args.time)
    log = csv.writer((args.out / "loss.csv").open("w", newline="", encoding="utf-8", buffering=1))
    log.writerow(["step", "seconds", "rate", "loss"])
    begin = time.monotonic()
    recent: list[float] = []
    for n in range(1, args.steps + 1):
        warm = min(1.0, n / 150)
        rate = args.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * n / args.steps)))
        batch = {k: jnp.asarray(x) for k, x in next(source).items()}
        params, m, v, value = step_adam(shape, params, m, v, batch, jnp.float32(n), jnp.float32(rate))
        recent.append(float(value))
        if n % 25 == 0 or n == args.steps:
            log.writerow(
                [n, round(time.monotonic() - begin), f"{rate:.6f}", f"{sum(recent) / len(recent):.5f}"]
            )
            recent = []
        if n % 250 == 0 or n == args.steps:
            part = args.out / "checkpoint.part.npz"
            np.savez(part, **{k: np.asarray(x) for k, x in params.items()})
            part.replace(args.out / "checkpoint.npz")
    print(f"done in {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
