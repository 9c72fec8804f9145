"""An operator's jobs, from the draw call to the acknowledged receipt, with real PostgreSQL, Redis, WebSocket and HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aos.core import hashes, vrf
from aos.core.codec import decode, encode
from aos.core.draw import claim_alpha_of
from aos.core.encoding import b64u_decode
from aos.core.statements import Chunk, DrawCall, ReceiptCore, hash_of, verify_signed
from aos.core.signing import verify_statement
from peers.dispatcher_peer import DispatcherPeer
from peers.operator_under_test import OPERATOR, eventually, rest, running, settings, write_config
from peers.worker_peer import WorkerPeer


@pytest.fixture
async def worker() -> AsyncIterator[WorkerPeer]:
    peer = await WorkerPeer().start()
    yield peer
    await peer.stop()


@pytest.fixture
async def dispatcher() -> AsyncIterator[DispatcherPeer]:
    peer = await DispatcherPeer(OPERATOR).start()
    yield peer
    await peer.stop()


@pytest.fixture
def content(
    pg_url: str, redis_url: str, dispatcher: DispatcherPeer, worker: WorkerPeer
) -> dict[str, Any]:
    return settings(pg_url, redis_url, dispatcher, [worker])


@pytest.fixture
async def operator(
    tmp_path: Path, content: dict[str, Any], dispatcher: DispatcherPeer
) -> AsyncIterator[None]:
    async with running(write_config(tmp_path, content)):
        await dispatcher.connected()
        await eventually(lambda: _ready(content))
        yield


async def _ready(content: dict[str, Any]) -> bool:
    return (await rest(content, "GET", "/ready")).status_code == 200


@pytest.mark.usefixtures("operator")
async def test_executor_streams_commits_and_reveals(dispatcher: DispatcherPeer, worker: WorkerPeer) -> None:
    job = dispatcher.new_job()
    claim = await dispatcher.draw(job)
    beta = vrf.ecvrf_verify(OPERATOR.vrf_key, claim.statement.pi, claim_alpha_of(job.call.statement))
    assert await dispatcher.dispatch(job) == {"ok": {}}
    commit = await dispatcher.commit(job)
    seed = hashes.sampling_seed_from_draw(job.call.statement.draw_seed)
    tokens, words = worker.answer_of(job.request, seed)
    statements = [
        verify_signed(Chunk, chunk, address=OPERATOR.address).statement for chunk in dispatcher.chunks[job.key]
    ]
    assert [token for chunk in statements for token in chunk.tokens] == tokens
    assert "".join(chunk.text for chunk in statements) == "".join(words)
    assert [len(chunk.tokens) for chunk in statements] == [8, 8, 4]
    assert [chunk.final for chunk in statements] == [False, False, True]
    assert [chunk.previous for chunk in statements] == [b"", *(hash_of(chunk) for chunk in statements[:-1])]
    assert dispatcher.results == [], "nothing is revealed before the commit set"
    assert job.record is not None
    assert commit.statement.draw_record == job.record.hash
    result = await dispatcher.reveal(job)
    core = decode(ReceiptCore, result["receipt"])
    verify_statement(encode(core), result["signature"], OPERATOR.address)
    assert core.vrf.beta == beta
    assert core.stream_head == hash_of(statements[-1])
    assert core.sampling_seed == seed
    assert core.request_hash == hashes.request_hash(job.nonce, job.request.encode())
    assert core.response_hash == hashes.response_hash(job.nonce, result["text"])
    assert hashes.commitment(
        job_ref=job.job_ref,
        attempt=1,
        node_id=OPERATOR.address,
        draw_record=job.record.hash,
        result=core.state_root,
        tokens_hash=hashes.tokens_hash(job.nonce, result["tokens"]),
        salt=b64u_decode(result["commit_salt"]),
    ) == commit.statement.commitment
    assert int(core.clock["2"]) > int(commit.statement.clock["2"])
    assert decode(DrawCall, encode(job.call.statement)) == job.call.statement
