"""How far long work is, on stderr; silent where stderr is no terminal."""

import os
import sys


class Progress:
    """Called with bytes done and bytes in all (None where unknown); draws over its own line."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = -1

    def __call__(self, done: int, total: int | None) -> None:
        if not sys.stderr.isatty():
            return
        percent = int(100 * done / total) if total else -1
        step = percent if total else done >> 22
        if step == self._shown:
            return
        self._shown = step
        if total:
            bar = "█" * (percent // 4) + "░" * (25 - percent // 4)
            _draw(f"\r{self._label} {bar} {percent:3d} %" + ("\n" if done >= total else ""))
        else:
            _draw(f"\r{self._label} {done >> 20} MiB")


class Steps:
    """Called with steps done and steps in all; draws over its own line, and ends it where all are done."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown: tuple[int, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        if (done, total) == self._shown or not sys.stderr.isatty():
            return
        self._shown = (done, total)
        filled = 25 if done >= total else 25 * done // total
        bar = "█" * filled + "░" * (25 - filled)
        _draw(f"\r{self._label} {bar} {done} of {total}" + ("\n" if done >= total else ""))


def _draw(text: str) -> None:
    # A terminal that was closed is no reason to fail: the work goes on without it.
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  stays for the rest of the program
