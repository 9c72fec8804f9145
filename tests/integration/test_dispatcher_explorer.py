"""The explorer's pages (docs/explorer.md), asked of a real dispatcher on a real PostgreSQL. In a browser: tests/e2e."""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import asyncpg
import httpx
import pytest
import yaml
from peers.dispatcher_process import DispatcherProcess, Founded, found
from peers.hub_peer import MODEL
from peers.running_network import wait_until

from aos.adapters.embedded.postgres import EmbeddedPostgres
from aos.adapters.postgres import connect_pool
from aos.adapters.processes import free_port
from aos.core import merkle
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.hashes import job_ref
from aos.core.log.checkpoint import verify_checkpoint
from aos.core.log.leaf import Kind, entry_of
from aos.core.log.note import COSIGNATURE, cosign_note, note_key, read_note, read_vkey
from aos.core.receipt import CHECKS
from aos.dispatcher.setup import new_project, new_token
from aos.dispatcher.ui import store
from aos.errors import Unavailable

PAGES = ("", "/jobs", "/operators", "/models", "/disputes", "/attestations", "/log", "/playground")
HOSTILE = "<img src=x onerror=alert(1)>\"'{{7*7}}</script><script>alert(2)</script>"


@pytest.fixture(scope="module")
def founded(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Founded]:
    name = "test_dispatcher_explorer"
    yield found(tmp_path_factory.mktemp("explorer"), postgres.create_database(name))
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def dispatcher(founded: Founded) -> Iterator[DispatcherProcess]:
    process = founded.process()
    try:
        yield process.start()
    finally:
        process.stop()


@pytest.fixture(scope="module")
def http(dispatcher: DispatcherProcess) -> Iterator[httpx.Client]:
    with dispatcher.client() as client:
        yield client


def query(founded: Founded, sql: str, *values: Any) -> list[asyncpg.Record]:
    async def run() -> list[asyncpg.Record]:
        db = await asyncpg.connect(founded.pg_url)
        try:
            return list(await db.fetch(sql, *values))
        finally:
            await db.close()

    return asyncio.run(run())


def ref(job_id: str) -> str:
    return b64u_encode(job_ref(job_id))


def job_page(job_id: str) -> str:
    return f"/ui/jobs/{ref(job_id)}"


def all_pages(founded: Founded) -> list[str]:
    jobs = [job_page(job_id) for job_id in (founded.finished, founded.flagged, founded.private)]
    operators = [f"/ui/operators/{peer.node_id}" for peer in founded.operators]
    return [f"/ui{path}" for path in PAGES] + jobs + operators


class Elements(HTMLParser):
    """Every start tag of a page, and what it says: texts and the values of attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self.words: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.words += [value for _, value in attrs if value]
        self._within = tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._within in ("script", "style") and data.strip():
            self.inline.append(data)


def test_every_page_keeps_the_policy_that_it_sends(http: httpx.Client, founded: Founded) -> None:
    for path in [*all_pages(founded), "/ui/nowhere", "/ui/jobs/x"]:
        answer = http.get(path)
        assert answer.headers["content-type"] == "text/html; charset=utf-8", path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers
        page = Elements(answer.text)
        assert page.inline == []
        for tag, attributes in page.tags:
            assert not any(name == "style" or name.startswith("on") for name in attributes), (path, tag)
            for name in ("src", "href", "action"):
                assert (attributes.get(name) or "/").startswith(("/", "#")), (path, attributes)
                assert not (attributes.get(name) or "").startswith("//")


def test_the_verifier_is_served_as_the_file_that_it_is_and_linked_everywhere(http: httpx.Client) -> None:
    answer = http.get("/ui/verify")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == (resources.files("aos.dispatcher.ui") / "verify.html").read_bytes()
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.endswith("frame-ancestors 'none'")
    assert 'href="/ui/verify"' in http.get("/ui").text


def test_no_public_page_tells_a_job_id_a_prompt_an_answer_a_user_or_a_secret(
    http: httpx.Client, founded: Founded
) -> None:
    jobs = query(founded, "SELECT job_id, request, nonce, user_id, project_id FROM job")
    answers = query(founded, "SELECT answer FROM receipt")
    secrets = {founded.token}
    for job in jobs:
        secrets |= {
            job["job_id"],
            job["user_id"],
            job["project_id"],
            b64u_encode(job["nonce"]),
            job["nonce"].hex(),
        }
        secrets.add(json.loads(job["request"])["job"]["prompt"])
    secrets |= {bytes(row["answer"]).decode().strip() for row in answers}
    for leaf in query(founded, "SELECT salt, subject FROM log_leaf WHERE kind <= 5"):
        secrets |= {leaf["salt"].hex(), b64u_encode(leaf["salt"]), leaf["subject"]}
    secrets -= {"What is AI?"}  # the pages' own example
    for path in [*all_pages(founded), "/ui/log?before=20"]:
        said = " ".join(Elements(http.get(path).text).words)
        assert [secret for secret in secrets if len(secret) > 3 and secret in said] == [], path
        if path.startswith(("/ui/jobs/", "/ui/operators/")):
            assert "What is AI?" not in said, path


@pytest.mark.parametrize("kind", ["finished", "flagged", "private"])
def test_a_job_page_shows_the_checks_in_order_and_both_receipts(
    http: httpx.Client, founded: Founded, kind: str
) -> None:
    answer = http.get(job_page(getattr(founded, kind)))
    assert answer.status_code == 200
    shown = re.findall(r'class="check (\w+)">\w+</span></td><td class="mono">([\w-]+)<', answer.text)
    assert [name for _, name in shown] == [name for name, _ in CHECKS]
    assert dict((name, status) for status, name in shown)["receipt-1"] == "PASS"
    assert "redundant:2" in answer.text
    assert all(peer.node_id in answer.text for peer in founded.operators)
    assert "Run by this dispatcher with its own keys as trust" in answer.text


def test_the_operators_page_shows_exact_integers(http: httpx.Client, founded: Founded) -> None:
    text = http.get("/ui/operators").text
    (network,) = query(founded, "SELECT max_range, range_width FROM network")
    for peer in founded.operators:
        assert f'title="{peer.node_id}"' in text
    assert f">{network['range_width']}</td>" in text
    expected = re.findall(r'title="(\d+) / (\d+)"', text)
    draws = query(
        founded,
        "SELECT r.tag, r.position FROM attempt a JOIN run r USING (run_id) WHERE commit_set IS NOT NULL",
    )
    width, whole = network["range_width"], network["max_range"]
    wide = {"suspicion": width + min(2 * (whole * 3 // 100), width), "": width}
    assert expected == [(str(sum(wide[row["tag"]] for row in draws)), str(whole))] * 2


def test_prompt_and_answer_need_the_projects_token_with_the_scope_read(
    http: httpx.Client, founded: Founded
) -> None:
    path = f"{job_page(founded.private)}/content"
    other = asyncio.run(new_project(founded.config_path, "other"))
    submits = asyncio.run(new_token(founded.config_path, founded.project, scopes=["submit"]))
    cases = [
        ({}, 401, "token.invalid"),
        ({"Authorization": "Bearer nonsense"}, 401, "token.invalid"),
        ({"Authorization": founded.token}, 401, "token.invalid"),
        ({"Cookie": f"token={founded.token}"}, 401, "token.invalid"),
        ({"Authorization": f"Bearer {other.token}"}, 401, "token.invalid"),
        ({"Authorization": f"Bearer {submits}"}, 403, "token.scope"),
    ]
    for headers, status, code in cases:
        answer = http.get(path, headers=headers)
        assert (answer.status_code, answer.json()["title"]) == (status, code), headers
        assert "What is AI?" not in answer.text
    assert http.get(path, params={"token": founded.token}).status_code == 401
    answer = http.get(path, headers={"Authorization": f"Bearer {founded.token}"})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["prompt"] == "What is AI?"
    assert body["user"] == "hidden"
    assert body["answer"]


def test_hostile_names_are_text(http: httpx.Client, founded: Founded) -> None:
    job_id = http.post("/api/job/submit", json=founded.body()).json()["result"]
    query(founded, "UPDATE job SET model = $2 WHERE job_id = $1", job_id, HOSTILE)
    query(founded, "UPDATE run SET error_code = $2 WHERE job_id = $1", job_id, HOSTILE)
    query(founded, "INSERT INTO model (name, model_id) VALUES ($1, $2)", HOSTILE, b"\7" * 32)
    try:
        wait_until(lambda: "&lt;img src=x" in http.get("/ui/models").text)  # offers are kept for two seconds
        for path in ("/ui/jobs", job_page(job_id), "/ui/models", "/ui/playground"):
            text = http.get(path).text
            assert "&lt;img src=x" in text, path
            page = Elements(text)
            assert page.inline == []
            assert all(attributes.get("src") != "x" for _, attributes in page.tags), path
            assert "49&" not in text
    finally:
        query(founded, "DELETE FROM model WHERE name = $1", HOSTILE)
        query(founded, "UPDATE job SET model = $2 WHERE job_id = $1", job_id, MODEL)
        http.post("/api/job/cancel", json={"job_id": job_id, "verify": founded.token})


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/ui/jobs?status=nonsense", 400, "field.range"),
        ("/ui/jobs?type=%3Cscript%3E", 400, "field.range"),
        ("/ui/jobs?before=-1", 400, "field.range"),
        ("/ui/jobs?before=99999999999999999999", 400, "field.range"),
        ("/ui/jobs?before=%D9%A1", 400, "field.range"),
        ("/ui/jobs/x", 404, "job.unknown"),
        (f"/ui/jobs/{'A' * 43}", 404, "job.unknown"),
        (f"/ui/operators/{'<script>' * 4}", 404, "operator.unknown"),
        ("/ui/log?before=-1", 400, "field.range"),
        ("/ui/log?before=x", 400, "field.range"),
        ("/ui/log/1", 404, "http.not_found"),
    ],
)
def test_what_is_not_there_is_a_page_that_says_so(
    http: httpx.Client, path: str, status: int, code: str
) -> None:
    answer = http.get(path)
    assert answer.status_code == status
    assert f"<code>{code}</code>" in answer.text
    assert "<script>" not in answer.text


def test_a_job_id_opens_no_page(http: httpx.Client, founded: Founded) -> None:
    assert http.get(f"/ui/jobs/{founded.finished}").status_code == 404


@pytest.mark.parametrize("name", ["nope.css", "..%2Froutes.py", "%2e%2e/pages.py", "style.css%00"])
def test_only_the_explorers_own_files_are_served(http: httpx.Client, name: str) -> None:
    assert http.get(f"/ui/static/{name}").status_code == 404


def test_pages_of_jobs_hold_each_job_once(http: httpx.Client, founded: Founded) -> None:
    made = [http.post("/api/job/submit", json=founded.body()).json()["result"] for _ in range(store.PAGE + 3)]
    for job_id in made:
        http.post("/api/job/cancel", json={"job_id": job_id, "verify": founded.token})
    path: str | None = "/ui/jobs?status=cancelled&type=opml"
    seen: list[str] = []
    while path is not None:
        text = http.get(path).text
        refs = re.findall(r'data-name="Job"><a class="mono" href="/ui/jobs/([\w-]{43})"', text)
        assert 0 < len(refs) <= store.PAGE
        seen += refs
        older = re.search(r'href="(/ui/jobs\?[^"]*before=\d+)">Older', text)
        path = older[1].replace("&amp;", "&") if older else None
    assert len(seen) == len(set(seen))
    assert {ref(job_id) for job_id in made} <= set(seen)
    finished = http.get("/ui/jobs?status=verified").text
    assert ref(founded.finished) in finished
    assert ref(made[0]) not in finished


def test_a_follower_is_told_that_something_changed(http: httpx.Client, founded: Founded) -> None:
    with http.stream("GET", "/ui/events") as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("event:")) == "event: open"
        job_id = http.post("/api/job/submit", json=founded.body()).json()["result"]
        assert next(line for line in lines if line.startswith("event:")) == "event: changed"
    with http.stream("GET", f"/ui/events?of={ref(job_id)}") as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("event:")) == "event: open"
        http.post("/api/job/cancel", json={"job_id": job_id, "verify": founded.token})
        assert next(line for line in lines if line.startswith("event:")) == "event: changed"
    assert http.get("/ui/events?of=nonsense").json()["title"] == "job.unknown"


ROW = re.compile(
    r'<tr id="leaf-(?P<index>\d+)">\s*<td data-name="Leaf">(?P=index)</td>\s*<td>(?P<kind>[\w ]+)</td>'
    r'.*?data-copy="(?P<digest>[\w-]{43})".*?data-copy="(?P<leaf>[\w-]{43})".*?href="(?P<proof>/v1/[^"]+)"',
    re.DOTALL,
)


def test_the_log_page_shows_the_signed_note_and_every_public_entry_once(http: httpx.Client) -> None:
    text = http.get("/ui/log").text
    key = read_vkey(http.get("/v1/aos/network").json()["log_key"])
    assert f'data-copy="{key}"' in text
    shown = re.search(r"<pre[^>]*>(.*?)</pre>", text, re.DOTALL)
    assert shown is not None
    checkpoint = verify_checkpoint(html.unescape(shown[1]), key)
    copied = re.search(r'data-copy="([^"]*)">Copy the note', text)
    assert copied is not None
    assert html.unescape(copied[1]) == html.unescape(shown[1])
    size = checkpoint.head.size
    public = http.get("/v1/aos/log/entries", params={"limit": 1000}).json()["entries"]
    seen: list[tuple[int, str, str]] = []
    path: str | None = "/ui/log"
    proven = 0
    while path is not None:
        text = http.get(path).text
        rows = list(ROW.finditer(text))
        assert len(rows) == len(re.findall(r'<tr id="leaf-', text)) <= store.PAGE
        for row in rows:
            kind: Kind = row["kind"].replace(" ", "_")  # type: ignore[assignment]
            leaf = merkle.leaf_hash(entry_of(kind, b64u_decode(row["digest"])))
            assert b64u_encode(leaf) == row["leaf"]
            seen.append((int(row["index"]), kind, row["digest"]))
        proof = http.get(html.unescape(rows[-1]["proof"])).json()
        path_ = [b64u_decode(item) for item in proof["path"]]
        merkle.verify_inclusion(
            leaf, int(rows[-1]["index"]), proof["size"], path_, b64u_decode(proof["root"])
        )
        proven += 1
        older = re.search(r'href="(/ui/log\?before=\d+)">Older', text)
        path = older[1] if older else None
    assert proven > 1
    assert [index for index, _, _ in seen] == list(range(len(seen) - 1, -1, -1))
    assert len(seen) >= size
    assert {entry for entry in seen if entry[0] < size} == {
        (entry["index"], entry["kind"], entry["digest"]) for entry in public if entry["index"] < size
    }
    assert "No leaf here" in http.get("/ui/log?before=0").text


def test_a_job_page_leads_to_the_leaf_that_log_1_names_and_to_no_other(
    http: httpx.Client, founded: Founded
) -> None:
    text = http.get(job_page(founded.finished)).text
    named = re.search(r"leaf (\d+) of \d+ in the dispatcher", text)
    assert named is not None
    assert re.findall(r'href="(/ui/log\?[^"]+)"', text) == [
        f"/ui/log?before={int(named[1]) + 1}#leaf-{named[1]}"
    ]
    first = next(ROW.finditer(http.get(f"/ui/log?before={int(named[1]) + 1}").text))
    assert (first["index"], first["kind"]) == (named[1], "receipt")


def test_a_cosignature_is_told_and_shown_with_the_witnesss_name(http: httpx.Client, founded: Founded) -> None:
    seed, name = b"\7" * 32, "witness.example/<one>"
    key = note_key(name, seed, COSIGNATURE)
    with http.stream("GET", "/ui/events?log=1") as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("event:")) == "event: open"
        note = read_note(http.get("/v1/aos/log/checkpoint").text)
        # A witness may say any time that a cosignature can carry; the page must outlive it.
        line = str(cosign_note(note.text, name, seed, 2**62))
        size = int(note.text.split("\n")[1])
        query(founded, "INSERT INTO log_cosignature VALUES ($1, $2, $3)", size, str(key), line)
        assert next(line for line in lines if line.startswith("event:")) == "event: changed"
    text = http.get("/ui/log").text
    assert ">witness.example/&lt;one&gt;</button>" in text
    assert ">cosigned this tree</span>" in text
    assert html.escape(line.strip()) in text


def test_a_network_without_a_log_says_so(founded: Founded) -> None:
    port = free_port()
    values = yaml.safe_load(founded.config_path.read_text()) | {"listen": f"127.0.0.1:{port}"}
    del values["log_key"]
    path = founded.directory / "without-log.yaml"
    path.write_text(yaml.safe_dump(values))
    process = DispatcherProcess(path, port).start()
    try:
        with process.client() as http:
            answer = http.get("/ui/log")
            assert answer.status_code == 200
            assert "This network keeps no log" in answer.text
            assert "/ui/log?" not in http.get(job_page(founded.finished)).text
    finally:
        process.stop()


async def test_a_page_reads_only_and_not_for_long(founded: Founded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "STATEMENT_MS", 100)
    pool = await connect_pool(founded.pg_url, max_size=1)
    try:
        async with store.reading(pool) as db:
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await db.execute("DELETE FROM flag")
        with pytest.raises(Unavailable) as slow:
            async with store.reading(pool) as db:
                await db.fetch("SELECT pg_sleep(5)")
        assert slow.value.code == "explorer.slow"
    finally:
        await pool.close()
