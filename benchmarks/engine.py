"""The native engine beside llama.cpp, in one run: a native build of it, and the xllamacpp wheel.

python benchmarks/engine.py [--model 7b 1b] [--threads 1 2] [--peer native wheel] [--pairs 5] [--minutes 45]

Random weights in the layouts of llama-2-7b-chat.Q4_0.gguf and of TinyLlama-1.1B's Q4_0 file. llama.cpp runs twice, with
flash attention and without, and its time in a pair is the faster one's: the table says how often which was. The three sides of
a pair follow one another at once, in changing order; a figure is the median of its pairs' ratios. All sides hold their weights
in huge pages and take greedy tokens. Peak memory is anonymous memory, huge pages included. 7B has 3 pairs at the deep position.
A cell that does not fit --minutes is left out and said to be; all of them take about 40 minutes of an idle machine with two cores
and 20 GiB of memory. --quick measures one pair on a tiny model, to see that everything works.

A load touches as much new memory as the file has. Where a virtual machine's host takes free memory back, that alone can take
longer than the rest, so the notes also give a bare touch of as much memory in huge pages by one thread: some seconds after it
was freed, and at once after it was freed; then a load with nothing cached in the latter state.
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
from typing import TypeVar

from engine_sides import FLASH, MIB, Side, canonical, native_llama, touch, wheel
from llama_build import build
from random_models import SHAPES, Shape, make

from aos.engine.native import instruction_sets

CACHE = Path(tempfile.gettempdir()) / "aos-bench"
DEEP = 2000
KV_BYTES = 2
Time = TypeVar("Time")
GIVEN_BACK_S = 10.0
"""After so long a host that takes free memory back has done so: Linux tells it every 2 s."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured of a shape: positions of a prefill, tokens of a decode, the position called deep, and at most how
    many pairs there.
    """

    shape: Shape
    prefill: int
    decode: int
    deep: int = DEEP
    deep_pairs: int = 5


PLANS = {
    "7b": Plan(shape=SHAPES["llama-2-7b"], prefill=64, decode=12, deep_pairs=3),
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
    """Seconds a position, pair by pair; of the peer the faster setting's, which ``flash`` has."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    flash: list[bool] = field(default_factory=list)

    def add(self, ours: float, theirs: dict[bool, float]) -> None:
        """One pair; ``theirs`` by whether flash attention was on."""
        best = min(theirs, key=theirs.__getitem__)
        self.ours.append(ours)
        self.theirs.append(theirs[best])
        self.flash.append(best)

    def setting(self) -> str:
        """Which setting was the faster one, and how often where it was not always."""
        on, of = sum(self.flash), len(self.flash)
        return {0: "off", of: "on"}.get(on, f"on in {on} of {of}")

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


def in_turn(
    number: int, ours: Callable[[], Time], theirs: dict[bool, Callable[[], Time]]
) -> tuple[Time, dict[bool, Time]]:
    """What the three sides of one pair take; every second one in the other order."""
    times: dict[bool | None, Time] = {}
    for flash in (None, *FLASH) if number % 2 == 0 else (*reversed(FLASH), None):
        times[flash] = ours() if flash is None else theirs[flash]()
    return times[None], {flash: times[flash] for flash in FLASH}


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

    def loads(self, name: str, threads: int) -> None:
        """Note what the first touch of a load's memory costs by itself, and a load without that cost."""
        model = make(PLANS[name].shape, self.directory / "models")
        time.sleep(GIVEN_BACK_S)
        given_back, just_freed = touch(model.stat().st_size)
        with tempfile.TemporaryDirectory() as empty:
            side = canonical(model, threads, Path(empty))
        side.close()
        self.table.notes.append(
            f"{name}: a bare touch of {model.stat().st_size / MIB:,.0f} MiB of huge pages by one thread {given_back:.1f} s, "
            f"{GIVEN_BACK_S:.0f} s after they were freed; {just_freed:.1f} s at once after; load at once after that, "
            f"nothing cached, {side.load_s:.1f} s"
        )

    def left(self, seconds: float = 0) -> bool:
        return time.monotonic() + seconds < self.end

    def deep_seconds(self, name: str, threads: list[int]) -> float:
        """About what reaching the deep position and its prefills will take, from the pairs at position 0."""
        plan, cell = PLANS[name], self.table.cells["native", name, max(threads), "prefill", 0]
        if not cell.ours:
            return float("inf")
        # Reaching it with three sides, the slower setting of llama.cpp a third slower there.
        each = statistics.median(cell.ours) + 2.4 * statistics.median(cell.theirs)
        pairs = min(self.pairs, plan.deep_pairs)
        return 1.1 * each * (plan.deep + pairs * plan.prefill * sum(max(threads) / t for t in threads))

    def native(self, name: str, threads: list[int], *, deep: bool) -> None:
        plan, table = PLANS[name], self.table
        model, driver = make(plan.shape, self.directory / "models"), build(self.directory)
        room = plan.deep + self.pairs * (plan.prefill + plan.decode) * len(threads) + 64
        if not deep:
            room = 2 * plan.prefill + 64
        with contextlib.ExitStack() as stack:
            ours = self.start(name, model, max(threads))
            stack.callback(ours.close)
            theirs = {}
            for flash in FLASH:
                theirs[flash] = native_llama(driver, model, room, flash=flash)
                stack.callback(theirs[flash].close)
            sides = (ours, *theirs.values())

            def own(command: str, what: str, count: int) -> float:
                answer = ours.ask(command)
                table.commitment[what].append(answer["commitment"])
                return float(answer["s"]) / count

            def pair(number: int, thread: int, what: str, position: int) -> None:
                count = plan.prefill if what == "prefill" else plan.decode
                command = f"{what} {count} 1" if position == 0 and what == "prefill" else f"{what} {count}"
                if what == "prefill" and position:
                    command += " 0"
                mine, others = in_turn(
                    number,
                    lambda: own(command, what, count),
                    {flash: lambda side=side: side.ask(command) / count for flash, side in theirs.items()},
                )
                table.cells["native", name, thread, what, position].add(mine, others)

            for thread in threads:
                for side in sides:
                    side.ask(f"threads {thread}")
                for number in range(-1, self.pairs):
                    if number >= 0 and not self.left():
                        table.notes.append(
                            f"{name}, {thread} threads: {number} of {self.pairs} pairs in time"
                        )
                        break
                    for side in sides:
                        side.ask(f"clear {plan.prefill}")
                    if number < 0:  # warms up
                        for side in sides:
                            side.ask(f"prefill {plan.prefill} 1")
                        continue
                    pair(number, thread, "prefill", 0)
                    pair(number, thread, "decode", 0)
            if deep and self.left(self.deep_seconds(name, threads)):
                self._deep(plan, name, threads, sides, pair)
            elif deep:
                table.notes.append(f"{name}: position {plan.deep} not measured, no time left")
            self._alone(plan, name, model, ours, theirs[True], room)

    def _deep(
        self,
        plan: Plan,
        name: str,
        threads: list[int],
        sides: tuple[Side, ...],
        pair: Callable[[int, int, str, int], None],
    ) -> None:
        pairs = min(self.pairs, plan.deep_pairs)
        prompt = plan.deep + pairs * plan.prefill * len(threads)
        for side in sides:
            side.ask(f"threads {max(threads)}")
            side.ask(f"clear {prompt}")
            for at in range(0, plan.deep, 256):
                side.ask(f"prefill {min(256, plan.deep - at)} 0")
        for what in ("prefill", "decode"):
            for thread in reversed(threads):
                for side in sides:
                    side.ask(f"threads {thread}")
                for number in range(pairs):
                    # All prefills run, so that what comes after stands on them.
                    if what == "decode" and not self.left():
                        self.table.notes.append(
                            f"{name}, {thread} threads at {plan.deep}: {number} of {pairs} decode pairs in time"
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
                theirs = {flash: wheel(model, thread, room, flash=flash) for flash in FLASH}
                for number in range(-1, self.pairs):
                    if number > 0 and not self.left():
                        self.table.notes.append(f"wheel, {name}, {thread} threads: {number} pairs in time")
                        break
                    self._wheel_pair(plan, name, thread, number, ours, theirs)
                for side in theirs.values():
                    side.close()

    def _wheel_pair(
        self, plan: Plan, name: str, thread: int, number: int, ours: Side, theirs: dict[bool, Side]
    ) -> None:
        def own() -> dict[str, float]:
            ours.ask(f"clear {plan.prefill}")
            return {
                "prefill": ours.ask(f"prefill {plan.prefill} 1")["s"],
                "decode": ours.ask(f"decode {plan.decode}")["s"],
            }

        command = f"run {plan.prefill} {plan.decode}"
        mine, others = in_turn(
            number, own, {flash: lambda side=side: side.ask(command) for flash, side in theirs.items()}
        )
        if number < 0:  # warms up
            return
        for what, count in (("prefill", plan.prefill), ("decode", plan.decode)):
            self.table.cells["wheel", name, thread, what, 0].add(
                mine[what] / count, {flash: times[what] / count for flash, times in others.items()}
            )


def report(table: Table, pairs: int) -> str:
    lines = [
        f"{platform.machine()}, {os.cpu_count()} cores, {instruction_sets()[-1]}, {pairs} pairs, load average at the end "
        f"{os.getloadavg()[0]:.1f}.",
        "",
        "| Peer | Model | Threads | What | Position | Tokens/s | Peer's | Its flash attention | Ratio (median) | "
        "Ratio (fastest) | Target |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, cell in sorted(table.cells.items()):
        peer, model, threads, what, position = key
        if not cell.ours:
            continue
        least, _ = TARGETS[peer, what]
        target = f"≥ {least}" if position == 0 else ""
        lines.append(
            f"| {peer} | {model} | {threads} | {what} | {position:,} | {1 / statistics.median(cell.ours):.1f} | "
            f"{1 / statistics.median(cell.theirs):.1f} | {cell.setting()} | {cell.ratio():.2f} | {cell.fastest():.2f} | {target} |"
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
    parser.add_argument("--minutes", type=float, default=45.0, help="start no pair after this time")
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
    for name in models:
        bench.loads(name, max(options.threads))
    print(report(bench.table, pairs))


if __name__ == "__main__":
    main()
