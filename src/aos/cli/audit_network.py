"""``aos audit`` over the network (docs/spec/14-audit.md, "Over the network"): ask, wait, fetch, check, say what was found, and
dispute what differs.
"""

import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aos.cli import voice
from aos.cli.audit import Audit, check, file_bytes, layers_of, signed_answer
from aos.cli.challenge import Player, claim_in
from aos.cli.own_key import own_key
from aos.cli.replay import EngineName
from aos.client import Client
from aos.client.settings import load_client_settings
from aos.core.answer import Answer, Receipt
from aos.core.dispute.audit import MAX_BUNDLE_BYTES, AuditRequest
from aos.core.dispute.audit_order import (
    AuditAsked,
    AuditFound,
    AuditOpening,
    AuditOrder,
    check_chunk,
    check_opening,
    check_order,
    chunk_sizes,
)
from aos.core.encoding import b64u_decode, b64u_encode, parse_json_strict
from aos.core.signing import address_of
from aos.core.statements import Signed, check_signed, hash_of, read_signed, sign
from aos.core.trust import TrustedDispatcher
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable, VerificationError

POLL_S = 0.5
TRIES = 8
_MAX_DOCUMENT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAudit:
    """What is asked for: the command's options."""

    target: str
    model: Path
    layers: int
    url: str | None
    operator: str
    key: Path | None
    trust: Path | None
    resume: str | None
    challenge: bool
    save: Path | None
    wait_s: int
    engine: EngineName
    threads: int
    as_json: bool


def audit_over_network(asked: NetworkAudit) -> Audit:
    """One audit, from its request to the end of the dispute that follows from it.

    Raises ConfigError ``client.no_trust``; Unavailable ``audit.no_state_root``, ``client.unreachable``; and what the dispatcher
    refuses with.
    """
    key = own_key(asked.key)
    n_layers = layers_of(asked.model)
    with load_client_settings(
        url=asked.url, trust=asked.trust, keyed=asked.key is not None
    ).client() as client:
        if client.trust is None:
            raise ConfigError(
                "client.no_trust",
                "no trust file names the dispatcher's VRF key, so its beacon cannot be checked",
                hint="pass --trust FILE, or run where .aos/trust.json is",
            )
        file = Path(asked.target)
        data = (
            file_bytes(file, asked.as_json)
            if asked.target == "-" or file.exists()
            else client.answer(asked.target)
        )
        answer = signed_answer(data, asked.target, asked.as_json)
        receipt = _receipt(answer, asked.operator)
        talk = _Talk(client, key, receipt, client.trust.dispatchers[0])
        public, request = talk.resumed(asked.resume, asked.layers) if asked.resume else talk.ask(asked.layers)
        found = Audit(request=request, n_layers=n_layers)
        drawn = ", ".join(map(str, request.drawn(n_layers)))
        voice.say(f"audit {talk.name}: layers {drawn} of {n_layers}, drawn by beacon {request.beacon.hex()}")
        found.network = {"audit": talk.name, "operator": receipt.core.operator, "claim": public["claim"]}
        began = time.monotonic()
        try:
            talk.wait(asked.wait_s)
            opening, hashes = talk.opening()
            found.network["waited_s"] = round(time.monotonic() - began, 2)
            with _bundle_file(asked.save) as bundle:
                began = time.monotonic()
                talk.fetch(bundle, opening.statement, hashes)
                found.network["fetched_s"] = round(time.monotonic() - began, 2)
                began = time.monotonic()
                check(found, answer, receipt.core, asked.model, asked.engine, asked.threads, bundle)
                found.network["checked_s"] = round(time.monotonic() - began, 2)
        except VerificationError as error:
            found.refuse("open-1", error)
            return found
        except InvalidMessage as error:
            found.refuse("open-1", error)
            return found
        talk.report(found, opening.statement)
        if found.code == 10 and asked.challenge:
            _dispute(found, client, answer, receipt, asked, key)
        return found


def _receipt(answer: Answer, operator: str) -> Receipt:
    """The claim to audit: one that is about the file's own tokens. Raises RuleViolation ``audit.other_text``."""
    receipt = claim_in(answer, operator)
    core, main = receipt.core, answer.receipt.core
    check_signed(Signed(statement=core, signature=receipt.signature), address=core.operator)
    same = (core.tokens_hash, core.response_hash, core.request_hash, core.prompt_tokens_hash)
    if same != (main.tokens_hash, main.response_hash, main.request_hash, main.prompt_tokens_hash):
        raise RuleViolation(
            "audit.other_text",
            f"the file holds the text of {main.operator}, and {core.operator} signed another",
            hint="challenge it: aos challenge FILE --operator 0x…",
        )
    if not core.state_root:
        raise Unavailable("audit.no_state_root", "this receipt commits to no state root: nothing to audit")
    return receipt


def _dispute(
    found: Audit, client: Client, answer: Answer, receipt: Receipt, asked: NetworkAudit, key: bytes
) -> None:
    """Challenge the claim that was found different; the judgement goes to ``found.network``."""
    from aos.core.dispute.fine.referee import Canonical
    from aos.core.dispute.transcript import judge
    from aos.engine.around import check_with_tokenizer

    try:
        player = Player(client, answer, receipt, asked.model, asked.threads, asked.wait_s, key)
        aimed = player.aim()
        if aimed is None:
            found.network["dispute"] = "none: this model computes what the claim says"
            return
        judged = judge(player.play(aimed), Canonical(check_with_tokenizer))
    except AOSError as error:
        found.network["dispute"] = f"not possible: {error.message} [{error.code}]"
        return
    found.network["dispute"] = judged.headline
    if judged.game is not None:
        found.network["game"] = b64u_encode(judged.game.id)


@contextmanager
def _bundle_file(save: Path | None) -> Iterator[Path]:
    """``save``, with what an earlier try left in it; else a file that goes away."""
    if save is None:
        with tempfile.NamedTemporaryFile(prefix="aos-audit-") as file:
            yield Path(file.name)
        return
    try:
        os.close(os.open(save, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise voice.usage(f"cannot write {save}: {error.strerror}", hint="name another file") from error
    yield save


class _Talk:
    """One audit with one dispatcher."""

    def __init__(self, client: Client, key: bytes, receipt: Receipt, dispatcher: TrustedDispatcher) -> None:
        self._client, self._key, self._core, self._dispatcher = client, key, receipt.core, dispatcher
        self.name = ""

    def ask(self, layers: int) -> tuple[dict[str, Any], AuditRequest]:
        """Ask for an audit with a nonce of ours. Its public facts, and what it draws, checked."""
        request = AuditAsked(
            network=self._core.network,
            dispatcher=self._dispatcher.address,
            auditor=address_of(self._key),
            claim=hash_of(self._core),
            layers=layers,
            nonce=secrets.token_bytes(32),
            time=time.time_ns() // 1_000_000,
        )
        signed = sign(self._key, request)
        public = self._object(self._client.audits(value=signed.to_json()))
        self.name = b64u_encode(signed.hash)
        return public, self._checked(public, signed)

    def resumed(self, name: str, layers: int) -> tuple[dict[str, Any], AuditRequest]:
        """Go on with an audit that somebody asked for. Raises RuleViolation ``audit.other_layers``."""
        self.name = name
        public = self._get("")
        signed = read_signed(AuditAsked, public["request"], where="request")
        if b64u_encode(signed.hash) != name:
            raise VerificationError("audit.foreign", "the dispatcher shows another audit")
        if signed.statement.layers != layers:
            raise RuleViolation("audit.other_layers", f"that audit draws {signed.statement.layers} layers")
        return public, self._checked(public, signed)

    def _checked(self, public: dict[str, Any], asked: Signed[AuditAsked]) -> AuditRequest:
        self._order: Signed[AuditOrder] = read_signed(AuditOrder, public["order"], where="order")
        return check_order(
            asked,
            self._order,
            self._core,
            vrf_key=self._dispatcher.vrf_key,
            dispatcher=self._dispatcher.address,
        )

    def wait(self, wait_s: int) -> None:
        """Until the operator has opened. Raises InvalidMessage ``audit.withheld``."""
        until, said = time.monotonic() + wait_s, 0.0
        while True:
            public = self._get("")
            if public["opened_at"] is not None:
                return
            if public["state"] == "defaulted" or time.monotonic() > until:
                why = f"; its last bundle was none [{public['refused']}]" if public["refused"] else ""
                raise InvalidMessage(
                    "audit.withheld",
                    f"{self._core.operator} has opened nothing{why}: the claim is unchecked, nobody is convicted",
                    hint=f"it may still answer: aos audit … --resume {self.name}",
                )
            if time.monotonic() - said > 5:
                said = time.monotonic()
                voice.say(voice.dim(f"· waiting for the operator, {max(0, int(until - said))} s at most"))
            time.sleep(POLL_S)

    def opening(self) -> tuple[Signed[AuditOpening], list[bytes]]:
        """What the operator signed, and the hashes of its chunks, checked."""
        held = self._get("/opening", signed=True)
        opening = read_signed(AuditOpening, held["opening"], where="opening")
        hashes = [b64u_decode(each, length=32) for each in held["hashes"]]
        check_opening(opening, self._order.statement, hashes, most=MAX_BUNDLE_BYTES)
        return opening, hashes

    def fetch(self, path: Path, opening: AuditOpening, hashes: list[bytes]) -> None:
        """Write the bundle, chunk by chunk, each checked; chunks that the file holds already are not fetched again."""
        progress, at = voice.Progress("fetching the openings"), 0
        with path.open("r+b") as file:
            for index, size in enumerate(chunk_sizes(opening.size)):
                file.seek(at)
                held = file.read(size)
                try:
                    check_chunk(opening, hashes, index, held)
                except VerificationError:
                    file.seek(at)
                    file.write(self._chunk(opening, hashes, index))
                at += size
                progress(at, opening.size)
            file.truncate(opening.size)

    def _chunk(self, opening: AuditOpening, hashes: list[bytes], index: int) -> bytes:
        for tried in range(TRIES):
            try:
                data = self._client.audits(
                    f"/{self.name}/chunks/{index}",
                    key=self._key,
                    subject=b64u_decode(self.name, length=32),
                )
            except Unavailable:
                if tried == TRIES - 1:
                    raise
                time.sleep(min(8.0, POLL_S * 2**tried))
                continue
            check_chunk(opening, hashes, index, data)
            return data
        raise AssertionError("not reached")

    def report(self, found: Audit, opening: AuditOpening) -> None:
        """Tell the dispatcher, where there is something to tell: this machine could check, and the audit is ours."""
        if found.code not in (0, 10) or self._asked_by() != address_of(self._key):
            return
        place = found.difference
        statement = AuditFound(
            network=self._core.network,
            auditor=address_of(self._key),
            audit=b64u_decode(self.name, length=32),
            chunks_root=opening.chunks_root,
            found="different" if found.code else "right",
            position=0 if place is None or place.position is None else place.position,
            unit=0 if place is None or place.unit is None else place.unit,
        )
        self._client.audits(f"/{self.name}/report", value=sign(self._key, statement).to_json())

    def _asked_by(self) -> str:
        return str(self._get("")["auditor"])

    def _get(self, path: str, *, signed: bool = False) -> dict[str, Any]:
        if not signed:
            return self._object(self._client.audits(f"/{self.name}{path}"))
        subject = b64u_decode(self.name, length=32)
        return self._object(self._client.audits(f"/{self.name}{path}", key=self._key, subject=subject))

    @staticmethod
    def _object(data: bytes) -> dict[str, Any]:
        value = parse_json_strict(data, max_bytes=_MAX_DOCUMENT)
        if not isinstance(value, dict):
            raise InvalidMessage("client.not_aos", "the dispatcher's answer is no object")
        return value
