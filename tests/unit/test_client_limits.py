"""What a client takes from a dispatcher that means it ill: answers without end in size or time, and odd events.

The servers are plain sockets that say exactly what a test wants. A server that drips ends by itself, so that a client
without a limit fails the test and does not hang it.
"""

from __future__ import annotations

import gc
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from attest_documents import VECTORS
from typer.testing import CliRunner

from aos.cli import attest as attest_command
from aos.cli.app import app
from aos.client import AsyncClient, Client, JobEvent
from aos.client import sync as sync_client
from aos.client.events import MAX_EVENT_BYTES, read_events
from aos.core.attest.evidence import MAX_EVIDENCE_BYTES
from aos.errors import AOSError, InvalidMessage, Unavailable

Talk = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
POLICY = VECTORS.parents[1] / "aos/attest/policy-nitro.json"
GENUINE = (VECTORS / "nitro/og_2026-02-12_indef.cbor").read_bytes()


@contextmanager
def serving(talk: Talk) -> Iterator[str]:
    """A server whose every connection is ``talk``'s once a request's head is there."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            held = b""
            while b"\r\n\r\n" not in held:
                held += connection.recv(65_536)
            # What came with it is read too: a socket that is closed over unread bytes takes its answer back.
            head, _, body = held.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *([0-9]+)", head)
            while length and len(body) < int(length[1]):
                body += connection.recv(65_536)
            talk(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=one, args=(connection,)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def dripping(head: bytes, piece: bytes) -> Talk:
    """``head``, then ``piece`` every 20 ms for 3 s, at the longest."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(150):
            connection.sendall(piece)
            time.sleep(0.02)

    return talk


def saying(data: bytes) -> Talk:
    return lambda connection: connection.sendall(data)


def flooding(connection: socket.socket) -> None:
    """An answer without a length and without an end."""
    connection.sendall(OK + b"\r\n")
    while True:
        connection.sendall(bytes(1 << 20))


def client_of(url: str, **options: Any) -> Client:
    return Client(url, project="p", token="t", dispatcher=None, **options)


def refused(call: Callable[[], object], cls: type[AOSError], code: str) -> AOSError:
    with pytest.raises(AOSError) as caught:
        call()
    assert (type(caught.value), caught.value.code) == (cls, code)
    return caught.value


DRIPS = {
    "body": dripping(OK + b"content-length: 1000000\r\n\r\n", b" "),
    "headers": dripping(OK, b"x: y\r\n"),
    "status": dripping(b"HTTP/1.1 200 O", b"K"),
    "error's body": dripping(b"HTTP/1.1 503 No\r\ncontent-length: 1000000\r\n\r\n", b" "),
}


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
def test_a_call_ends_in_its_time_whatever_drips(drip: Talk) -> None:
    with serving(drip) as url, client_of(url, timeout_s=0.3) as client:
        error = refused(lambda: client.detail("0" * 64), Unavailable, "client.unreachable")
        assert "within 0.3 s" in error.message


def test_an_answer_without_an_end_is_cut_off_while_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_client, "MAX_ANSWER_BYTES", 3 << 20)
    with serving(flooding) as url, client_of(url) as client:
        refused(lambda: client.detail("0" * 64), InvalidMessage, "client.answer_too_large")
        error = refused(lambda: client.answer("0" * 64), InvalidMessage, "client.answer_too_large")
        assert str(3 << 20) in error.message


async def test_the_asynchronous_client_has_the_same_limits() -> None:
    with serving(flooding) as url:
        async with AsyncClient(client_of(url)) as client:
            with pytest.raises(InvalidMessage) as caught:
                await client.detail("0" * 64)
            assert caught.value.code == "client.answer_too_large"
    with serving(DRIPS["headers"]) as url:
        async with AsyncClient(client_of(url, timeout_s=0.3)) as client:
            with pytest.raises(Unavailable):
                await client.detail("0" * 64)


def test_an_answer_that_was_compressed_unasked_is_not_unpacked() -> None:
    data = gzip.compress(b'{"result": []}')
    head = OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(data)
    with serving(saying(head + data)) as url, client_of(url) as client:
        refused(lambda: client.detail("0" * 64), InvalidMessage, "client.compressed")


@pytest.mark.parametrize("body", [b"", b"[" * 100_000, b"[]", b"\xff", b'{"no": "result"}'])
def test_what_is_no_dispatchers_answer_is_named_as_that(body: bytes) -> None:
    with serving(saying(OK + b"\r\n" + body)) as url, client_of(url) as client:
        refused(lambda: client.detail("0" * 64), InvalidMessage, "client.not_aos")
    head = b"HTTP/1.1 404 No\r\nconnection: close\r\n\r\n"
    with serving(saying(head + body)) as url, client_of(url) as client:
        refused(lambda: client.detail("0" * 64), InvalidMessage, "client.http")


def test_a_closed_client_says_so() -> None:
    client = client_of("http://127.0.0.1:9")
    with client:
        refused(lambda: client.detail("0" * 64), Unavailable, "client.unreachable")
    with pytest.raises(RuntimeError, match="closed"):
        client.detail("0" * 64)


# --- events

EVENTS = OK + b"content-type: text/event-stream\r\n\r\n"


def test_events_are_followed_to_the_end_across_lost_connections() -> None:
    told: list[bytes] = []
    streams = [
        EVENTS + b'id: 1\r\nevent: text\r\ndata: {"n": 1}\r\n\r\nid: 2\nevent: te',
        b"HTTP/1.1 503 No\r\nconnection: close\r\n\r\n{}",
        EVENTS + b': a comment\n\nid: 2\nevent: text\ndata: {"n":\ndata: 2}\n\nevent: done\ndata: {}\n\n',
    ]

    def talk(connection: socket.socket) -> None:
        told.append(streams[len(told)])
        connection.sendall(told[-1])

    with serving(talk) as url, client_of(url) as client:
        found = list(client.events("0" * 64))
    assert found == [
        JobEvent(id="1", kind="text", data={"n": 1}),
        JobEvent(id="2", kind="text", data={"n": 2}),
        JobEvent(id="2", kind="done", data={}),
    ]


def test_a_stream_that_is_left_in_the_middle_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    told = EVENTS + b"id: 1\nevent: text\ndata: {}\n\n" * 100

    def talk(connection: socket.socket) -> None:
        connection.sendall(told)
        connection.recv(1)  # the client goes first

    gc.collect()
    caplog.clear()  # of what other tests left
    for _ in range(20):
        with serving(talk) as url, client_of(url) as client:
            events = client.events("0" * 64)
            next(events)
            del events
    gc.collect()
    assert caplog.text == ""


def test_a_dispatcher_that_ends_every_stream_at_once_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_client, "_RECONNECT_DELAY_S", 0.0)
    monkeypatch.setattr(sync_client, "_MAX_RECONNECTS", 3)
    with serving(saying(EVENTS)) as url, client_of(url) as client:
        refused(lambda: list(client.events("0" * 64)), Unavailable, "client.unreachable")


@pytest.mark.parametrize(
    "data",
    [
        b"data: " + b"x" * (MAX_EVENT_BYTES + 1),
        b"data: x\n" * (MAX_EVENT_BYTES // 7 + 2),
        b"data: [1]\n\n",
        b"data: {\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: \xff\n\n",
    ],
    ids=["a line", "many lines", "a list", "no JSON", "nested", "no UTF-8"],
)
async def test_an_event_that_is_none_is_refused_by_name(data: bytes) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 65_536):
            yield data[at : at + 65_536]

    with pytest.raises(InvalidMessage) as caught:
        async for _ in read_events(parts()):
            pass
    assert caught.value.code == "client.event"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_events_do_not_depend_on_how_the_bytes_come(size: int) -> None:
    stream = b'id: 7\r\nevent: text\r\ndata: {"text": "\xc3\xa9\\n"}\r\n\r\n\n\ndata:{}\n\n'

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(stream), size):
            yield stream[at : at + size]

    assert [event async for event in read_events(parts())] == [
        JobEvent(id="7", kind="text", data={"text": "é\n"}),
        JobEvent(id="7", kind="message", data={}),
    ]


# --- aos attest verify URL


def attest(url: str, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["attest", "verify", url, "--policy", str(POLICY), *more])
    if isinstance(done.exception, AOSError):  # the program's own border turns it into text and this code
        return done.exception.exit_code, done.exception.message
    return done.exit_code, done.output


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
def test_evidence_that_drips_is_missing_after_its_time(drip: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attest_command._TIMEOUT_S == 30.0
    monkeypatch.setattr(attest_command, "_TIMEOUT_S", 0.3)
    with serving(drip) as url:
        code, output = attest(url)
    assert code == 12
    assert "not whole within 0.3 s" in output


def test_evidence_without_an_end_is_cut_off() -> None:
    with serving(flooding) as url:
        code, output = attest(url)
    assert code == 12
    assert str(MAX_EVIDENCE_BYTES) in output
    with serving(saying(OK + b"\r\n" + GENUINE)) as url:
        code, output = attest(url, "--json")
    assert code == 0
    assert json.loads(output)["result"]["verdict"] == "ACCEPTED"


def pages(*cursors: object) -> Talk:
    """One row a page, then a cursor of each, the last one again and again."""
    left = list(cursors)

    def talk(connection: socket.socket) -> None:
        cursor = left.pop(0) if len(left) > 1 else left[0]
        page = json.dumps(
            {"code": 200, "result": [{"job_id": "x"}]} | ({} if cursor is None else {"cursor": cursor})
        )
        connection.sendall(OK + b"content-length: %d\r\n\r\n" % len(page) + page.encode())

    return talk


def test_results_are_read_page_by_page_to_their_end() -> None:
    with serving(pages("30", "12", None)) as url, client_of(url) as client:
        assert len(list(client.results("alice"))) == 3


@pytest.mark.parametrize("cursors", [("30", "30"), ("12", "30"), ("-1",), (7,), ("9" * 40,), ("",)])
def test_pages_that_lead_on_for_ever_are_not_followed(cursors: tuple[object, ...]) -> None:
    with (
        serving(pages(*cursors)) as url,
        client_of(url) as client,
        pytest.raises(InvalidMessage, match=r"lead nowhere"),
    ):
        list(client.results("alice"))
