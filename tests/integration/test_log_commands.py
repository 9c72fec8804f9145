"""``aos log``: a watcher that shouts, a witness that cosigns and forgets nothing, and files that convict."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from log_cases import LOG, fork, leaves, promise, split_view
from logged_run import AT, WITNESSES, witness_key
from peers.engine_case import EngineCase
from peers.hub_peer import OperatorPeer
from peers.log_peer import LogPeer
from simulated_run import secret
from typer.testing import CliRunner

from aos.adapters.keystore import create_keystore
from aos.cli.app import app
from aos.core import merkle
from aos.core.answer import read_answer
from aos.core.codec import encode
from aos.core.encoding import b64u_decode, b64u_encode, canonical_json
from aos.core.log.checkpoint import verify_checkpoint, witnessed
from aos.core.log.conviction import judge, read_conviction, write_conviction
from aos.core.log.note import read_note, read_signature_line, verify_note_signature
from aos.core.log.witness import read_add_checkpoint, write_add_checkpoint
from aos.dispatcher import refusals, routes_log
from aos.dispatcher.witnesses import WitnessFeed
from aos.errors import AOSError, ConfigError
from aos.witness.service import Witness, create_app
from aos.witness.state import WitnessState

NAME = WITNESSES[0]


@pytest.fixture
def peer() -> Iterator[LogPeer]:
    served = LogPeer(LOG, leaves(5))
    yield served
    served.close()


@pytest.fixture
def aos(tmp_path: Path, peer: LogPeer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``aos("watch", …)`` runs ``aos log watch …`` in a directory with this log's trust file."""
    state = tmp_path / ".aos"
    state.mkdir()
    (state / "trust.json").write_bytes(canonical_json(encode(LOG.trust())))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AOS_URL", peer.url)
    for name in ("AOS_TRUST", "AOS_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(app, ["log", *arguments])
        if isinstance(done.exception, AOSError):
            raise done.exception
        return done

    return run


# --- checkpoint, show


def test_the_checkpoint_is_shown_only_where_the_trusted_log_signed_it(aos: Any, peer: LogPeer) -> None:
    done = aos("checkpoint")
    assert (done.exit_code, done.stdout) == (0, LOG.checkpoint(leaves(5)))
    value = json.loads(aos("checkpoint", "--json").stdout)["result"]
    assert (value["size"], value["time_s"], value["witnesses"]) == (5, AT, [])
    peer.checkpoint = LOG.checkpoint(leaves(5), seed=secret("stranger"))
    with pytest.raises(AOSError) as caught:
        aos("checkpoint")
    assert caught.value.code == "checkpoint.unsigned"
    assert "snapshot" in aos("show").stdout
    assert json.loads(aos("show", "--json").stdout)["result"]["entries"][0]["index"] == 0


# --- watch


def evidence(tmp_path: Path, what: str) -> list[Path]:
    return sorted((tmp_path / ".aos").glob(f"*.{what}-*.json"))


def test_a_watcher_keeps_the_last_checkpoint_and_says_that_history_goes_on(
    aos: Any, peer: LogPeer, tmp_path: Path
) -> None:
    assert "FIRST" in aos("watch", "--once").stdout
    peer.leaves = leaves(9)
    done = aos("watch", "--once")
    assert (done.exit_code, done.stdout) == (0, "CONSISTENT 5 → 9 leaves: history goes on\n")
    kept = json.loads((tmp_path / ".aos/log-watch.json").read_text())
    assert kept["checkpoint"] == LOG.checkpoint(leaves(9))
    peer.leaves = leaves(
        5
    )  # an older one out of some cache: of the same date, and the kept one begins with it
    assert aos("watch", "--once").exit_code == 10  # the log cannot prove it any more, nobody is convicted
    peer.leaves, peer.checkpoint = leaves(9), LOG.checkpoint(leaves(5))
    assert aos("watch", "--once").exit_code == 0
    assert json.loads((tmp_path / ".aos/log-watch.json").read_text()) == kept
    assert evidence(tmp_path, "conviction") == []


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("split_view", lambda peer: setattr(peer, "leaves", leaves(5, from_=1))),
        ("fork", lambda peer: setattr(peer, "leaves", leaves(9, from_=1))),
        ("rollback", lambda peer: (setattr(peer, "leaves", leaves(4)), setattr(peer, "time_s", AT + 1))),
    ],
)
def test_a_watcher_shouts_when_history_changes(
    kind: str, changed: Callable[[LogPeer], None], aos: Any, peer: LogPeer, tmp_path: Path
) -> None:
    aos("watch", "--once")
    kept = (tmp_path / ".aos/log-watch.json").read_bytes()
    changed(peer)
    for number in (1, 2):  # each time anew, and no evidence is overwritten
        done = aos("watch", "--once")
        assert (done.exit_code, done.stdout.split(":")[0]) == (10, "HISTORY CHANGED")
        files = evidence(tmp_path, "conviction")
        assert len(files) == number
    assert (tmp_path / ".aos/log-watch.json").read_bytes() == kept
    assert judge(read_conviction(files[0].read_bytes()), [LOG.key]).code == f"log.{kind}"
    told = aos("convict", str(files[0]))
    assert (told.exit_code, "CONVICTED" in told.stdout) == (10, True)
    value = json.loads(aos("watch", "--once", "--json").stdout)["result"]
    assert value["state"] == "HISTORY CHANGED"
    assert (tmp_path / value["evidence"]) == evidence(tmp_path, "conviction")[-1]


def test_what_a_log_cannot_show_is_shouted_too_and_convicts_nobody(
    aos: Any, peer: LogPeer, tmp_path: Path
) -> None:
    aos("watch", "--once")
    peer.leaves, peer.lie = leaves(9), leaves(9, from_=3)
    done = aos("watch", "--once")
    assert (done.exit_code, done.stdout.split(":")[0]) == (10, "NOT PROVEN")
    peer.lie, peer.checkpoint = None, "no note"
    assert aos("watch", "--once").exit_code == 10
    assert len(evidence(tmp_path, "unproven")) == 2
    assert evidence(tmp_path, "conviction") == []
    file = json.loads(evidence(tmp_path, "unproven")[0].read_text())
    assert (file["held"], file["seen"]) == (LOG.checkpoint(leaves(5)), LOG.checkpoint(leaves(9)))


def test_a_watch_never_begins_anew_by_itself(aos: Any, peer: LogPeer, tmp_path: Path) -> None:
    aos("watch", "--once")
    state = tmp_path / ".aos/log-watch.json"
    text = state.read_text()
    for damaged in (
        "",
        "{}",
        text[:-9],
        text.replace("aos.log_watch", "other"),
        text.replace("\\n5\\n", "\\n6\\n"),
    ):
        state.write_text(damaged)
        with pytest.raises(ConfigError) as caught:
            aos("watch", "--once")
        assert caught.value.code == "log.state"
    state.write_text(text)
    peer.down = True
    with pytest.raises(AOSError) as unreachable:
        aos("watch", "--once")
    assert unreachable.value.exit_code == 20


def test_without_a_log_in_the_trust_file_nothing_is_believed(aos: Any, tmp_path: Path) -> None:
    (tmp_path / ".aos/trust.json").write_bytes(canonical_json(encode(LOG.network.trust())))
    for command in (("checkpoint",), ("watch", "--once")):
        with pytest.raises(ConfigError) as caught:
            aos(*command)
        assert caught.value.code == "trust.no_log"


# --- promise


def promised(tmp_path: Path, leaf: bytes, *, first: int) -> str:
    file = tmp_path / "job.json"
    signed = promise(leaf, first=first).to_json()
    file.write_bytes(canonical_json({"schema": "aos.cli.job.submit/1", "result": {"log_promise": signed}}))
    return str(file)


def test_a_promise_that_is_kept_or_whose_time_is_to_come(aos: Any, peer: LogPeer, tmp_path: Path) -> None:
    peer.leaves = leaves(600)
    done = aos("promise", promised(tmp_path, leaves(600)[300], first=280))
    assert (done.exit_code, done.stdout) == (0, "KEPT: the promised leaf is number 300 of 600\n")
    peer.time_s = AT - 1
    assert aos("promise", promised(tmp_path, secret("another leaf"), first=280)).exit_code == 11


@pytest.mark.parametrize(("size", "first"), [(5, 5), (5, 2), (300, 0), (600, 280), (70_000, 69_990)])
def test_a_broken_promise_gives_a_file_that_convicts(
    size: int, first: int, aos: Any, peer: LogPeer, tmp_path: Path
) -> None:
    peer.leaves = leaves(5) if size == 5 else [secret(f"{n}") for n in range(size)]
    done = aos("promise", promised(tmp_path, secret("a lost leaf"), first=first), "--json")
    assert (done.exit_code, json.loads(done.stdout)["result"]["state"]) == (10, "BROKEN")
    file = tmp_path / "log-conviction.json"
    assert judge(read_conviction(file.read_bytes()), [LOG.key]).code == "log.broken_promise"
    assert len(file.read_bytes()) < 3_000 + 46 * (size - first) + 46 * 40


def test_a_file_without_a_promise_or_with_a_forged_one_is_refused(aos: Any, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text('{"result":{}}')
    with pytest.raises(AOSError) as caught:
        aos("promise", str(file))
    assert caught.value.code == "log.no_promise"
    pair = promise(b"\1" * 32).to_json()
    pair["statement"]["first"] = 0
    file.write_bytes(canonical_json({"log_promise": pair}))
    with pytest.raises(AOSError) as caught:
        aos("promise", str(file))
    assert caught.value.code == "signature.wrong_signer"


# --- convict


def test_a_conviction_is_judged_offline(aos: Any, tmp_path: Path, peer: LogPeer) -> None:
    peer.close()
    file = tmp_path / "conviction.json"
    file.write_bytes(write_conviction(fork(3, 8)))
    value = json.loads(aos("convict", str(file), "--json").stdout)["result"]
    assert (value["state"], value["kind"], value["log"], value["trusted"]) == (
        "CONVICTED",
        "fork",
        str(LOG.key),
        True,
    )
    honest = split_view()
    file.write_bytes(
        write_conviction(
            type(honest)(kind="split_view", log=honest.log, first=honest.first, second=honest.first)
        )
    )
    done = aos("convict", str(file))
    assert (done.exit_code, done.stdout.startswith("NOTHING PROVEN")) == (0, True)
    file.write_text("{}")
    assert aos("convict", str(file)).exit_code == 12
    assert aos("convict", str(tmp_path / "nowhere")).exit_code == 12


# --- witness


def app_of(
    directory: Path, *, name: str = NAME, now_s: int = AT + 5
) -> tuple[Witness, httpx.AsyncClient, WitnessState]:
    state = WitnessState(directory)
    witness = Witness(name, secret(name), [LOG.key], state, now_s=lambda: now_s)
    http = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(witness)), base_url="http://witness")
    return witness, http, state


def body(old: int, new: int, from_: int = 0) -> bytes:
    path = merkle.consistency_path(leaves(new, from_=from_), old) if old > 0 else []
    return write_add_checkpoint(old, path, LOG.checkpoint(leaves(new, from_=from_)))


async def test_a_witness_cosigns_what_continues_and_answers_as_tlog_witness_says(tmp_path: Path) -> None:
    witness, http, state = app_of(tmp_path / "state")
    first = await http.post("/add-checkpoint", content=body(0, 5))
    assert first.status_code == 200
    line = read_signature_line(first.text.removesuffix("\n"))
    text = read_note(LOG.checkpoint(leaves(5))).text
    assert verify_note_signature(text, line, witness_key(NAME)) == AT + 5
    unknown = LOG.checkpoint(leaves(9)).replace("simulated", "elsewhere")
    stranger = LOG.checkpoint(leaves(9), seed=secret("stranger"))
    path = merkle.consistency_path(leaves(9), 5)
    refused = {
        409: body(0, 9),
        422: body(5, 9, from_=1),
        404: write_add_checkpoint(5, path, unknown),
        403: write_add_checkpoint(5, path, stranger),
        400: b"old x\n\n" + LOG.checkpoint(leaves(9)).encode(),
    }
    for status, content in refused.items():
        answer = await http.post("/add-checkpoint", content=content)
        assert answer.status_code == status, answer.text
        if status == 409:
            assert (answer.text, answer.headers["content-type"]) == ("5\n", "text/x.tlog.size")
    assert (await http.post("/add-checkpoint", content=b"x" * 100_000)).status_code == 400
    assert state.held(LOG.key) == verify_checkpoint(LOG.checkpoint(leaves(5)), LOG.key)
    assert (await http.post("/add-checkpoint", content=body(5, 9))).status_code == 200
    assert (await http.get("/")).text == f"{witness.key}\n"
    state.close()


def kept(directory: Path) -> list[Path]:
    return list(directory.glob("*.json"))


@pytest.mark.parametrize(
    ("kind", "old", "size", "from_"),
    [("split_view", 5, 5, 1), ("split_view", 0, 5, 1), ("fork", 5, 9, 1), ("", 5, 9, 0), ("", 3, 4, 0)],
)
async def test_a_witness_keeps_what_convicts_a_log(
    kind: str, old: int, size: int, from_: int, tmp_path: Path
) -> None:
    said: list[str] = []
    state = WitnessState(tmp_path)
    witness = Witness(NAME, secret(NAME), [LOG.key], state, now_s=lambda: AT + 5, shout=said.append)
    await witness.add(read_add_checkpoint(body(0, 5)))
    path = merkle.consistency_path(leaves(size, from_=from_), old) if 0 < old < size else []
    if not kind and (old, size) == (5, 9):
        path = [bytes(32)] * len(path)  # the sender's fault, not the log's
    request = write_add_checkpoint(old, path, LOG.checkpoint(leaves(size, from_=from_)))
    for _ in range(2):
        with pytest.raises(AOSError):
            await witness.add(read_add_checkpoint(request))
    found = kept(tmp_path)
    assert len(found) == len(said) == (1 if kind else 0)
    if kind:
        assert judge(read_conviction(found[0].read_bytes()), [LOG.key]).kind == kind
        assert str(found[0]) in said[0]
    held = state.held(LOG.key)
    assert held is not None
    assert held.head.size == 5
    state.close()


def damage(directory: Path) -> None:
    (kept,) = directory.glob("*.checkpoint")
    kept.write_text("damaged")


async def test_a_witness_that_was_killed_remembers_what_it_cosigned(tmp_path: Path) -> None:
    _, http, state = app_of(tmp_path)
    assert (await http.post("/add-checkpoint", content=body(0, 5))).status_code == 200
    with pytest.raises(ConfigError) as caught:
        WitnessState(tmp_path)  # two at work would each cosign a history of its own
    assert caught.value.code == "witness.state"
    state.close()
    _, http, state = app_of(tmp_path)
    assert (await http.post("/add-checkpoint", content=body(0, 5, from_=1))).status_code == 409
    assert (await http.post("/add-checkpoint", content=body(5, 9))).status_code == 200
    damage(tmp_path)
    with pytest.raises(ConfigError):
        state.held(LOG.key)
    state.close()


async def test_of_two_checkpoints_at_once_a_witness_cosigns_one(tmp_path: Path) -> None:
    _, http, state = app_of(tmp_path)
    assert (await http.post("/add-checkpoint", content=body(0, 5))).status_code == 200
    answers = await asyncio.gather(
        *(http.post("/add-checkpoint", content=body(5, size)) for size in (7, 8, 9))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    state.close()


def test_a_witness_has_its_key_in_a_keystore(
    aos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = tmp_path / "password"
    password.write_text("a password")
    password.chmod(0o600)
    monkeypatch.setenv("AOS_KEYSTORE_PASSWORD_FILE", str(password))
    create_keystore(tmp_path / "w.json", secret(NAME), b"a password", kind="log", scrypt_n=2)
    done = aos("key", str(tmp_path / "w.json"), "--name", NAME)
    assert done.stdout == f"{witness_key(NAME)}\n"
    create_keystore(tmp_path / "v.json", secret(NAME), b"a password", kind="vrf", scrypt_n=2)
    with pytest.raises(ConfigError) as caught:
        aos("key", str(tmp_path / "v.json"), "--name", NAME)
    assert caught.value.code == "keystore.kind"


# --- the dispatcher's side


@pytest.fixture
async def case(tmp_path: Path, pg_url: str) -> AsyncIterator[EngineCase]:
    peers = [OperatorPeer(f"opml-{n}") for n in range(2)]
    witness = {"key": str(witness_key(NAME)), "url": "http://witness"}
    log = {"interval_ms": 600_000, "quorum": 1, "witnesses": [witness]}
    opened = await EngineCase.open(tmp_path / "dispatcher", pg_url, *peers, log=log)
    yield opened
    await opened.close()


async def test_a_dispatcher_has_its_checkpoints_cosigned_and_shows_them_in_answers(
    case: EngineCase, tmp_path: Path
) -> None:
    held = case.dispatcher.log
    state = WitnessState(tmp_path / "witness")
    witness = Witness(NAME, secret(NAME), [held.key], state, now_s=lambda: AT)
    http = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(witness)), base_url="http://witness")
    feed = WitnessFeed(held, witness_key(NAME), "http://witness")
    await held.settled()
    await feed.feed(http)
    job = (await case.submit()).job_id
    await case.ended(job)
    early = read_answer(await case.dispatcher.jobs.answer(job, None))
    assert early.log is not None
    assert witnessed(read_note(early.log.checkpoint), [witness_key(NAME)]) == ()
    # A feed of a dispatcher that was started anew learns from the witness where it stands.
    again = WitnessFeed(held, witness_key(NAME), "http://witness")
    await again.feed(http)
    await again.feed(http)  # nothing is new
    answer = read_answer(await case.dispatcher.jobs.answer(job, None))
    assert answer.log is not None
    assert witnessed(read_note(answer.log.checkpoint), [witness_key(NAME)]) == (witness_key(NAME),)
    assert witnessed(read_note(await held.checkpoint()), [witness_key(NAME)]) != ()
    state.close()
    stranger = Witness(
        NAME, secret("stranger"), [held.key], WitnessState(tmp_path / "stranger"), now_s=lambda: AT
    )
    foreign = httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(stranger)), base_url="http://witness"
    )
    await case.dispatcher.log.settled()
    with pytest.raises(AOSError) as caught:
        await WitnessFeed(held, witness_key(NAME), "http://witness").feed(foreign)
    assert caught.value.code == "witness.unsigned"


async def test_the_log_is_served_as_the_specification_says(case: EngineCase) -> None:
    served = FastAPI()
    served.include_router(routes_log.router)
    refusals.install(served, refused=lambda code: None)
    served.state.log = case.dispatcher.log
    http = httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://d/v1/aos/log")
    for n in range(6):
        await case.dispatcher.pool.execute(
            "INSERT INTO snapshot (epoch, root, signed, entries) VALUES ($1, '\\x00', '{}', '[]')", 1000 + n
        )
    await case.dispatcher.log.settled()
    answer = await http.get("/checkpoint")
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == (
        "text/plain; charset=utf-8",
        "no-cache",
    )
    head = verify_checkpoint(answer.text, case.dispatcher.log.key).head
    fixed = "public, max-age=31536000, immutable"
    tile = await http.get(f"/tile/0/000.p/{head.size}")
    assert (tile.headers["cache-control"], len(tile.content)) == (fixed, 32 * head.size)
    assert merkle.tree_root([tile.content[i : i + 32] for i in range(0, len(tile.content), 32)]) == head.root
    leaf = tile.content[64:96]
    for query, cached in (
        (f"leaf={b64u_encode(leaf)}", "no-cache"),
        (f"leaf={b64u_encode(leaf)}&size=5", fixed),
    ):
        found = await http.get(f"/inclusion?{query}")
        assert found.headers["cache-control"] == cached
        value = found.json()
        path = [b64u_decode(item) for item in value["path"]]
        merkle.verify_inclusion(leaf, 2, value["size"], path, b64u_decode(value["root"]))
    found = await http.get("/consistency?from=3")
    assert found.json()["to"] == head.size
    assert (await http.get("/entries?start=1&limit=2")).json()["entries"][1]["index"] == 2
    for path, status, code in (
        ("/inclusion?leaf=x", 400, "field.range"),
        (f"/inclusion?leaf={'A' * 43}", 404, "log.unknown_leaf"),
        ("/consistency?from=0", 400, "field.range"),
        ("/consistency?from=99&to=100", 404, "log.size"),
        ("/tile/0/0", 400, "log.tile_path"),
        ("/tile/7/000", 404, "log.unknown_tile"),
    ):
        refused = await http.get(path)
        assert (refused.status_code, refused.json()["title"]) == (status, code), path
        assert "immutable" not in refused.headers.get("cache-control", "")
    served.state.log = None
    assert (await http.get("/checkpoint")).json()["title"] == "log.none"
