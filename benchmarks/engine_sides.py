"""The sides of benchmarks/engine.py: processes that time their own prefill and decode when told to.

A side reads one command a line and answers one line of JSON: ``threads N``, ``clear P`` (a new run whose prompt has P
positions), ``prefill N L`` (L: with the last position's logits), ``decode N``. Times are in seconds.
"""

import json
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
FLASH = (True, False)
"""llama.cpp's flash attention on and off."""


def environment(**more: str) -> dict[str, str]:
    """The caller's environment; glibc asks for huge pages for all large memory, llama.cpp's too."""
    return {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **more}


class Side:
    """A running side. ``load_s`` is what it says its load took."""

    def __init__(self, name: str, command: list[str], *, env: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.peak_anonymous = 0
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self.load_s = float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self._process.wait()}")
        return json.loads(line)

    def ask(self, command: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _watch(self) -> None:
        """Peak of anonymous memory, huge pages included, in bytes."""
        status = Path(f"/proc/{self._process.pid}/status")
        while not self._closed.wait(0.2):
            try:
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except OSError:
                return
            if "RssAnon" in lines:
                now = sum(int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))
                self.peak_anonymous = max(self.peak_anonymous, now)

    def close(self) -> None:
        self._closed.set()
        self._watcher.join()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def canonical(model: Path, threads: int, cache: Path) -> Side:
    command = [sys.executable, __file__, "canonical", str(model), str(threads), str(cache)]
    return Side("canonical", command, env=environment())


def native_llama(driver: Path, model: Path, n_ctx: int, *, flash: bool) -> Side:
    return Side(
        "llama.cpp, native build", [str(driver), str(model), str(n_ctx), str(int(flash))], env=environment()
    )


def wheel(model: Path, threads: int, n_ctx: int, *, flash: bool) -> Side:
    command = [sys.executable, __file__, "wheel", str(model), str(threads), str(n_ctx), str(int(flash))]
    return Side("llama.cpp, xllamacpp wheel", command, env=environment())


def touch(size: int) -> tuple[float, float]:
    """Seconds to touch ``size`` bytes of new memory in huge pages, and again at once after they were freed."""
    first, second = json.loads(subprocess.check_output([sys.executable, __file__, "touch", str(size)]))
    return first, second


def _touch(size: int) -> float:
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        view = np.frombuffer(memory, dtype=np.uint8)
        start = time.perf_counter()
        view[:: mmap.PAGESIZE] = 1
        spent = time.perf_counter() - start
        del view
    return spent


def _prompt(count: int, n_vocab: int) -> list[int]:
    return [1, *(259 + position * 7919 % (n_vocab - 259) for position in range(1, count))]


def _serve_canonical(model: Path, threads: int, cache: Path) -> None:
    from aos.engine.native import NativeEngine
    from aos.ports import SamplingParams

    start = time.perf_counter()
    engine = NativeEngine(model, threads=threads, cache_dir=cache)
    print(json.dumps(time.perf_counter() - start), flush=True)
    native, n_vocab = engine._model, engine.hyper.n_vocab
    greedy = SamplingParams(temperature=0, top_p=1_000_000, max_tokens=1, seed=0)
    limit, position, prompt = threads, 0, _prompt(1, n_vocab)
    run = engine._begin(prompt, greedy)
    for line in sys.stdin:
        command, *rest = line.split()
        counts = [int(number) for number in rest]
        answer: dict[str, float] = {}
        while command == "decode" and run.waiting:
            prompt.append(run.choose() or 0)  # a prefill without logits left its last tail
        hashed, start = run._batch.commitment_ns, time.perf_counter()
        if command == "threads":
            limit = counts[0]
            native.limit_threads(limit)
        elif command == "clear":
            prompt, position = _prompt(counts[0], n_vocab), 0
            run = engine._begin(prompt, greedy)
        elif command == "prefill":
            end = position + counts[0]
            for at in range(position, end, engine.step):
                run.extend(prompt[at : min(at + engine.step, end)])
            position = end
            if counts[1]:
                prompt.append(run.choose() or 0)
        elif command == "decode":
            for _ in range(counts[0]):
                run.extend(prompt[-1:])
                prompt.append(run.choose() or 0)
        answer["s"] = time.perf_counter() - start
        if command in ("prefill", "decode"):
            answer["commitment"] = (run._batch.commitment_ns - hashed) / 1e9 / limit / answer["s"]
        print(json.dumps(answer), flush=True)


def _serve_wheel(model: Path, threads: int, n_ctx: int, flash: bool) -> None:
    from aos.engine.llama_cpp import _Server

    start = time.perf_counter()
    server = _Server(model, threads=threads, n_ctx=n_ctx, flash=flash)
    print(json.dumps(time.perf_counter() - start), flush=True)
    for line in sys.stdin:
        _, prefill, decode = line.split()
        body = {
            "prompt": _prompt(int(prefill), 32_000),
            "n_predict": int(decode) + 1,
            "cache_prompt": False,
            "temperature": 0.0,
            "ignore_eos": True,
        }
        timings = server.post("/completion", body)["timings"]
        assert timings["prompt_n"] == int(prefill)
        assert timings["predicted_n"] == int(decode) + 1
        # The first token comes with the prompt; llama.cpp counts its sampling, not its forward pass, in predicted_ms.
        print(
            json.dumps({"prefill": timings["prompt_ms"] / 1e3, "decode": timings["predicted_ms"] / 1e3}),
            flush=True,
        )


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "canonical":
        _serve_canonical(Path(rest[0]), int(rest[1]), Path(rest[2]))
    elif kind == "wheel":
        _serve_wheel(Path(rest[0]), int(rest[1]), int(rest[2]), rest[3] == "1")
    else:
        print(json.dumps([_touch(int(rest[0])) for _ in range(2)]))
