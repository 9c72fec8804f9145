"""One operator of three lies, on a running network of processes: the requester receives the honest answer, the liar is convicted,
and a fresh process without a model file finds the same from the transcript (docs/spec/13-dispute.md, "In the network").

CI tells two lies; ``AOS_LIES=all`` tells every kind, ``AOS_LIES=seed,head`` some (docs/log.md has the run).
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
from peers.browser import Page, browser
from peers.running_network import kill, query, rows_of, submit, wait_until

from aos.attack import liars
from aos.cli.lying_worker import IN_GAME
from aos.cli.network import found
from aos.core.answer import read_answer
from aos.core.dispute.moves import Answer, Open, read_move
from aos.core.encoding import b64u_encode
from aos.core.hashes import job_ref
from aos.core.receipt import verify_answer
from aos.core.signing import address_of
from aos.core.statements import hash_of, sign
from aos.core.trust import load_policy, read_trust
from aos.local.network import LocalNetwork, RunningNetwork

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MODEL = Path(__file__).parents[2] / "models" / "aos-demo.Q8_0.gguf"
LIAR = "operator-1"
CHOSEN = os.environ.get("AOS_LIES", "weight,token")
ALL = CHOSEN == "all"
LIES = (*liars.KINDS, *IN_GAME) if ALL else tuple(CHOSEN.split(","))
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
    local = LocalNetwork(
        state,
        lies={LIAR: lie},
        settings={"disputes": DISPUTES},
        found=found,
        opml_operators=3,
        tee_operators=0,
        model=MODEL,
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


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path) as page:
        yield page


def test_the_explorer_shows_a_dispute_as_a_ladder_while_it_is_played(
    network: RunningNetwork, lie: Path, tab: Page
) -> None:
    liar = address(network, LIAR)
    lie.write_text("weight")
    tab.open(f"{network.url}/ui/disputes")
    tab.until("document.querySelector('[data-live-state]').textContent === 'live'")
    job = submit(network, PROMPT, params=HONEST, blind=True)
    ref = b64u_encode(job_ref(job.job_id))
    link = f"document.querySelector('a[href=\"/ui/jobs/{ref}\"]')"
    tab.until(f"!!{link}")  # nobody reloads the page
    last_status(network, job.job_id)
    games = get(network, f"?job_ref={ref}").json()["games"]
    proven = next(game for game in games if game["state"] == "proven" and game["claimant"] == liar)
    for scheme, width in (("light", 1280), ("dark", 360)):
        tab.scheme(scheme)
        tab.size(width)
        for path in (
            "/ui/disputes",
            f"/ui/jobs/{ref}",
            f"/ui/operators/{liar}",
            *(f"/ui/disputes/{game['game']}" for game in games),
        ):
            tab.open(network.url + path)
            assert tab.run("document.querySelectorAll('h1').length") == 1, path
            assert tab.run("document.documentElement.scrollWidth") <= width, path
            if not path.startswith("/ui/disputes/"):
                assert proven["game"] in tab.run("document.body.innerHTML"), path
    tab.open(f"{network.url}/ui/disputes/{proven['game']}")
    sides = tab.run("[...document.querySelectorAll('.ladder > li')].map(li => li.classList[0])")
    assert sides == ["challenger" if turn % 2 == 0 else "claimant" for turn in range(proven["moves"])]
    # What an answer marks is what the next move chose; the last move is the one that loses.
    marked = tab.run(
        "[...document.querySelectorAll('.plot.parts')].map(p => [...p.children].findIndex(c => c.matches('.one')) + 1)"
    )
    chosen = tab.run(
        "[...document.querySelectorAll('.ladder .muted')].map(e => /^part (\\d+) /.exec(e.textContent))"
        ".filter(Boolean).map(found => Number(found[1]))"
    )
    assert marked == chosen != []
    assert tab.run("document.querySelector('.ladder > li:last-child').classList.contains('wrong')")
    assert proven["code"] in tab.run("document.querySelector('.wrong .problem').textContent")
    assert httpx.get(f"{network.url}/ui/disputes/{ref}", timeout=30).status_code == 404
    assert tab.errors == []
    assert tab.hosts == {network.url.removeprefix("http://")}


def aos(network: RunningNetwork, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aos.cli.main", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"AOS_STATE_DIR": str(network.trust_path.parent)} | environment,
        check=False,
        timeout=200,
    )


def challenge(
    network: RunningNetwork, answer: bytes, directory: Path, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    path, game = directory / "answer.aos", directory / "game.json"
    path.write_bytes(answer)
    common = ("challenge", str(path), "--model", str(MODEL), "--threads", "1", "--json", "--save", str(game))
    return aos(network, *common, *words, **environment)


def audit(
    network: RunningNetwork, answer: bytes, directory: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """All four layers, so that any lie is drawn."""
    path = directory / "answer.aos"
    path.write_bytes(answer)
    common = ("audit", str(path), "--model", str(MODEL), "--layers", "4", "--threads", "1", "--json")
    return aos(network, *common, "--dispatcher", network.url, *words)


ALONE: dict[tuple[str, bool], bytes] = {}


def seated_alone(network: RunningNetwork, lie: Path, kind: str, liars: bool) -> bytes:
    """The answer of one seat: the liar's, or another's. The same one each time."""
    if (kind, liars) in ALONE:
        return ALONE[kind, liars]
    liar = address(network, LIAR)
    lie.write_text(kind)
    for _ in range(40):  # drawn, or filled by the public rule
        job = submit(network, PROMPT, params=HONEST, min_operators=1)
        last_status(network, job.job_id)
        seated = {row["operator"] for row in rows_of(network, job.job_id)}
        if len(seated) == 1 and (liar in seated) == liars:
            with network.client() as client:
                return ALONE.setdefault((kind, liars), client.answer(job.job_id))
    raise AssertionError("the public rule never seated that operator alone")


def test_a_project_challenges_the_answer_of_a_liar_that_nobody_checked(
    network: RunningNetwork, lie: Path, tmp_path: Path
) -> None:
    liar = address(network, LIAR)
    same = challenge(network, seated_alone(network, lie, "weight", False), tmp_path)
    assert same.returncode == 0, same.stdout + same.stderr
    assert json.loads(same.stdout)["result"]["state"] == "SAME"
    # With a key of its own: no operator's. What it began, it takes up again.
    password = {"AOS_KEYSTORE_PASSWORD": "a password of the test"}
    made = aos(network, "keys", "new", str(tmp_path / "keys"), "--json", **password)
    challenger = json.loads(made.stdout)["result"]["node_id"]
    key = ("--key", str(tmp_path / "keys" / "signer.json"))
    answer = seated_alone(network, lie, "weight", True)
    for _ in range(2):
        won = challenge(network, answer, tmp_path, *key, **password)
        assert won.returncode == 10, won.stdout + won.stderr
        game = json.loads(won.stdout)["result"]["game"]
        assert (game["claimant"], game["challenger"]) == (liar, challenger)
        assert referee(tmp_path / "game.json", tmp_path).returncode == 10
    # Without the project's token that key is nobody's that may know the prompt.
    config = json.loads((network.trust_path.parent / "client.json").read_text())
    alone = {"AOS_STATE_DIR": str(tmp_path), "AOS_URL": config["url"], "AOS_TRUST": str(network.trust_path)}
    refused = challenge(network, answer, tmp_path, *key, **password, **alone)
    assert json.loads(refused.stdout)["error"]["code"] == "dispute.not_entitled", refused.stderr


def test_an_audit_finds_a_lie_and_leads_to_the_conviction(
    network: RunningNetwork, lie: Path, tmp_path: Path
) -> None:
    liar = address(network, LIAR)
    right = audit(network, seated_alone(network, lie, "weight", False), tmp_path)
    assert right.returncode == 0, right.stdout + right.stderr
    found = json.loads(right.stdout)["result"]
    assert (found["verdict"], found["drawn"]) == ("AUDITED", [0, 1, 2, 3])
    facts = httpx.get(f"{network.url}/v1/aos/audits/{found['network']['audit']}", trust_env=False).json()
    assert facts["state"] == "right"
    for kind, check in (("weight", "layer-2"), ("cache", "layer-1")):
        wrong = audit(network, seated_alone(network, lie, kind, True), tmp_path)
        assert wrong.returncode == 10, wrong.stdout + wrong.stderr
        found = json.loads(wrong.stdout)["result"]
        assert [each["id"] for each in found["checks"] if each["status"] == "FAIL"] == [check]
        assert found["network"]["dispute"].startswith("CONVICTED"), found["network"]
        facts = httpx.get(f"{network.url}/v1/aos/audits/{found['network']['audit']}", trust_env=False).json()
        assert (facts["state"], facts["operator"]) == ("different", liar)
        convictions = get(network, "/convictions").json()["convictions"]
        assert liar in {each["node_id"] for each in convictions if each["game"] == found["network"]["game"]}
    withheld = audit(network, seated_alone(network, lie, "withhold", True), tmp_path, "--wait", "4")
    assert withheld.returncode == 12, withheld.stdout + withheld.stderr
    assert "audit.withheld" in withheld.stdout


def test_an_operator_that_moves_twice_is_convicted_even_of_a_right_claim(
    network: RunningNetwork, lie: Path, tmp_path: Path
) -> None:
    liar, stranger = address(network, LIAR), os.urandom(32)
    answer = seated_alone(network, lie, "honest", True)
    core = read_answer(answer).receipt.core
    opening = Open(
        network=core.network,
        challenger=address_of(stranger),
        claimant=core.operator,
        claim=hash_of(core),
        job_ref=core.job_ref,
        attempt=core.attempt,
        kind="unit",
        position=0,
        unit=1,
        state_root=bytes(32),
        leaf=b"\1" * 32,
        bond=1 << 20,
    )
    with network.client() as client:
        name = b64u_encode(hash_of(core))

        def served() -> bool:
            return bool(json.loads(client.disputes(f"/claims/{name}"))["served"])

        wait_until(served)
        game = json.loads(client.disputes(value=sign(stranger, opening).to_json()))["game"]
        wait_until(lambda: json.loads(client.disputes(f"/{game}"))["moves"] == 2)
        moves = json.loads(client.disputes(f"/{game}/transcript"))["moves"]
        honest = read_move(moves[1]["move"]).statement
        assert isinstance(honest, Answer)
        key = bytes.fromhex((network.trust_path.parent / LIAR / "signer.key").read_text().strip())
        second = sign(key, replace(honest, unit_root=bytes(32)))
        client.disputes(f"/{game}/moves", value=second.to_json())
    shown = aos(network, "dispute", "show", game, "--save", str(tmp_path / "game.json"))
    assert shown.returncode == 10, shown.stdout + shown.stderr
    assert f"{liar}" in shown.stdout
    assert "the claimant signed two different moves for turn 1 [dispute.contradiction]" in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("CONVICTED")
    assert referee(tmp_path / "game.json", tmp_path).returncode == 10
    convictions = get(network, "/convictions").json()["convictions"]
    assert [(each["node_id"], each["code"]) for each in convictions if each["game"] == game] == [
        (liar, "dispute.contradiction")
    ]
    # The receipt that was given out proves as much as before: what its operator did later is in no answer file.
    path = tmp_path / "answer.aos"
    path.write_bytes(answer)
    verified = aos(network, "verify", str(path), "--trust", str(network.trust_path))
    assert verified.stdout.splitlines()[-1].startswith("VERIFIED"), verified.stdout


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
