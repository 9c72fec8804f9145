"""The pieces of benchmarks/engine.py on a tiny model. Speeds are never asserted."""

import dataclasses
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_random_model_runs_and_answers_every_command_of_the_benchmark(tmp_path: Path) -> None:
    from engine_sides import canonical
    from random_models import SHAPES, make

    shape = dataclasses.replace(
        SHAPES["small"], width=256, ff_width=256, layers=1, heads=2, kv_heads=1, n_vocab=1024
    )
    model = make(shape, tmp_path)
    assert make(shape, tmp_path) == model
    side = canonical(model, 2, tmp_path / "cache")
    try:
        assert side.load_s > 0
        for command in ("threads 1", "clear 8", "prefill 8 1", "decode 3", "threads 2", "clear 300"):
            assert side.ask(command)["s"] > 0, command
        answer = side.ask("prefill 300 0")
        assert 0 < answer["commitment"] < 1
        assert side.ask("decode 2")["s"] > 0
    finally:
        side.close()
    assert list((tmp_path / "cache").glob("model-*.json"))


def test_a_pair_takes_the_peers_faster_setting_and_turns_the_order_around() -> None:
    from engine import Cell, in_turn

    order: list[str] = []

    def timed(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    cell = Cell()
    for number, (on, off) in enumerate([(2.0, 3.0), (5.0, 4.0), (6.0, 1.0)]):
        pair = in_turn(
            number,
            lambda: timed("ours", 1.0),
            {True: lambda on=on: timed("on", on), False: lambda off=off: timed("off", off)},
        )
        cell.add(*pair)
    assert order == ["ours", "on", "off", "off", "on", "ours", "ours", "on", "off"]
    assert cell.ours == [1.0, 1.0, 1.0]
    assert cell.theirs == [2.0, 4.0, 1.0]
    assert cell.setting() == "on in 1 of 3"
    assert [Cell(flash=[flash] * 2).setting() for flash in (True, False)] == ["on", "off"]


def test_a_bare_touch_of_memory_is_timed_twice() -> None:
    from engine_sides import touch

    assert all(seconds > 0 for seconds in touch(8 << 20))


def test_the_report_gives_the_median_of_the_pairs_ratios_and_the_geometric_mean_of_the_cells() -> None:
    from engine import Table, report

    table = Table()
    for threads, theirs in ((1, [2.0, 4.0, 30.0]), (2, [9.0, 9.0, 9.0])):
        cell = table.cells["native", "1b", threads, "decode", 0]
        cell.ours, cell.theirs, cell.flash = [1.0, 1.0, 1.0], theirs, [False] * 3
    text = report(table, 3)
    assert "| native | 1b | 1 | decode | 0 | 1.0 | 0.2 | off | 4.00 | 2.00 | ≥ 1.1 |" in text
    assert "native, decode, position 0, medians: geometric mean 6.00 (target 1.2), lowest 4.00" in text
