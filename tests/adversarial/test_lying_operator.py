"""One operator of three lies, on a running network of processes: the requester receives the honest answer, the liar is convicted,
and a fresh process without a model file finds the same from the transcript (docs/spec/13-dispute.md, "In the network").

CI tells three lies; ``AOS_LIES=all`` tells every kind, ``AOS_LIES=seed,head`` some (docs/log.md has the run).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from peers.lying_network import LIAR, LyingNetwork
from peers.lying_worker import IN_GAME, KINDS
from peers.running_network import kill, query, rows_of, submit, wait_until

from aos.cli.network import found
from aos.core.dispute.moves import Open, game_id
from aos.core.encoding import b64u_encode
from aos.core.hashes import job_ref
from aos.core.keys import parse_key
from aos.core.receipt import verify_answer
from aos.core.statements import ReceiptCore, hash_of, read_signed, sign
from aos.core.trust import load_policy, read_trust
from aos.local.network import RunningNetwork

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MODEL = Path(__file__).parents[2] / "models" / "aos-demo.Q8_0.gguf"
CHOSEN = os.environ.get("AOS_LIES", "weight,token,foreign_cache")
ALL = CHOSEN == "all"
LIES = KINDS if ALL else tuple(CHOSEN.split(","))
DISPUTES = {
    "claim_window_ms": 600_000,
    "grace_ms": 20_000 if ALL else 60_000,
    "budget_ms": 0,
    "window_ms": 600_000,
    "bond": 1,
}


@pytest.fixture(scope="module")
def lie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lie") / "kind"
    path.write_text("honest")
    return path


@pytest.fixture(scope="module")
def network(lie: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    state = tmp_path_factory.mktemp("lying") / "state"
    local = LyingNetwork(
        state, lie=lie, disputes=DISPUTES, found=found, opml_operators=3, tee_operators=0, model=MODEL
    )
    until = threading.Event()
    with local.running() as running:
        keeper = threading.Thread(target=local.serve, args=(running, until))
        keeper.start()
        try:
            yield running
        finally:
            until.set()
            keeper.join()


def address(network: RunningNetwork, name: str) -> str:
    (row,) = query(network, name.replace("-", "_"), "SELECT node_id FROM node_state")
    return str(row["node_id"])


def get(network: RunningNetwork, path: str, *, token: bool = False) -> Any:
    headers = {"authorization": f"Bearer {network.token}"} if token else {}
    answer = httpx.get(f"{network.url}/v1/aos/disputes{path}", headers=headers, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer


def last_status(network: RunningNetwork, job_id: str) -> dict[str, Any]:
    with network.client() as client:
        for event in client.events(job_id):
            if event.kind == "done":
                return dict(event.data)
    raise AssertionError("the events ended without `done`")


def referee(path: Path, empty: Path) -> subprocess.CompletedProcess[str]:
    """`aos referee` as its own process, in a directory without a model file."""
    return subprocess.run(
        [sys.executable, "-m", "aos.cli.main", "referee", str(path), "--json"],
        capture_output=True,
        text=True,
        cwd=empty,
        env={"PATH": "/usr/bin:/bin", "HOME": str(empty)},
        check=False,
        timeout=120,
    )


def honest_text(network: RunningNetwork, lie: Path, prompt: str) -> str:
    """What the model answers: the same request with nobody lying."""
    lie.write_text("honest")
    job = submit(network, prompt, params=HONEST)
    assert last_status(network, job.job_id)["status"] == "verified"
    return str(rows_of(network, job.job_id)[0]["result"])


HONEST = {"seed": 11, "max_tokens": 24, "temperature": 0.8, "top_p": 0.9}
PROMPT = "Explain what a receipt is to somebody"


@pytest.mark.parametrize("kind", LIES)
def test_a_liar_is_convicted_and_the_honest_answer_delivered(
    network: RunningNetwork, lie: Path, kind: str, tmp_path: Path
) -> None:
    liar = address(network, LIAR)
    expected = honest_text(network, lie, PROMPT)
    lie.write_text(kind)
    began = time.monotonic()
    job = submit(network, PROMPT, params=HONEST, blind=True)
    done = last_status(network, job.job_id)
    took = time.monotonic() - began
    assert done == {"status": "verified", "outcome": "resolved", "attempt": 1}
    rows = rows_of(network, job.job_id)
    assert liar not in {row["operator"] for row in rows}
    assert {row["result"] for row in rows} == {expected}
    assert len(rows) == 2
    report_of(network, job.job_id)
    ref = b64u_encode(job_ref(job.job_id))
    games = get(network, f"?job_ref={ref}").json()["games"]
    against = [game for game in games if game["claimant"] == liar]
    if kind in IN_GAME:
        assert not any(game["state"] == "proven" and game["against"] == "claimant" for game in against)
        return
    # One proof convicts: another game against the same claim may be still open.
    proven = [game for game in against if game["state"] == "proven"]
    assert {game["against"] for game in proven} == {"claimant"}
    assert all(
        game["claimant"] != liar and game["against"] != "claimant" for game in games if game not in against
    )
    convicted = [
        each for each in get(network, "/convictions").json()["convictions"] if each["job_ref"] == ref
    ]
    assert {each["node_id"] for each in convicted} == {liar}
    for game in proven:
        assert game["bytes"] <= 64 * 1024
        assert (
            httpx.get(f"{network.url}/v1/aos/disputes/{game['game']}/transcript", timeout=30).status_code
            == 403
        )
        path = tmp_path / "game.json"
        path.write_bytes(get(network, f"/{game['game']}/transcript", token=True).content)
        judged = referee(path, tmp_path)
        assert judged.returncode == 10, judged.stdout + judged.stderr
        found_state = json.loads(judged.stdout)["result"]
        assert found_state["state"] == "CONVICTED"
        assert found_state["game"]["claimant"] == liar
        print(
            kind, f"{took:.1f} s", game["kind"], game["code"], game["moves"], "moves", game["bytes"], "bytes"
        )


def report_of(network: RunningNetwork, job_id: str) -> None:
    with network.client() as client:
        answer = client.answer(job_id)
    trust = read_trust(network.trust_path.read_bytes())
    report = verify_answer(answer, trust=trust, policy=load_policy(trust.policy))
    assert [check for check in report.checks if check.status == "FAIL"] == []
    assert report.verdict == "VERIFIED"
    assert "redundant:2" in report.levels
    assert next(check.status for check in report.checks if check.id == "resolve-1") == "PASS"


def challenge(network: RunningNetwork, answer: bytes, directory: Path) -> subprocess.CompletedProcess[str]:
    path = directory / "answer.aos"
    path.write_bytes(answer)
    command = ["challenge", str(path), "--model", str(MODEL), "--threads", "1", "--json"]
    return subprocess.run(
        [sys.executable, "-m", "aos.cli.main", *command, "--save", str(directory / "game.json")],
        capture_output=True,
        text=True,
        env=os.environ | {"AOS_STATE_DIR": str(network.trust_path.parent)},
        check=False,
        timeout=200,
    )


def test_a_project_challenges_the_answer_of_a_liar_that_nobody_checked(
    network: RunningNetwork, lie: Path, tmp_path: Path
) -> None:
    liar = address(network, LIAR)
    answers: dict[bool, bytes] = {}
    lie.write_text("weight")
    for _ in range(24):  # one seat: drawn, or filled by the public rule
        job = submit(network, PROMPT, params=HONEST, min_operators=1)
        last_status(network, job.job_id)
        seated = {row["operator"] for row in rows_of(network, job.job_id)}
        if len(seated) == 1:
            with network.client() as client:
                answers.setdefault(liar in seated, client.answer(job.job_id))
        if len(answers) == 2:
            break
    same = challenge(network, answers[False], tmp_path)
    assert same.returncode == 0, same.stdout + same.stderr
    assert json.loads(same.stdout)["result"]["state"] == "SAME"
    won = challenge(network, answers[True], tmp_path)
    assert won.returncode == 10, won.stdout + won.stderr
    assert json.loads(won.stdout)["result"]["game"]["claimant"] == liar
    assert referee(tmp_path / "game.json", tmp_path).returncode == 10


def test_a_dispute_outlives_the_death_of_its_processes(network: RunningNetwork, lie: Path) -> None:
    liar = address(network, LIAR)
    lie.write_text("weight")
    job = submit(network, PROMPT, params=HONEST, blind=True)
    with network.client() as client:
        for event in client.events(job.job_id):
            assert event.kind != "done"
            if event.kind == "status" and event.data["status"] == "disputed":
                break
    for victim in ("operator-3-worker", "operator-2", LIAR, "dispatcher"):
        kill(network, victim)
    assert last_status(network, job.job_id)["outcome"] == "resolved"
    assert liar not in {row["operator"] for row in rows_of(network, job.job_id)}
    turns = "SELECT game, turn, count(DISTINCT author) AS n FROM dispute_move GROUP BY game, turn"
    assert all(row["n"] == 1 for row in query(network, "dispatcher", turns))
    against_honest = "SELECT 1 FROM conviction WHERE node_id <> $1"
    assert query(network, "dispatcher", against_honest, liar) == []


def test_an_operator_that_contradicts_its_own_signed_move_is_convicted(
    network: RunningNetwork, lie: Path, tmp_path: Path
) -> None:
    liar = address(network, LIAR)
    key = parse_key((network.trust_path.parent / LIAR / "signer.key").read_text().strip(), name="signer")
    lie.write_text("stall")  # its worker moves nowhere: what is signed for it below is all that it says
    job = submit(network, PROMPT, params=HONEST, blind=True)
    with network.client() as client:
        for event in client.events(job.job_id):
            if event.kind == "status" and event.data["status"] == "disputed":
                break
    cores = {
        row["node_id"]: read_signed(ReceiptCore, json.loads(row["core"])).statement
        for row in query(
            network, "dispatcher", "SELECT node_id, core FROM receipt WHERE job_id = $1", job.job_id
        )
    }
    claim = next(core for node_id, core in cores.items() if node_id != liar)
    name = b64u_encode(hash_of(claim))
    wait_until(lambda: bool(get(network, f"/claims/{name}", token=True).json()["served"]))
    opening = Open(
        network=claim.network,
        challenger=liar,
        claimant=claim.operator,
        claim=hash_of(claim),
        job_ref=claim.job_ref,
        attempt=claim.attempt,
        kind="unit",
        position=0,
        unit=0,
        state_root=cores[liar].state_root,
        leaf=bytes(32),
        bond=16,
    )
    for move in (opening, replace(opening, unit=1)):
        answer = httpx.post(
            f"{network.url}/v1/aos/disputes", json=sign(key, move).to_json(), timeout=60, trust_env=False
        )
        assert answer.status_code == 200, answer.text
    game = b64u_encode(game_id(opening))
    listed = get(network, "/convictions").json()["convictions"]
    assert [(each["node_id"], each["code"]) for each in listed if each["game"] == game] == [
        (liar, "dispute.contradiction")
    ]
    path = tmp_path / "game.json"
    path.write_bytes(get(network, f"/{game}/transcript", token=True).content)
    judged = referee(path, tmp_path)
    assert judged.returncode == 0, "the challenge failed, by its own author's fault"
    assert "dispute.contradiction" in judged.stdout
    assert query(network, "dispatcher", "SELECT 1 FROM conviction WHERE node_id <> $1", liar) == []
