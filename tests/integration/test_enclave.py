"""The SIMULATED enclave's process against a hostile host: whatever comes over its socket, it answers by rule and stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pytest

from aos.adapters.enclave_image import engine_digest, simulated_pcrs
from aos.adapters.frames import FrameStream
from aos.adapters.processes import Process
from aos.adapters.simulated_nsm import create_simulated_platform
from aos.core.attest.result import Claims, simulated_anchor
from aos.core.codec import encode
from aos.core.encoding import b64u_encode, canonical_json
from aos.core.statements import Params, Request, RequestJob, hash_of
from aos.core.tee import (
    References,
    TeeAnswer,
    TeeBootEvidence,
    read_evidence,
    verify_answer_document,
    verify_boot,
    verify_evidence,
)
from aos.errors import ConfigError, Unavailable, VerificationError
from aos.workers.enclave.messages import (
    MAX_FRAME_BYTES,
    Answered,
    Ask,
    Attest,
    Attested,
    Boot,
    Booted,
    Cancel,
    Failed,
    FromEnclave,
    FromHost,
    Load,
    Loaded,
    Shutdown,
    State,
    Status,
    Token,
    pack,
    read_from_enclave,
)

MODEL = Path(__file__).parents[2] / "models" / "aos-demo.Q8_0.gguf"
NETWORK = "aos-test"
OPERATOR = "0x" + "11" * 20
NONCE = sha256(b"nonce").digest()
VRF_KEY = sha256(b"draw key").digest()
POLICY = sha256(b"policy").digest()
PATIENCE_S = 120.0
M = TypeVar("M")


class Host:
    """A host that may send anything."""

    def __init__(self, stream: FrameStream) -> None:
        self.stream = stream

    async def send(self, message: FromHost) -> None:
        await self.stream.write(pack(message))

    async def reply(self) -> FromEnclave:
        payload = await self.stream.read(begin_within_s=PATIENCE_S)
        assert payload is not None
        return read_from_enclave(payload)

    async def tell(self, message: FromHost, expected: type[M]) -> M:
        await self.send(message)
        reply = await self.reply()
        assert type(reply) is expected, reply
        assert reply.id == message.id
        return reply  # type: ignore[return-value]

    async def load(self, data: bytes, *, number: int = 1) -> FromEnclave:
        await self.send(Load(id=number, size=len(data)))
        for start in range(0, len(data), 1 << 20):
            await self.stream.write(data[start : start + (1 << 20)])
        return await self.reply()

    async def run(self, ask: Ask) -> tuple[list[Token], FromEnclave]:
        await self.send(ask)
        tokens: list[Token] = []
        while isinstance(reply := await self.reply(), Token):
            assert reply.id == ask.id
            tokens.append(reply)
        return tokens, reply

    async def ended(self) -> bool:
        """Did the enclave end the connection? Nothing else may come before that."""
        try:
            return await self.stream.read(begin_within_s=PATIENCE_S) is None
        except Unavailable as error:
            return error.code == "frame.truncated"


class Enclave:
    """The process and its socket."""

    def __init__(self, directory: Path, *, engine: str = "reference") -> None:
        self.path = str(directory / "e.sock")
        root = create_simulated_platform(directory / "p.key")
        pcrs = simulated_pcrs()
        self.references = References(
            anchors=(simulated_anchor(root),), images=frozenset({(pcrs[0], pcrs[1], pcrs[2])})
        )
        argv = [sys.executable, "-m", "aos.workers.enclave", "--socket", self.path]
        argv += ["--platform-key", str(directory / "p.key"), "--engine", engine]
        self.process = Process(
            "enclave",
            argv,
            log_path=directory / "log",
            ready=lambda _: Path(self.path).exists(),
            ready_timeout_s=PATIENCE_S,
        )
        self.process.start()

    @asynccontextmanager
    async def host(self) -> AsyncIterator[Host]:
        stream = await self._connect()
        try:
            yield Host(stream)
        finally:
            await stream.close()

    async def _connect(self) -> FrameStream:
        """A connection that the enclave serves: it may not have noticed yet that the host before is gone."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    stream = await FrameStream.connect_unix(self.path, max_frame=2 * MAX_FRAME_BYTES)
                except Unavailable:
                    await asyncio.sleep(0.01)
                    continue
                host = Host(stream)
                with contextlib.suppress(Unavailable):  # turned away before it could ask
                    await host.send(Status(id=0))
                    if isinstance(await host.reply(), State):
                        return stream
                await stream.close()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    """An enclave that has no model, and gets none in these tests."""
    enclave = Enclave(tmp_path_factory.mktemp("empty"))
    yield enclave
    enclave.process.kill()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    """An enclave with the demo model."""
    enclave = Enclave(tmp_path_factory.mktemp("loaded"))

    async def load() -> None:
        async with enclave.host() as host:
            assert isinstance(await host.load(MODEL.read_bytes()), Loaded)

    asyncio.run(load())
    yield enclave
    enclave.process.kill()


def boot(number: int = 2, **changes: Any) -> Boot:
    members = {
        "network": NETWORK,
        "operator": OPERATOR,
        "vrf_key": VRF_KEY,
        "policy": POLICY,
        "nonce": NONCE,
        "lifetime_ms": 3_600_000,
    }
    return Boot(id=number, **{**members, **changes})


def ask(model_id: bytes, number: int = 3, *, endless: bool = False, **changes: Any) -> Ask:
    params = Params(
        temperature=0,
        top_p=1_000_000,
        top_k=0,
        min_p=0,
        repeat_penalty=100_000 if endless else 1_000_000,
        max_tokens=1_900 if endless else 6,
        stop=(),
        seed=None,
    )
    job = RequestJob(tag="tee", prompt="What is AI?", model="m", model_id=model_id, params=params)
    request = Request(
        network=NETWORK,
        dispatcher="0x" + "33" * 20,
        project="p",
        user="u",
        job=job,
        min_operators=1,
        blind=False,
        nonce_source="client",
        issued_at=1_780_000_000_000,
    )
    members = {
        "operator": OPERATOR,
        "job_ref": sha256(b"job").digest(),
        "attempt": 1,
        "request": canonical_json(encode(request)).decode(),
        "nonce": NONCE,
        "sampling_seed": "77",
    }
    return Ask(id=number, **{**members, **changes})


async def booted(enclave: Enclave, host: Host) -> tuple[bytes, Booted]:
    """Boot anew; gives the model_id and the reply."""
    reply = await host.tell(boot(), Booted)
    return reply.boot.model_id, reply


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def judge_boot(enclave: Enclave, reply: Booted | Attested, *, nonce: bytes | None = None) -> Claims:
    evidence = TeeBootEvidence(boot=reply.boot, boot_signature=reply.boot_signature, document=reply.document)
    return verify_boot(
        evidence, references=enclave.references, at_ms=now_ms(), nonce=nonce, max_age_ms=300_000
    )


def judge_answer(enclave: Enclave, reply: Answered) -> TeeAnswer:
    return verify_evidence(read_evidence(reply.evidence), references=enclave.references, at_ms=now_ms())


def wait_for_end(process: Process) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None:
        assert time.monotonic() < deadline, "the process goes on"
        time.sleep(0.01)


# --- framing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "big"), "frame.too_large"),
        (b"\xff\xff\xff\xff", "frame.too_large"),
        (bytes(4), "frame.empty"),
        (b"\0\0\0\x09half", "frame.truncated"),
        (b"\0\0", "frame.truncated"),
    ],
    ids=["a byte too long", "4 GiB", "empty", "half a payload", "half a length"],
)
async def test_a_frame_out_of_bounds_ends_the_connection_and_never_the_process(
    sent: bytes, code: str, empty: Enclave
) -> None:
    async with empty.host() as host:
        host.stream._writer.write(sent)
        if code == "frame.truncated":
            host.stream._writer.write_eof()
        reply = await host.reply()
        assert isinstance(reply, Failed)
        assert (reply.id, reply.code) == (0, code)
        assert await host.ended()
    assert empty.process.poll() is None
    async with empty.host() as host:
        assert (await host.tell(Status(id=5), State)).loaded is None


async def test_the_largest_frame_is_read_before_its_content_is_judged(empty: Enclave) -> None:
    async with empty.host() as host:
        await host.stream.write(b"[" * MAX_FRAME_BYTES)
        reply = await host.reply()
        assert isinstance(reply, Failed)
        assert reply.code == "encoding.depth"
        await host.tell(Status(id=5), State)


STATUS = encode(Status(id=7))


@pytest.mark.parametrize(
    ("payload", "code", "number"),
    [
        (b"nonsense", "encoding.syntax", 0),
        (b"\xff\xfe", "encoding.utf8", 0),
        (b'{"id":7, "type":"aos.enclave.status","v":1}', "encoding.not_canonical", 0),
        (b'{"id":7,"id":8,"type":"aos.enclave.status","v":1}', "encoding.duplicate_key", 0),
        (b"[]", "enclave.unknown_message", 0),
        (canonical_json(STATUS | {"type": "aos.enclave.swear"}), "enclave.unknown_message", 7),
        (canonical_json(STATUS | {"type": "aos.enclave.state"}), "enclave.unknown_message", 7),
        (canonical_json(STATUS | {"v": 2}), "statement.version", 7),
        (canonical_json(STATUS | {"more": 1}), "field.unknown", 7),
        (canonical_json(STATUS | {"id": -1}), "field.range", 0),
        (canonical_json(STATUS | {"id": "7"}), "field.type", 0),
        (canonical_json(encode(boot()) | {"lifetime_ms": 7_200_001}), "field.range", 2),
        (canonical_json(encode(boot()) | {"lifetime_ms": 0}), "field.range", 2),
        (canonical_json(encode(boot()) | {"operator": "0x11"}), "field.range", 2),
        (canonical_json(encode(boot()) | {"nonce": b64u_encode(bytes(31))}), "field.range", 2),
        (canonical_json(encode(Load(id=4, size=1)) | {"size": 0}), "field.range", 4),
        (canonical_json(encode(Load(id=4, size=1)) | {"size": 2**40 + 1}), "field.range", 4),
    ],
)
async def test_a_message_that_is_none_is_refused_under_its_number_and_the_connection_goes_on(
    payload: bytes, code: str, number: int, empty: Enclave
) -> None:
    async with empty.host() as host:
        await host.stream.write(payload)
        reply = await host.reply()
        assert isinstance(reply, Failed)
        assert (reply.code, reply.id, reply.blame) == (code, number, "InvalidMessage")
        assert (await host.tell(Status(id=9), State)).label == "SIMULATED, NO HARDWARE"


async def test_a_second_host_is_turned_away_and_the_first_keeps_its_connection(empty: Enclave) -> None:
    async with empty.host() as first:
        second = Host(await FrameStream.connect_unix(empty.path))
        reply = await second.reply()
        assert isinstance(reply, Failed)
        assert (reply.id, reply.code) == (0, "enclave.connected")
        assert await second.ended()
        await second.stream.close()
        await first.tell(Status(id=5), State)


# --- order --------------------------------------------------------------------------------------------------


async def test_nothing_is_stated_before_there_is_something_to_state(empty: Enclave) -> None:
    async with empty.host() as host:
        assert (await host.tell(boot(), Failed)).code == "enclave.not_loaded"
        assert (await host.tell(ask(bytes(32)), Failed)).code == "enclave.not_booted"
        state = await host.tell(Status(id=5), State)
        assert (state.loaded, state.busy, state.boot, state.sequence) == (None, False, b"", 0)


async def test_a_broken_model_is_refused_and_another_may_follow(empty: Enclave) -> None:
    async with empty.host() as host:
        for data in (b"no model", MODEL.read_bytes()[:-1], MODEL.read_bytes() + b"\0"):
            reply = await host.load(data, number=11)
            assert isinstance(reply, Failed)
            assert reply.id == 11
            assert reply.code.startswith("gguf.")
        assert (await host.tell(Status(id=5), State)).loaded is None
    assert empty.process.poll() is None


async def test_more_of_a_model_than_announced_is_refused(empty: Enclave) -> None:
    async with empty.host() as host:
        await host.send(Load(id=12, size=3))
        await host.stream.write(b"four")
        reply = await host.reply()
        assert isinstance(reply, Failed)
        assert (reply.id, reply.code) == (12, "enclave.model_size")
        await host.tell(Status(id=5), State)


async def test_a_host_that_goes_while_it_loads_leaves_an_empty_enclave(empty: Enclave) -> None:
    async with empty.host() as host:
        await host.send(Load(id=13, size=1 << 20))
        await host.stream.write(b"the beginning")
    async with empty.host() as host:
        assert (await host.tell(Status(id=5), State)).loaded is None


async def test_a_model_is_loaded_once(loaded: Enclave) -> None:
    async with loaded.host() as host:
        reply = await host.tell(Load(id=14, size=5), Failed)
        assert (reply.code, reply.blame) == ("enclave.already_loaded", "RuleViolation")


# --- boots and answers --------------------------------------------------------------------------------------


async def test_a_boot_statement_binds_key_operator_network_model_and_nonce(loaded: Enclave) -> None:
    async with loaded.host() as host:
        reply = await host.tell(boot(21, network="aos-two", operator="0x" + "44" * 20), Booted)
        state = await host.tell(Status(id=22), State)
    statement = reply.boot
    assert (statement.network, statement.operator) == ("aos-two", "0x" + "44" * 20)
    assert (statement.vrf_key, statement.policy, statement.nonce) == (VRF_KEY, POLICY, NONCE)
    assert statement.not_after - statement.booted_at == 3_600_000
    assert statement.engine_digest == engine_digest(statement.engine)
    claims = judge_boot(loaded, reply)
    assert (claims.nonce, claims.report_data) == (NONCE, hash_of(statement))
    assert hash_of(statement) == state.boot
    assert state.sequence == 0
    assert state.loaded is not None
    assert (state.loaded.model_id, state.loaded.engine) == (statement.model_id, statement.engine)


async def test_a_document_of_now_is_for_the_boot_or_for_one_of_its_answers(loaded: Enclave) -> None:
    mine = sha256(b"a requester's nonce").digest()
    async with loaded.host() as host:
        model_id, first = await booted(loaded, host)
        fresh = await host.tell(Attest(id=60, answer=b"", nonce=mine), Attested)
        _, answered = await host.run(ask(model_id))
        assert isinstance(answered, Answered)
        evidence = read_evidence(answered.evidence)
        of_answer = Attest(id=61, answer=hash_of(evidence.answer), nonce=mine)
        document = (await host.tell(of_answer, Attested)).document
        refused = await host.tell(Attest(id=62, answer=sha256(b"none").digest(), nonce=mine), Failed)
        assert refused.code == "enclave.unknown_answer"
        await booted(loaded, host)
        assert (await host.tell(of_answer, Failed)).code == "enclave.unknown_answer"
    assert fresh.boot == first.boot
    judge_boot(loaded, fresh, nonce=mine)
    with pytest.raises(VerificationError, match=r"attest\.nonce"):
        judge_boot(loaded, fresh)
    claims = verify_answer_document(
        document, evidence=evidence, references=loaded.references, at_ms=now_ms(), nonce=mine
    )
    assert claims.report_data == hash_of(evidence.answer)


async def test_a_document_is_given_while_a_run_is_under_way(loaded: Enclave) -> None:
    async with loaded.host() as host:
        model_id, _ = await booted(loaded, host)
        await host.send(ask(model_id, endless=True))
        assert isinstance(await host.reply(), Token)
        await host.send(Attest(id=63, answer=b"", nonce=NONCE))
        while isinstance(reply := await host.reply(), Token):
            pass
        assert isinstance(reply, Attested)
        await host.send(Cancel(id=3))
        while isinstance(await host.reply(), Token):
            pass


async def test_nothing_is_attested_to_before_there_is_a_boot(empty: Enclave) -> None:
    async with empty.host() as host:
        assert (await host.tell(Attest(id=64, answer=b"", nonce=NONCE), Failed)).code == "enclave.not_booted"


async def test_a_boot_ends_the_one_before(loaded: Enclave) -> None:
    async with loaded.host() as host:
        model_id, first = await booted(loaded, host)
        _, answered = await host.run(ask(model_id))
        assert isinstance(answered, Answered)
        _, second = await booted(loaded, host)
        assert second.boot.enclave_key != first.boot.enclave_key
        _, answered = await host.run(ask(model_id, 4))
        assert isinstance(answered, Answered)
        statement = judge_answer(loaded, answered)
        assert (statement.boot, statement.sequence) == (hash_of(second.boot), 1)


async def test_model_boot_and_sequence_stay_when_the_host_comes_back(loaded: Enclave) -> None:
    async with loaded.host() as host:
        model_id, reply = await booted(loaded, host)
        await host.run(ask(model_id))
    async with loaded.host() as host:
        state = await host.tell(Status(id=5), State)
        assert state.loaded is not None
        assert (state.boot, state.sequence) == (hash_of(reply.boot), 1)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"operator": "0x" + "22" * 20}, "enclave.other_operator"),
        ({"request": "{}"}, "field.missing"),
        ({"sampling_seed": "77", "attempt": 1, "request": "[]"}, "field.type"),
    ],
)
async def test_a_question_that_is_not_for_this_boot_is_not_run(
    changes: dict[str, Any], code: str, loaded: Enclave
) -> None:
    async with loaded.host() as host:
        model_id, _ = await booted(loaded, host)
        tokens, reply = await host.run(ask(model_id, **changes))
        assert tokens == []
        assert isinstance(reply, Failed)
        assert reply.code == code
        assert (await host.tell(Status(id=5), State)).sequence == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("network", "aos-other"), "enclave.other_network"),
        (("job.tag", "opml"), "worker.job_type"),
        (("job.model_id", b64u_encode(bytes(32))), "worker.model"),
    ],
)
async def test_what_the_request_bytes_say_counts_and_nothing_the_host_says_of_them(
    change: tuple[str, str], code: str, loaded: Enclave
) -> None:
    async with loaded.host() as host:
        model_id, _ = await booted(loaded, host)
        value = json.loads(ask(model_id).request)
        *way, last = change[0].split(".")
        at = value
        for name in way:
            at = at[name]
        at[last] = change[1]
        tokens, reply = await host.run(ask(model_id, request=canonical_json(value).decode()))
        assert tokens == []
        assert isinstance(reply, Failed)
        assert reply.code == code


async def test_an_answer_after_the_boots_time_is_not_signed(loaded: Enclave) -> None:
    async with loaded.host() as host:
        reply = await host.tell(boot(lifetime_ms=1), Booted)
        await asyncio.sleep(0.01)
        _, failed = await host.run(ask(reply.boot.model_id))
        assert isinstance(failed, Failed)
        assert failed.code == "enclave.boot_expired"


async def test_a_run_is_cancelled_between_two_tokens(loaded: Enclave) -> None:
    async with loaded.host() as host:
        model_id, _ = await booted(loaded, host)
        await host.send(ask(model_id, endless=True))
        assert isinstance(await host.reply(), Token)
        await host.send(Cancel(id=3))
        while isinstance(reply := await host.reply(), Token):
            assert reply.index < 1_899
        assert isinstance(reply, Failed)
        assert (reply.id, reply.code) == (3, "enclave.cancelled")
        state = await host.tell(Status(id=5), State)
        assert (state.busy, state.sequence) == (False, 0)


async def test_a_cancel_for_another_run_changes_nothing(loaded: Enclave) -> None:
    async with loaded.host() as host:
        model_id, _ = await booted(loaded, host)
        await host.send(ask(model_id))
        await host.send(Cancel(id=99))
        while isinstance(reply := await host.reply(), Token):
            pass
        assert isinstance(reply, Answered)


async def test_while_a_run_is_under_way_neither_another_nor_a_boot_is_taken(loaded: Enclave) -> None:
    async with loaded.host() as host:
        model_id, first = await booted(loaded, host)
        await host.send(ask(model_id, endless=True))
        for message in (ask(model_id, 31), boot(32), Status(id=33)):
            await host.send(message)
        replies: dict[int, FromEnclave] = {}
        while len(replies) < 3:
            if not isinstance(reply := await host.reply(), Token):
                replies[reply.id] = reply
        for number in (31, 32):
            refused = replies[number]
            assert isinstance(refused, Failed)
            assert refused.code == "enclave.busy"
        state = replies[33]
        assert isinstance(state, State)
        assert (state.busy, state.boot) == (True, hash_of(first.boot))
        await host.send(Cancel(id=3))
        while isinstance(await host.reply(), Token):
            pass


async def test_cancelling_again_and_again_never_lets_two_runs_into_the_engine(loaded: Enclave) -> None:
    async with loaded.host() as host:
        model_id, _ = await booted(loaded, host)
        tokens, _ = await host.run(ask(model_id))
        alone = [token.token for token in tokens]
        for number in range(40, 44):
            await host.send(ask(model_id, number, endless=True))
            assert isinstance(await host.reply(), Token)
            for _ in range(5):
                await host.send(Cancel(id=number))
            ends: set[int] = set()
            asked = 1_000 * number
            while True:
                await host.send(ask(model_id, asked))
                seen: list[int] = []
                while True:
                    reply = await host.reply()
                    if isinstance(reply, Token):
                        if reply.id == asked:
                            assert number in ends, "the run before had not ended"
                            seen.append(reply.token)
                        continue
                    ends.add(reply.id)
                    if reply.id == asked:
                        break
                if isinstance(reply, Answered):
                    break
                assert isinstance(reply, Failed)
                assert reply.code == "enclave.busy"
                asked += 1
            assert seen == alone


async def test_a_host_that_goes_takes_its_run_with_it(loaded: Enclave) -> None:
    async with loaded.host() as host:
        model_id, _ = await booted(loaded, host)
        await host.send(ask(model_id, endless=True))
        assert isinstance(await host.reply(), Token)
    async with loaded.host() as host:
        state = await host.tell(Status(id=5), State)
        assert (state.busy, state.sequence) == (False, 0)
        _, answered = await host.run(ask(model_id, 6))
        assert isinstance(answered, Answered)


# --- the process --------------------------------------------------------------------------------------------


async def test_shutdown_ends_the_process_well(tmp_path: Path) -> None:
    enclave = Enclave(tmp_path)
    async with enclave.host() as host:
        await host.send(Shutdown(id=1))
        await asyncio.to_thread(wait_for_end, enclave.process)
    assert enclave.process.poll() == 0
    log = enclave.process.log_since_start().decode()
    assert all(line.startswith("[SIMULATED enclave ") for line in log.splitlines()), log


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--platform-key", "none.key"], "platform.unreadable"), ([], "nsm.missing")],
    ids=["a platform that is not there", "neither device nor platform"],
)
async def test_without_its_platform_it_does_not_start(
    arguments: list[str], code: str, tmp_path: Path
) -> None:
    argv = [sys.executable, "-m", "aos.workers.enclave", "--socket", str(tmp_path / "s"), *arguments]
    process = Process("enclave", argv, log_path=tmp_path / "log")
    process.start()
    await asyncio.to_thread(wait_for_end, process)
    assert process.poll() == ConfigError.exit_code
    assert code in process.log_tail()
