"""The native engine beside llama.cpp, in one run: a native build of it, and the xllamacpp wheel.

python benchmarks/engine.py [--model 7b 1b] [--threads 1 2] [--peer native wheel] [--pairs 5] [--minutes 13]

Random weights in the layouts of llama-2-7b-chat.Q4_0.gguf and of TinyLlama-1.1B's Q4_0 file. The two sides of a pair follow
one another at once, in changing order; a figure is the median of its pairs' ratios. Both sides hold their weights in huge
pages and take greedy tokens. Peak memory is anonymous memory, huge pages included. A cell that does not fit --minutes is
left out and said to be. --quick measures one pair on a tiny model, to see that everything works.
"""

import argparse
import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine_sides import MIB, Side, canonical, native_llama, wheel
from llama_build import build
from random_models import SHAPES, Shape, make

from aos.engine.native import instruction_sets

CACHE = Path(tempfile.gettempdir()) / "aos-bench"
DEEP = 2000
KV_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured of a shape: positions of a prefill, tokens of a decode, the position called deep."""

    shape: Shape
    prefill: int
    decode: int
    deep: int = DEEP


PLANS = {
    "7b": Plan(shape=SHAPES["llama-2-7b"], prefill=64, decode=12),
    "1b": Plan(shape=SHAPES["tinyllama-1.1b"], prefill=128, decode=32),
    "tiny": Plan(shape=SHAPES["small"], prefill=32, decode=4, deep=64),
}
TARGETS = {
    ("native", "decode"): (1.1, 1.2),
    ("native", "prefill"): (1.7, 1.9),
    ("wheel", "decode"): (1.5, 1.5),
}
TARGETS["wheel", "prefill"] = (3.0, 3.0)


@dataclass
class Cell:
    """Seconds a position, pair by pair."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def ratio(self) -> float:
        return statistics.median(b / a for a, b in zip(self.ours, self.theirs, strict=True))

    def fastest(self) -> float:
        return min(self.theirs) / min(self.ours)


class Table:
    """Cells by (peer, model, threads, what, position), and what is measured of the canonical engine alone."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str, int, str, int], Cell] = defaultdict(Cell)
        self.commitment: dict[str, list[float]] = defaultdict(list)
        self.notes: list[str] = []


def in_turn(cell: Cell, number: int, ours: Callable[[], float], theirs: Callable[[], float]) -> None:
    """One pair; every second one in the other order."""
    for mine in (True, False) if number % 2 == 0 else (False, True):
        (cell.ours if mine else cell.theirs).append((ours if mine else theirs)())


class Benchmark:
    def __init__(self, directory: Path, pairs: int, minutes: float) -> None:
        self.directory, self.pairs = directory, pairs
        self.end = time.monotonic() + 60 * minutes
        self.table = Table()
        # Of this run alone, so that its first load of a model hashes the weights and later ones find the manifest.
        self._temporary = tempfile.TemporaryDirectory()
        self.cache = Path(self._temporary.name)

    def start(self, name: str, model: Path, threads: int) -> Side:
        """The canonical side; its load is noted."""
        cache = self.cache / name
        known = "manifest cached" if any(cache.glob("model-*.json")) else "nothing cached"
        side = canonical(model, threads, cache)
        self.table.notes.append(f"{name}: load with repack {side.load_s:.1f} s, {known}")
        return side

    def left(self, seconds: float = 0) -> bool:
        return time.monotonic() + seconds < self.end

    def deep_seconds(self, name: str, threads: list[int]) -> float:
        """About what reaching the deep position and its prefills will take, from the pairs at position 0."""
        plan, cell = PLANS[name], self.table.cells["native", name, max(threads), "prefill", 0]
        if not cell.ours:
            return float("inf")
        each = statistics.median(cell.ours) + statistics.median(cell.theirs)
        return 1.1 * each * (plan.deep + self.pairs * plan.prefill * sum(max(threads) / t for t in threads))

    def native(self, name: str, threads: list[int], *, deep: bool) -> None:
        plan, table = PLANS[name], self.table
        model, driver = make(plan.shape, self.directory / "models"), build(self.directory)
        room = plan.deep + self.pairs * (plan.prefill + plan.decode) * len(threads) + 64
        if not deep:
            room = 2 * plan.prefill + 64
        with contextlib.ExitStack() as stack:
            ours = self.start(name, model, max(threads))
            stack.callback(ours.close)
            theirs = native_llama(driver, model, room, flash=True)
            stack.callback(theirs.close)

            def own(command: str, what: str, count: int, position: int) -> float:
                answer = ours.ask(command)
                table.commitment[what].append(answer["commitment"])
                return float(answer["s"]) / count

            def pair(number: int, thread: int, what: str, position: int) -> None:
                count = plan.prefill if what == "prefill" else plan.decode
                command = f"{what} {count} 1" if position == 0 and what == "prefill" else f"{what} {count}"
                if what == "prefill" and position:
                    command += " 0"
                in_turn(
                    table.cells["native", name, thread, what, position],
                    number,
                    lambda: own(command, what, count, position),
                    lambda: theirs.ask(command) / count,
                )

            for thread in threads:
                for side in (ours, theirs):
                    side.ask(f"threads {thread}")
                for number in range(-1, self.pairs):
                    if number >= 0 and not self.left():
                        table.notes.append(
                            f"{name}, {thread} threads: {number} of {self.pairs} pairs in time"
                        )
                        break
                    for side in (ours, theirs):
                        side.ask(f"clear {plan.prefill}")
                    if number < 0:  # warms up
                        for side in (ours, theirs):
                            side.ask(f"prefill {plan.prefill} 1")
                        continue
                    pair(number, thread, "prefill", 0)
                    pair(number, thread, "decode", 0)
            if deep and self.left(self.deep_seconds(name, threads)):
                self._deep(plan, name, threads, ours, theirs, pair)
            elif deep:
                table.notes.append(f"{name}: position {plan.deep} not measured, no time left")
            self._alone(plan, name, model, ours, theirs, room)

    def _deep(
        self,
        plan: Plan,
        name: str,
        threads: list[int],
        ours: Side,
        theirs: Side,
        pair: Callable[[int, int, str, int], None],
    ) -> None:
        prompt = plan.deep + self.pairs * plan.prefill * len(threads)
        for side in (ours, theirs):
            side.ask(f"threads {max(threads)}")
            side.ask(f"clear {prompt}")
            for at in range(0, plan.deep, 256):
                side.ask(f"prefill {min(256, plan.deep - at)} 0")
        for what in ("prefill", "decode"):
            for thread in reversed(threads):
                for side in (ours, theirs):
                    side.ask(f"threads {thread}")
                for number in range(self.pairs):
                    # All prefills run, so that what comes after stands on them.
                    if what == "decode" and not self.left():
                        self.table.notes.append(
                            f"{name}, {thread} threads at {plan.deep}: {number} decode pairs in time"
                        )
                        break
                    pair(number, thread, what, plan.deep)

    def _alone(self, plan: Plan, name: str, model: Path, ours: Side, theirs: Side, room: int) -> None:
        shape = plan.shape
        kv_width = shape.width // shape.heads * shape.kv_heads
        pages = -(-room // 256) * 256
        bound = model.stat().st_size + 2 * KV_BYTES * shape.layers * kv_width * pages
        self.table.notes += [
            f"{name}: llama.cpp loads in {theirs.load_s:.1f} s",
            f"{name}: peak anonymous memory {ours.peak_anonymous / MIB:,.0f} MiB, {ours.peak_anonymous / bound:.2f} of file and "
            f"KV cache; llama.cpp {theirs.peak_anonymous / MIB:,.0f} MiB",
        ]

    def wheel(self, name: str, threads: list[int]) -> None:
        plan = PLANS[name]
        model = make(plan.shape, self.directory / "models")
        room = plan.prefill + 2 * plan.decode + 64
        with contextlib.ExitStack() as stack:
            ours = self.start(name, model, max(threads))
            stack.callback(ours.close)
            for thread in threads:
                if not self.left():
                    self.table.notes.append(f"wheel, {name}, {thread} threads: not measured, no time left")
                    continue
                ours.ask(f"threads {thread}")
                theirs = wheel(model, thread, room)
                for number in range(-1, self.pairs):
                    if number > 0 and not self.left():
                        self.table.notes.append(f"wheel, {name}, {thread} threads: {number} pairs in time")
                        break
                    self._wheel_pair(plan, name, thread, number, ours, theirs)
                theirs.close()

    def _wheel_pair(self, plan: Plan, name: str, thread: int, number: int, ours: Side, theirs: Side) -> None:
        prefill, decode = (
            self.table.cells["wheel", name, thread, what, 0] if number >= 0 else Cell()
            for what in ("prefill", "decode")
        )

        def own() -> None:
            ours.ask(f"clear {plan.prefill}")
            prefill.ours.append(ours.ask(f"prefill {plan.prefill} 1")["s"] / plan.prefill)
            decode.ours.append(ours.ask(f"decode {plan.decode}")["s"] / plan.decode)

        def other() -> None:
            answer = theirs.ask(f"run {plan.prefill} {plan.decode}")
            prefill.theirs.append(answer["prefill"] / plan.prefill)
            decode.theirs.append(answer["decode"] / plan.decode)

        for side in (own, other) if number % 2 == 0 else (other, own):
            side()


def report(table: Table, pairs: int) -> str:
    lines = [
        f"{platform.machine()}, {os.cpu_count()} cores, {instruction_sets()[-1]}, {pairs} pairs, load average at the end "
        f"{os.getloadavg()[0]:.1f}.",
        "",
        "| Peer | Model | Threads | What | Position | Tokens/s | Peer's | Ratio (median) | Ratio (fastest) | Target |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, cell in sorted(table.cells.items()):
        peer, model, threads, what, position = key
        if not cell.ours:
            continue
        least, _ = TARGETS[peer, what]
        target = f"≥ {least}" if position == 0 else ""
        lines.append(
            f"| {peer} | {model} | {threads} | {what} | {position:,} | {1 / statistics.median(cell.ours):.1f} | "
            f"{1 / statistics.median(cell.theirs):.1f} | {cell.ratio():.2f} | {cell.fastest():.2f} | {target} |"
        )
    lines.append("")
    for (peer, what), (_, mean) in TARGETS.items():
        for title, of in (("medians", Cell.ratio), ("fastest", Cell.fastest)):
            ratios = [
                of(c)
                for k, c in table.cells.items()
                if k[0] == peer and k[3] == what and k[4] == 0 and c.ours
            ]
            if ratios:
                lines.append(
                    f"- {peer}, {what}, position 0, {title}: geometric mean {statistics.geometric_mean(ratios):.2f} "
                    f"(target {mean}), lowest {min(ratios):.2f}"
                )
    for model, threads in sorted({(k[1], k[2]) for k in table.cells if k[4] > 0}):
        deep = next(c for k, c in table.cells.items() if k[1:4] == (model, threads, "prefill") and k[4] > 0)
        start = table.cells["native", model, threads, "prefill", 0]
        if deep.ours and start.ours:
            kept = min(start.ours) / min(deep.ours)
            lines.append(
                f"- {model}, {threads} threads: prefill at the deep position keeps {kept:.0%} of its speed at 0"
            )
    for what, shares in sorted(table.commitment.items()):
        lines.append(
            f"- commitment, share of {what}: median {statistics.median(shares):.2%}, most {max(shares):.2%}"
        )
    return "\n".join([*lines, *(f"- {note}" for note in table.notes)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["7b", "1b"], nargs="+", default=["1b", "7b"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peer", choices=["native", "wheel"], nargs="+", default=["wheel", "native"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=13.0, help="start no pair after this time")
    parser.add_argument("--no-deep", action="store_true", help="leave the deep position out")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--directory", type=Path, default=CACHE, help="models and the build of llama.cpp")
    options = parser.parse_args()
    models, pairs = (["tiny"], 1) if options.quick else (options.model, options.pairs)
    bench = Benchmark(options.directory, pairs, options.minutes)
    for peer in options.peer:
        for name in models:
            if not bench.left():
                bench.table.notes.append(f"{peer}, {name}: not measured, no time left")
            elif peer == "native":
                bench.native(name, options.threads, deep=not options.no_deep)
            else:
                bench.wheel(name, options.threads)
            print(f"{peer}, {name}: done", file=sys.stderr, flush=True)
    print(report(bench.table, pairs))


if __name__ == "__main__":
    main()
