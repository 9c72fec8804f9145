"""The transparency log on a real PostgreSQL: every fact is a leaf, the tree only grows, and whoever is killed leaves it whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peers.engine_case import EngineCase
from peers.hub_peer import OperatorPeer, Result

from aos.core import merkle
from aos.core.answer import read_answer
from aos.core.log.checkpoint import verify_checkpoint
from aos.core.log.conviction import BrokenPromise, judge
from aos.core.log.leaf import KINDS, LogPromise, entry_of, fact_bytes, log_leaf
from aos.core.log.tiles import grow, read_tile_path, root_plan
from aos.core.receipt import verify_answer
from aos.core.statements import verify_signed
from aos.core.trust import load_policy
from aos.dispatcher.log import Log
from aos.errors import AOSError, ConfigError, VerificationError

Open = Callable[..., Any]
NEVER = {"interval_ms": 600_000, "refresh_ms": 86_400_000}


@pytest.fixture
async def open_case(tmp_path: Path, pg_url: str) -> AsyncIterator[Open]:
    """``open_case(**settings) -> EngineCase`` with two opML operators."""
    cases: list[EngineCase] = []

    async def open_(*operators: OperatorPeer, **changes: Any) -> EngineCase:
        peers = operators or tuple(OperatorPeer(f"opml-{n}") for n in range(2))
        cases.append(await EngineCase.open(tmp_path / "dispatcher", pg_url, *peers, **changes))
        return cases[-1]

    yield open_
    for case in cases:
        await case.close()


async def leaves(case: EngineCase) -> list[Any]:
    return list(await case.dispatcher.pool.fetch("SELECT * FROM log_leaf ORDER BY leaf_index"))


async def checked(case: EngineCase) -> Any:
    """The signed tree, recomputed from its entries: leaves, tiles, root and checkpoint belong together."""
    held = case.dispatcher.log
    checkpoint = verify_checkpoint(await held.checkpoint(), held.key)
    placed = [row for row in await leaves(case) if row["leaf_index"] is not None]
    assert [row["leaf_index"] for row in placed] == list(range(checkpoint.head.size))
    hashes = [merkle.leaf_hash(entry_of(KINDS[row["kind"] - 1], row["digest"])) for row in placed]
    assert hashes == [row["leaf"] for row in placed]
    assert merkle.tree_root(hashes) == checkpoint.head.root
    tiles = await case.dispatcher.pool.fetch("SELECT level, index, hashes FROM log_tile")
    assert {(t["level"], t["index"]): t["hashes"] for t in tiles} == grow(0, {}, hashes)
    for row in await case.dispatcher.pool.fetch("SELECT * FROM log_checkpoint"):
        assert merkle.tree_root(hashes[: row["size"]]) == row["root"]
        assert verify_checkpoint(row["note"], held.key).head.size == row["size"]
    return checkpoint


async def test_every_fact_of_a_run_is_a_leaf_in_its_order(open_case: Open) -> None:
    case = await open_case()
    job = (await case.submit()).job_id
    assert await case.ended(job) == "agreed"
    data = await case.dispatcher.jobs.answer(job, None)
    report = verify_answer(data, trust=case.trust(), policy=load_policy("production"))
    assert report.verdict == "VERIFIED", report.headline
    await checked(case)
    kinds = [KINDS[row["kind"] - 1] for row in await leaves(case)]
    run = [kind for kind in kinds if kind != "snapshot"]
    assert run[:3] == ["acceptance", "draw_call", "draw_record"]
    assert sorted(run[3:5]) == ["commit", "commit"]
    assert run[5:] == ["commit_set", "result", "result", "receipt", "receipt"]
    # What is logged is what is served, byte for byte.
    answer = read_answer(data)
    facts = {
        "acceptance": answer.acceptance,
        "draw_call": answer.draw.draw_call,
        "draw_record": answer.draw.draw_record,
        "commit_set": answer.commit.commit_set,
    }
    for row in await leaves(case):
        kind = KINDS[row["kind"] - 1]
        if kind in facts:
            assert row["leaf"] == log_leaf(kind, row["salt"], fact_bytes(facts[kind].to_json()))
    salts = [row["salt"] for row in await leaves(case)]
    assert len(set(salts)) == len(salts)


async def test_an_answer_file_stays_what_it_was_while_the_log_grows(open_case: Open) -> None:
    case = await open_case()
    job = (await case.submit()).job_id
    await case.ended(job)
    first = await case.dispatcher.jobs.answer(job, None)
    other = (await case.submit()).job_id
    await case.ended(other)
    await case.dispatcher.jobs.answer(other, None)
    assert await case.dispatcher.jobs.answer(job, None) == first


async def test_disputed_results_boots_and_evidence_are_leaves_too(open_case: Open) -> None:
    operators = [OperatorPeer("opml-0"), OperatorPeer("opml-1"), OperatorPeer("tee-0", job_type="tee")]
    case = await open_case(*operators)
    operators[1].result = Result(state_root=b"\7" * 32)
    job = (await case.submit()).job_id
    assert await case.ended(job) == "disputed"
    pool = case.dispatcher.pool
    await pool.execute(
        """INSERT INTO evidence (job_id, attempt, node_id, code, statement)
           VALUES ($1, 1, 'somebody', 'equivocation.commit', '{}')""",
        job,
    )
    await pool.execute("UPDATE dispute_run SET resolution = '{\"a\":1}'")
    receipt = await pool.fetchval("SELECT receipt_id FROM receipt LIMIT 1")
    await pool.execute(
        """INSERT INTO dispute_game (game, receipt_id, claimant, challenger, rules, opened_at, closes_at, state)
           VALUES ($1, $2, 'a', 'b', '{}', 1, 2, 'open')""",
        b"\7" * 32,
        receipt,
    )
    for state, against, code in (
        ("defaulted", "claimant", "late"),
        ("open", "", ""),
        ("proven", "claimant", "x.y"),
    ):
        await pool.execute(
            "UPDATE dispute_game SET state = $1, against = $2, code = $3", state, against, code
        )
    await pool.execute(
        """INSERT INTO audit (audit, receipt_id, request, ordered, asked_at, due_at, closes_at, opening, hashes, opened_at)
           VALUES ($1, $2, '{}', '{}', 1, 2, 3, '{}', '{}', 2)""",
        b"\7" * 32,
        receipt,
    )
    await pool.execute("UPDATE audit SET report = '{}'")
    await case.dispatcher.log.settled()
    await checked(case)
    rows = await leaves(case)
    kinds = [KINDS[row["kind"] - 1] for row in rows]
    assert (kinds.count("boot"), kinds.count("audit_order"), kinds.count("audit_report")) == (1, 1, 1)
    assert (kinds.count("evidence"), kinds.count("resolution"), kinds.count("verdict")) == (1, 1, 3)
    last = [row for row in rows if KINDS[row["kind"] - 1] == "verdict"][-1]
    verdict = b'{"against":"claimant","code":"x.y","game":"' + b"BwcH" * 10 + b'Bwc","state":"proven"}'
    assert last["leaf"] == log_leaf("verdict", last["salt"], verdict)


async def test_a_job_that_is_not_stored_leaves_no_leaf_and_a_refused_one_neither(open_case: Open) -> None:
    case = await open_case()
    before = len(await leaves(case))
    with pytest.raises(AOSError):
        await case.submit(replace(case.job(), model="nobody's"))
    async with case.dispatcher.pool.acquire() as db:
        turn = db.transaction()
        await turn.start()
        await db.execute(
            "INSERT INTO snapshot (epoch, root, signed, entries) VALUES (9999, '\\x00', '{}', '[]')"
        )
        await turn.rollback()
    assert len(await leaves(case)) == before


async def test_without_a_log_key_leaves_wait_and_answers_have_no_proof(open_case: Open) -> None:
    case = await open_case()
    job = (await case.submit()).job_id
    await case.ended(job)
    case.dispatcher.jobs._log = None
    answer = read_answer(await case.dispatcher.jobs.answer(job, None))
    assert answer.log is None


# --- promises


async def test_a_promise_is_kept_by_every_checkpoint_after_its_deadline(open_case: Open) -> None:
    case = await open_case(log={"merge_ms": 1_000} | NEVER)
    held = case.dispatcher.log
    await held.settled()
    submitted = await case.submit()
    promise = verify_signed(LogPromise, submitted.promise, address=case.config.keys.address).statement
    assert promise.leaf == log_leaf("acceptance", promise.salt, fact_bytes(submitted.acceptance))
    assert (promise.log_key, promise.first) == (str(held.key), held.size)
    await held.settled()
    checkpoint = await checked(case)
    found = await held.inclusion(promise.leaf, None)
    assert found["index"] >= promise.first
    tail = [row["leaf"] for row in (await leaves(case))[promise.first :] if row["leaf_index"] is not None]
    conviction = BrokenPromise(
        kind="broken_promise",
        log=str(held.key),
        promise=verify_signed(LogPromise, submitted.promise, address=case.config.keys.address),
        checkpoint=str(checkpoint.note),
        leaves=tuple(tail),
        path=(),
    )
    with pytest.raises(VerificationError):  # nobody is convicted by what was kept
        judge(conviction)


async def test_the_date_of_a_checkpoint_never_goes_back_and_a_promise_is_not_before_it(
    open_case: Open,
) -> None:
    case = await open_case(log=dict(NEVER))
    await case.dispatcher.log.settled()
    now = [2_000_000_000_000]
    held = Log(case.dispatcher.pool, case.config, now_ms=lambda: now[0])
    assert await held.sequence()
    late = verify_checkpoint(await held.checkpoint(), held.key)
    now[0] -= 3_600_000  # somebody corrected the clock
    await case.dispatcher.pool.execute(
        "INSERT INTO snapshot (epoch, root, signed, entries) VALUES (1000, '\\x00', '{}', '[]')"
    )
    assert await held.sequence()
    after = verify_checkpoint(await held.checkpoint(), held.key)
    assert after.head.size > late.head.size
    assert after.time_s == late.time_s
    assert held.promise(0, b"\0" * 32, b"").statement.promised_at >= late.time_s * 1000
    now[0] += 3_600_000 + 86_400_000
    assert await held.sequence()  # nothing is new: the same tree, dated anew
    fresh = verify_checkpoint(await held.checkpoint(), held.key)
    assert (fresh.head, fresh.time_s) == (after.head, now[0] // 1000)


# --- writers that die, or are two


async def test_a_sequencer_killed_after_any_statement_leaves_a_tree_that_goes_on(open_case: Open) -> None:
    case = await open_case(log=dict(NEVER))
    await case.dispatcher.log.settled()
    died = 0
    for number in range(1, 13):
        await case.dispatcher.pool.execute(
            "INSERT INTO snapshot (epoch, root, signed, entries) VALUES ($1, '\\x00', $2, '[]')",
            1000 + number,
            json.dumps({"n": number}),
        )
        gone = case.dispatcher.die_after(number)
        with contextlib.suppress(AOSError, asyncio.CancelledError, OSError):
            await case.dispatcher.log.sequence()
        died += gone.is_set()
        await case.restart()
        await case.dispatcher.log.settled()
        checkpoint = await checked(case)
    assert died >= 8  # a pass takes about ten statements
    assert checkpoint.head.size >= 12


async def test_two_dispatchers_write_one_tree(open_case: Open) -> None:
    case = await open_case(log=dict(NEVER))
    await case.dispatcher.log.settled()
    logs = [Log(case.dispatcher.pool, case.config, now_ms=lambda: 1_900_000_000_000) for _ in range(3)]

    async def store(number: int) -> None:
        await case.dispatcher.pool.execute(
            "INSERT INTO snapshot (epoch, root, signed, entries) VALUES ($1, '\\x00', '{}', '[]')",
            1000 + number,
        )

    work = [store(n) for n in range(60)] + [log.sequence() for log in logs for _ in range(20)]
    await asyncio.gather(*work)
    await case.dispatcher.log.settled()
    assert (await checked(case)).head.size >= 60


async def test_a_log_signed_with_another_key_is_refused_at_the_start(open_case: Open) -> None:
    case = await open_case()
    await case.dispatcher.log.settled()
    keys = replace(case.config.keys, log=b"\5" * 32)
    other = Log(case.dispatcher.pool, replace(case.config, keys=keys), now_ms=lambda: 0)
    with pytest.raises(ConfigError) as caught:
        await other.open()
    assert caught.value.code == "log.foreign_key"
    assert str(case.dispatcher.log.key) in str(caught.value.hint)


# --- what everybody may read


async def test_proofs_out_of_tiles_hold_between_any_two_signed_sizes(open_case: Open) -> None:
    case = await open_case(log=dict(NEVER))
    held, pool = case.dispatcher.log, case.dispatcher.pool
    await pool.execute(
        """INSERT INTO snapshot (epoch, root, signed, entries)
           SELECT 1000 + n, '\\x00', '{"n":' || n || '}', '[]' FROM generate_series(1, 600) AS n"""
    )
    await held.settled()
    checkpoint = await checked(case)
    size, hashes = checkpoint.head.size, [row["leaf"] for row in await leaves(case)]
    for old in (1, 2, 255, 256, 257, 512, size - 1, size):
        for new in {min(size, old + 1), size}:
            found = await held.consistency(old, new)
            roots = (found["from_root"], found["to_root"])
            assert roots == (merkle.tree_root(hashes[:old]), merkle.tree_root(hashes[:new]))
            merkle.verify_consistency(old, new, found["path"], *roots)
    for index in (0, 255, 256, 511, size - 1):
        for of in {index + 1, size}:
            found = await held.inclusion(hashes[index], of)
            assert found["index"] == index
            merkle.verify_inclusion(hashes[index], index, of, found["path"], found["root"])
    listed = await held.entries(250, 20)
    assert [entry["index"] for entry in listed] == list(range(250, 270))
    tile = await held.tile(read_tile_path("0/001"))
    assert tile == b"".join(hashes[256:512])
    assert await held.tile(read_tile_path("0/002.p/9")) == b"".join(hashes[512:521])
    level_1 = await held.tile(read_tile_path("1/000.p/2"))
    assert root_plan(512).resolve({(1, 0): level_1}) == [merkle.tree_root(hashes[:512])]
    bundle = await held.tile(read_tile_path("entries/000"))
    assert [merkle.leaf_hash(entry) for entry in unbundled(bundle)] == hashes[:256]
    for missing in ("0/003", "1/000", "1/000.p/3", "2/000.p/1", "entries/003.p/1", "0/002"):
        with pytest.raises(AOSError) as caught:
            await held.tile(read_tile_path(missing))
        assert caught.value.code == "log.unknown_tile"
    for ask, code in (
        (held.inclusion(b"\0" * 32, None), "log.unknown_leaf"),
        (held.inclusion(hashes[5], 5), "log.unknown_leaf"),
        (held.inclusion(hashes[5], size + 1), "log.size"),
        (held.consistency(5, size + 1), "log.size"),
        (held.consistency(6, 5), "field.range"),
    ):
        with pytest.raises(AOSError) as caught:
            await ask
        assert caught.value.code == code


def unbundled(data: bytes) -> list[bytes]:
    entries = []
    while data:
        length = int.from_bytes(data[:2], "big")
        entries.append(data[2 : 2 + length])
        data = data[2 + length :]
    return entries
