"""A dispatcher over a real WebSocket, written against docs/spec/06-network.md, that can misbehave.

It plays the dispatcher's side of the link and one further operator (so that draws have two entries), and keeps all
that the operator under test sends. It is no dispatcher: every step is the test's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from peers.worker_peer import MODEL, MODEL_ID
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from aos.core import beacon, draw, hashes, merkle, vrf
from aos.core.clock import VectorClock
from aos.core.codec import encode
from aos.core.encoding import b64u_decode, b64u_encode, canonical_json
from aos.core.envelope import Envelope, LinkHeader, LinkSender, LinkSession, open_envelope, seal
from aos.core.signing import address_of
from aos.core.statements import (
    Commit,
    CommitAck,
    CommitSet,
    CommitSetEntry,
    Connect,
    DrawCall,
    DrawEntry,
    DrawRecord,
    Params,
    Request,
    RequestJob,
    Signed,
    Snapshot,
    SnapshotEntry,
    VrfClaim,
    hash_of,
    sign,
    verify_signed,
)

NETWORK = "aos-local-test"
EPOCH_MS = 3_600_000
BEACON_LENGTH = 64
MAX_RANGE = 1_000_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(kw_only=True)
class Keys:
    """A party's keys, made from a name."""

    signer: bytes
    vrf_seed: bytes

    @staticmethod
    def of(name: str) -> Keys:
        from hashlib import sha256

        return Keys(
            signer=sha256(b"signer" + name.encode()).digest(),
            vrf_seed=sha256(b"vrf" + name.encode()).digest(),
        )

    @property
    def address(self) -> str:
        return address_of(self.signer)

    @property
    def vrf_key(self) -> bytes:
        return vrf.ecvrf_public_key(self.vrf_seed)


@dataclass(kw_only=True)
class Job:
    """One job with its only attempt so far, step by step."""

    job_id: str
    request: str
    nonce: bytes
    attempt: int = 1
    tag_salt: bytes = b"\7" * 32
    call: Signed[DrawCall]
    first_call: Signed[DrawCall] | None = None
    record: Signed[DrawRecord] | None = None
    entries: tuple[DrawEntry, ...] = ()
    chunks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def job_ref(self) -> bytes:
        return hashes.job_ref(self.job_id)

    @property
    def key(self) -> tuple[str, int]:
        return b64u_encode(self.job_ref), self.attempt


@dataclass
class Connection:
    """One established link, from the dispatcher's side."""

    socket: ServerConnection
    sender: LinkSender
    receiver: LinkSession
    connect: Connect


class DispatcherPeer:
    """Listens for one operator. ``key`` signs its frames: another key than the operator expects is an impostor's."""

    def __init__(self, operator: Keys, *, signer: bytes | None = None, port: int = 0) -> None:
        self.keys = Keys.of("dispatcher")
        self.signer = signer or self.keys.signer
        self.other = Keys.of("other operator")
        self.operator = operator
        self.port = port
        self.epoch_ms = EPOCH_MS
        self.genesis = now_ms() - EPOCH_MS // 2
        self.beacon_seed = b"\1" * 32
        self.node = 2
        self.incarnation = 5
        self.count = 0
        self.connects: list[Connect] = []
        self.received: list[tuple[str, Any]] = []
        self.refuse: dict[str, tuple[str, str]] = {}
        self.mute: set[str] = set()
        self.refuse_connect: tuple[str, str] | None = None
        self.challenge: dict[str, Any] = {}
        self.connection: Connection | None = None
        self.closes: list[str] = []
        self.claims: dict[tuple[str, int], Signed[VrfClaim]] = {}
        self.chunks: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self.commits: dict[tuple[str, int], Signed[Commit]] = {}
        self.results: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.forget_chunks = False
        self.model_ids: tuple[bytes, ...] = (MODEL_ID,)
        self.operator_vrf_key = operator.vrf_key
        self.since_epoch = 0
        self.listed = True
        self.snapshot_epoch = 0
        self.chain: dict[str, Any] | None = None
        self._changed = asyncio.Condition()
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._server: Server | None = None

    # --- the network

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def network_file(self) -> dict[str, Any]:
        anchor = beacon.beacon_anchor(self.beacon_seed, BEACON_LENGTH)
        return {
            "type": "aos.network",
            "v": 1,
            "network": NETWORK,
            "dispatcher": self.keys.address,
            "vrf_key": b64u_encode(self.keys.vrf_key),
            "genesis": self.genesis,
            "epoch_ms": self.epoch_ms,
            "beacon": {"anchor": b64u_encode(anchor), "length": BEACON_LENGTH},
            "max_range": MAX_RANGE,
            **({} if self.chain is None else {"chain": self.chain}),
        }

    def entries(self) -> list[SnapshotEntry]:
        def entry(address: str, vrf_key: bytes, node: int, start: int) -> SnapshotEntry:
            return SnapshotEntry(
                node_id=address,
                node=node,
                vrf_key=vrf_key,
                start=start,
                end=start + MAX_RANGE // 2,
                stake=0,
                job_types=("opml", "tee"),
                models=self.model_ids,
                since_epoch=self.since_epoch,
            )

        listed = [
            entry(self.operator.address, self.operator_vrf_key, self.node, 0),
            entry(self.other.address, self.other.vrf_key, self.node + 1, MAX_RANGE // 2),
        ]
        return sorted(listed if self.listed else listed[1:], key=lambda e: e.node_id)

    def snapshot(self) -> Signed[Snapshot]:
        entries = self.entries()
        return sign(
            self.keys.signer,
            Snapshot(
                network=NETWORK,
                dispatcher=self.keys.address,
                epoch=self.snapshot_epoch,
                max_range=MAX_RANGE,
                count=len(entries),
                root=draw.snapshot_root(NETWORK, MAX_RANGE, entries),
                previous=b"",
            ),
        )

    # --- serving

    async def start(self) -> DispatcherPeer:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self.port,
            process_request=self._http,
            max_size=2 << 20,
            compression=None,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def drop(self) -> None:
        """Break the link without a word."""
        if self.connection is not None:
            self.connection.socket.transport.abort()
            self.connection = None

    def _http(self, socket: ServerConnection, request: HttpRequest) -> Response | None:
        path = request.path.partition("?")[0]
        if path == "/ws/operator":
            return None
        if path == "/v1/aos/network":
            body: Any = self.network_file()
        elif path == "/v1/aos/registry":
            body = {"snapshot": self.snapshot().to_json(), "entries": [encode(e) for e in self.entries()]}
        else:
            return socket.respond(HTTPStatus.NOT_FOUND, "no such route\n")
        data = json.dumps(body).encode()
        headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(data))})
        return Response(200, "OK", headers, data)

    async def _serve(self, socket: ServerConnection) -> None:
        try:
            await self._handshake(socket)
            async for text in socket:
                assert isinstance(text, str)
                await self._receive(text)
        except ConnectionClosed:
            pass
        finally:
            self.closes.append(socket.close_reason or "")
            if self.connection is not None and self.connection.socket is socket:
                self.connection = None
            await self._notify()

    async def _handshake(self, socket: ServerConnection) -> None:
        nonce = secrets.token_bytes(32)
        body = {
            "purpose": "operator-link",
            "network": NETWORK,
            "dispatcher": self.keys.address,
            "nonce": b64u_encode(nonce),
            "time": now_ms(),
        } | self.challenge
        await socket.send(seal(self.signer, id="c", method="connect_challenge", params=[body]))
        opening = open_envelope(await socket.recv(), expected_address=self.operator.address)
        assert opening.method == "connect"
        signed = verify_signed(Connect, opening.params[0], address=self.operator.address)
        connect = signed.statement
        assert connect.dispatcher_nonce == nonce
        assert connect.origin == f"http://127.0.0.1:{self.port}"
        self.connects.append(connect)
        if self.refuse_connect is not None:
            code, message = self.refuse_connect
            result: Any = {"error": {"code": code, "message": message}}
            await socket.send(seal(self.signer, id=opening.id, method="connect", params=[], result=result))
            await socket.close()
            return
        session = hashes.session_id(nonce, connect.operator_nonce)
        result = {
            "ok": {
                "session": b64u_encode(session),
                "node": self.node,
                "incarnation": self.incarnation,
                "network": self.network_file(),
                "snapshot": self.snapshot().to_json(),
            }
        }
        await socket.send(seal(self.signer, id=opening.id, method="connect", params=[], result=result))
        self.connection = Connection(
            socket=socket,
            sender=LinkSender(
                network=NETWORK, to=self.operator.address, session=session, incarnation=self.incarnation
            ),
            receiver=LinkSession(
                network=NETWORK,
                own_address=self.keys.address,
                peer_address=self.operator.address,
                session=session,
                incarnation=connect.incarnation,
            ),
            connect=connect,
        )
        await self._notify()

    async def _receive(self, text: str) -> None:
        connection = self.connection
        assert connection is not None
        envelope = open_envelope(text, expected_address=self.operator.address)
        header = LinkHeader.decode(envelope.params[-1])
        connection.receiver = connection.receiver.accept(envelope, header, now_ms=now_ms())
        if envelope.result is not None:
            future = self._answers.pop(envelope.id, None)
            if future is not None and not future.done():
                future.set_result(envelope.result)
            return
        self.received.append((envelope.method, envelope.params[0]))
        await self._notify()
        await self._answer(envelope)

    async def _answer(self, envelope: Envelope) -> None:
        if envelope.method in self.mute:
            return
        if envelope.method in self.refuse:
            code, message = self.refuse[envelope.method]
            result: Any = {"error": {"code": code, "message": message}}
        else:
            result = {"ok": self._take(envelope.method, envelope.params[0])}
        await self._send(envelope.id, envelope.method, [], result)
        await self._notify()

    def _take(self, method: str, body: Any) -> dict[str, Any]:
        if method == "vrf_claim":
            claim = verify_signed(VrfClaim, body["claim"], address=self.operator.address)
            key = (b64u_encode(claim.statement.job_ref), claim.statement.attempt)
            assert self.claims.setdefault(key, claim) == claim, "a second, different claim"
            return {}
        if method == "stream_chunk":
            statement = body["chunk"]["statement"]
            held = self.chunks.setdefault((statement["job_ref"], statement["attempt"]), [])
            if self.forget_chunks:
                self.forget_chunks = False
                held.clear()
            if statement["index"] == len(held):
                held.append(body["chunk"])
            elif statement["index"] < len(held):
                assert held[statement["index"]] == body["chunk"], "a second, different chunk"
            return {"next": len(held)}
        if method == "job_commit":
            commit = verify_signed(Commit, body["commit"], address=self.operator.address)
            key = (b64u_encode(commit.statement.job_ref), commit.statement.attempt)
            assert self.commits.setdefault(key, commit) == commit, "a second, different commit"
            return {"ack": self.commit_ack(commit).to_json()}
        if method == "job_result":
            if body not in self.results:
                self.results.append(body)
            return {"receipt": b64u_encode(b"\0" * 32)}
        if method == "job_failed":
            self.failures.append(body)
        return {}

    def commit_ack(self, commit: Signed[Commit]) -> Signed[CommitAck]:
        return sign(
            self.keys.signer,
            CommitAck(
                network=NETWORK,
                dispatcher=self.keys.address,
                job_ref=commit.statement.job_ref,
                attempt=commit.statement.attempt,
                node_id=self.operator.address,
                commit=commit.hash,
            ),
        )

    # --- sending

    def tick(self) -> dict[str, str]:
        self.count += 1
        return {"1": str(self.count)}

    def frame(
        self, request_id: str, method: str, params: list[Any], result: Any, **changes: Any
    ) -> tuple[str, LinkSender]:
        """The next frame, with header members changed; nothing is sent."""
        connection = self.connection
        assert connection is not None
        header = connection.sender.header(clock=VectorClock.decode(self.tick()), time_ms=now_ms())
        header = replace(header, **changes)
        text = seal(
            self.signer, id=request_id, method=method, params=[*params, header.to_json()], result=result
        )
        return text, connection.sender.sent(text)

    async def _send(self, request_id: str, method: str, params: list[Any], result: Any) -> str:
        connection = self.connection
        assert connection is not None
        text, connection.sender = self.frame(request_id, method, params, result)
        with contextlib.suppress(ConnectionClosed):
            await connection.socket.send(text)
        return text

    async def send_text(self, text: str) -> None:
        assert self.connection is not None
        await self.connection.socket.send(text)

    async def request(self, method: str, body: Any, *, timeout_s: float = 20) -> Any:
        """Send a request and return its whole ``result``."""
        request_id = secrets.token_hex(8)
        future = self._answers[request_id] = asyncio.get_running_loop().create_future()
        await self._send(request_id, method, [body], None)
        async with asyncio.timeout(timeout_s):
            return await future

    async def push(self, method: str, body: Any) -> None:
        """Send a request and wait for nothing."""
        if self.connection is not None:
            await self._send(secrets.token_hex(8), method, [body], None)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[], Any], *, timeout_s: float = 30) -> Any:
        """Wait until ``condition`` holds; its value."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(condition)
        return condition()

    async def connected(self, *, times: int = 1) -> None:
        await self.until(lambda: self.connection is not None and len(self.connects) >= times)

    # --- jobs

    def request_bytes(self, **changes: Any) -> str:
        params = Params(
            temperature=1_000_000,
            top_p=500_000,
            top_k=0,
            min_p=0,
            repeat_penalty=1_000_000,
            max_tokens=64,
            stop=(),
            seed=changes.pop("seed", None),
        )
        job = RequestJob(
            tag=changes.pop("job_type", "opml"),
            prompt=changes.pop("prompt", "What is AI?"),
            model=MODEL,
            model_id=changes.pop("model_id", MODEL_ID),
            params=params,
        )
        members: dict[str, Any] = {
            "network": NETWORK,
            "dispatcher": self.keys.address,
            "project": "p",
            "user": "u",
            "job": job,
            "min_operators": 2,
            "blind": False,
            "nonce_source": "dispatcher",
            "issued_at": now_ms(),
        }
        return canonical_json(encode(Request(**(members | changes)))).decode()

    def new_job(self, *, request: str | None = None, **call: Any) -> Job:
        """A job with its draw call; nothing is sent."""
        job_id = secrets.token_hex(32)
        request = self.request_bytes() if request is None else request
        call.setdefault("model_id", b64u_decode(json.loads(request)["job"]["model_id"]))
        return Job(
            job_id=job_id,
            request=request,
            nonce=secrets.token_bytes(32),
            call=self.draw_call(hashes.job_ref(job_id), **call),
        )

    def draw_call(self, job_ref: bytes, *, attempt: int = 1, **changes: Any) -> Signed[DrawCall]:
        epoch = changes.get("epoch", beacon.epoch_of(now_ms(), self.genesis, self.epoch_ms))
        root = self.snapshot().statement.root
        value = beacon.beacon_at(self.beacon_seed, BEACON_LENGTH, epoch)
        seed, proof = draw.make_draw_seed(
            self.keys.vrf_seed,
            network=NETWORK,
            job_ref=job_ref,
            attempt=attempt,
            beacon=changes.get("beacon", value),
            snapshot_root=root,
        )
        members: dict[str, Any] = {
            "network": NETWORK,
            "dispatcher": self.keys.address,
            "job_ref": job_ref,
            "attempt": attempt,
            "epoch": epoch,
            "snapshot_root": root,
            "beacon": value,
            "beacon_source": "dispatcher",
            "draw_seed": seed,
            "draw_proof": proof,
            "job_type": "opml",
            "model_id": MODEL_ID,
            "tag_commitment": hashes.tag_commitment(b"\7" * 32, "", ""),
            "deadline": now_ms() + 30_000,
            "clock": self.tick(),
        }
        return sign(self.keys.signer, DrawCall(**(members | changes)))

    async def call(self, job: Job) -> Any:
        return await self.request("draw_call", {"draw_call": job.call.to_json()})

    async def draw(self, job: Job) -> Signed[VrfClaim]:
        """Send the draw call; the operator's claim."""
        assert await self.call(job) == {"ok": {}}
        claim: Signed[VrfClaim] = await self.until(lambda: self.claims.get(job.key))
        return claim

    def make_record(self, job: Job, *, executor: bool = True, **changes: Any) -> Signed[DrawRecord]:
        """The record of a finished draw; attempts at the tag's salt until the operator has the seat asked for."""
        entries = self.entries()
        other = sign(
            self.other.signer,
            draw.make_claim(job.call, node_id=self.other.address, vrf_seed=self.other.vrf_seed),
        )
        claims = {}
        for entry in entries:
            claim = self.claims[job.key] if entry.node_id == self.operator.address else other
            claims[entry.node_id] = draw.verify_claim(claim, call=job.call, operator=entry)
        record, job.entries = draw.build_draw_record(
            call=job.call,
            max_range=MAX_RANGE,
            operators=entries,
            claims=claims,
            opened=draw.OpenedTag(salt=job.tag_salt, tag="", position=""),
            min_operators=2,
            clock=self.tick(),
        )
        # Which of two seats the operator takes is chance; the tests need both, and the order is no matter of theirs.
        first = (self.operator.address, self.other.address)
        record = replace(record, seats=first if executor else first[::-1])
        return sign(self.keys.signer, replace(record, **changes))

    def dispatch_body(self, job: Job, *, executor: bool = True, **changes: Any) -> dict[str, Any]:
        if job.record is None:
            job.record = self.make_record(job, executor=executor)
        seat = job.record.statement.seats.index(self.operator.address)
        body = {
            "job_id": job.job_id,
            "clock": self.tick(),
            "attempt": job.attempt,
            "role": "executor" if seat == 0 else "checker",
            "seat": seat,
            "request": job.request,
            "nonce": b64u_encode(job.nonce),
            "draw_call": job.call.to_json(),
            "draw_record": job.record.to_json(),
            "first_draw": None if job.first_call is None else job.first_call.to_json(),
            "stream": None
            if seat == 0
            else {"tokens": [1, 2, 3], "head": b64u_encode(b"\5" * 32), "finish_reason": "stop"},
            "deadline": now_ms() + 60_000,
        }
        return body | changes

    async def dispatch(self, job: Job, **changes: Any) -> Any:
        return await self.request("dispatch_job", self.dispatch_body(job, **changes))

    async def seated(self, *, executor: bool = True, request: str | None = None) -> Job:
        """Draw and dispatch a job to the operator."""
        job = self.new_job(request=request)
        await self.draw(job)
        assert await self.dispatch(job, executor=executor) == {"ok": {}}
        return job

    def commit_set(self, job: Job, **changes: Any) -> Signed[CommitSet]:
        assert job.record is not None
        own = self.commits.get(job.key)
        commits = [(self.other.address, b"\4" * 32)]
        if own is not None:
            commits.append((self.operator.address, own.hash))
        members: dict[str, Any] = {
            "network": NETWORK,
            "dispatcher": self.keys.address,
            "job_ref": job.job_ref,
            "attempt": job.attempt,
            "draw_record": job.record.hash,
            "commits": tuple(CommitSetEntry(node_id=n, commit=c) for n, c in sorted(commits)),
            "missing": (),
            "clock": self.tick(),
        }
        return sign(self.keys.signer, CommitSet(**(members | changes)))

    def commit_set_body(self, job: Job, signed: Signed[CommitSet], **changes: Any) -> dict[str, Any]:
        index = next(i for i, e in enumerate(job.entries) if e.node_id == self.operator.address)
        leaves = [draw.entry_leaf(e) for e in job.entries]
        body = {
            "commit_set": signed.to_json(),
            "entry": encode(job.entries[index]),
            "entry_index": index,
            "entry_path": [b64u_encode(h) for h in merkle.inclusion_path(leaves, index)],
        }
        return body | changes

    async def commit(self, job: Job) -> Signed[Commit]:
        """Wait for the operator's commit."""
        found: Signed[Commit] = await self.until(lambda: self.commits.get(job.key))
        return found

    async def reveal(self, job: Job) -> dict[str, Any]:
        """Send the commit set; the operator's result."""
        body = self.commit_set_body(job, self.commit_set(job))
        assert await self.request("commit_set", body) == {"ok": {}}
        return await self.result(job)

    async def result(self, job: Job) -> dict[str, Any]:
        ref = job.key[0]

        def found() -> dict[str, Any] | None:
            return next(
                (
                    r
                    for r in self.results
                    if (r["receipt"]["job_ref"], r["receipt"]["attempt"]) == (ref, job.attempt)
                ),
                None,
            )

        value: dict[str, Any] = await self.until(found)
        return value


def decoded(text: str) -> bytes:
    return b64u_decode(text)


__all__ = ["NETWORK", "DispatcherPeer", "Job", "Keys", "decoded", "hash_of", "now_ms"]
