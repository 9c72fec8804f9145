"""The link's messages (docs/spec/02-signing.md, "Envelope" and "Link header").

The envelope is the original network's: ``{id, method, params, result, address, hash, signature}``, EIP-191
over the compact JSON as sent with ``signature`` emptied. The received bytes are verified first and parsed
afterwards. AOS's own messages carry a link header in ``params``; ``LinkSession`` refuses what is foreign,
replayed, skipped or stale. What a method means, and the members' order of arrival over several links, are not
decided here.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from aos.core.clock import VectorClock
from aos.core.encoding import MAX_INT, Fields, JsonValue, b64u_encode, parse_json_strict
from aos.core.signing import (
    address_bytes,
    address_of,
    eip191_digest,
    recover_digest,
    sign_eip191,
    to_checksum,
)
from aos.errors import InvalidMessage, VerificationError

MAX_ENVELOPE_BYTES = 2 << 20
MAX_SKEW_MS = 60_000
NO_MESSAGE = bytes(32)
PURPOSE = "aos.link"

_MEMBERS = ("id", "method", "params", "result", "address", "hash", "signature")
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}:,]|[^\s\[\]{}:,"]+', re.DOTALL)
_SIGNATURE_TEXT = re.compile(rb'"[0-9a-f]{130}"\Z')
_HEADER = ("purpose", "network", "to", "session", "counter", "incarnation", "prev", "clock", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message whose signature was verified. ``address`` is the signer in lower case.

    ``signed_digest`` (32 bytes) is the EIP-191 digest of the signed text: it names the message whatever
    signature it carries, and is what the next message's ``prev`` holds. Decimals in ``params`` and ``result``
    are ``Decimal``.
    """

    id: str
    method: str
    params: tuple[JsonValue, ...]
    result: JsonValue
    address: str
    hash: str
    signed_digest: bytes


def seal(
    private_key: bytes,
    *,
    id: str,
    method: str,
    params: Sequence[Any],
    result: Any = None,
    max_bytes: int = MAX_ENVELOPE_BYTES,
) -> str:
    """The signed envelope as compact JSON text, ready to send. Raises InvalidMessage
    ``envelope.unserialisable``, ``encoding.too_large``; ConfigError ``key.invalid``."""
    message = {
        "id": id,
        "method": method,
        "params": list(params),
        "result": result,
        "address": to_checksum(address_of(private_key)),
        "hash": "",
        "signature": "",
    }
    try:
        text = json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage("envelope.unserialisable", f"the message is not JSON: {error}") from error
    if len(data) + 130 > max_bytes:
        raise InvalidMessage("encoding.too_large", f"the message is larger than {max_bytes} bytes")
    return text[:-2] + sign_eip191(private_key, data).hex() + '"}'


def signed_digest(text: str | bytes) -> bytes:
    """The digest (32 bytes) that the signature of this envelope covers. Raises InvalidMessage as
    ``open_envelope``."""
    data = text.encode("utf-8") if isinstance(text, str) else text
    start, end = _find_signature(data)
    return eip191_digest(data[:start] + b'""' + data[end:])


def open_envelope(
    text: str | bytes, *, expected_address: str | None, max_bytes: int = MAX_ENVELOPE_BYTES
) -> Envelope:
    """Verify the received bytes, then parse them strictly.

    1. size; 2. find the one top-level ``signature`` member in compact JSON; 3. its form; 4. recover the
    signer of the bytes with the signature emptied; 5. the expected signer, where given; 6. strict parse,
    exact members, ranges; 7. ``address`` names the signer.

    Raises InvalidMessage ``encoding.*``, ``field.*``, ``envelope.not_compact``,
    ``envelope.signature_missing``, ``envelope.signature_format``, ``signature.empty``,
    ``signature.recovery_id``; VerificationError ``signature.*``, ``envelope.address_mismatch``.
    """
    # 1
    if len(text) > max_bytes:
        raise InvalidMessage("encoding.too_large", f"the message is larger than {max_bytes} bytes")
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise InvalidMessage("encoding.utf8", "the message is not Unicode text") from error
    if len(data) > max_bytes:
        raise InvalidMessage("encoding.too_large", f"the message is larger than {max_bytes} bytes")
    # 2
    start, end = _find_signature(data)
    # 3
    shown = data[start:end]
    if shown == b'""':
        raise InvalidMessage("signature.empty", "the signature is empty", field="signature")
    if not _SIGNATURE_TEXT.match(shown):
        raise InvalidMessage(
            "envelope.signature_format", "a signature is 130 lower-case hex digits", field="signature"
        )
    # 4
    digest = eip191_digest(data[:start] + b'""' + data[end:])
    signer = recover_digest(digest, bytes.fromhex(shown[1:-1].decode("ascii")))
    # 5
    if expected_address is not None and address_bytes(expected_address) != address_bytes(signer):
        raise VerificationError(
            "signature.wrong_signer", f"the signature is not that of {expected_address}", field="signature"
        )
    # 6
    value = parse_json_strict(data, max_bytes=max_bytes, max_depth=32, allow_floats=True)
    fields = Fields(value, _MEMBERS)
    envelope = Envelope(
        id=fields.text("id", 128),
        method=fields.text("method", 64, min_chars=1),
        params=tuple(fields.array("params", 16)),  # type: ignore[arg-type]
        result=fields.raw("result"),  # type: ignore[arg-type]
        address=signer,
        hash=fields.text("hash", 130),
        signed_digest=digest,
    )
    # 7
    named = fields.text("address", 42)
    if address_bytes(named) != address_bytes(signer):
        raise VerificationError(
            "envelope.address_mismatch", "the message was not signed by the address it names", field="address"
        )
    return envelope


def _find_signature(data: bytes) -> tuple[int, int]:
    """Start and end of the value of the top-level member ``signature``.

    The text must be compact: what was signed is the compact form, and then it is the bytes themselves.
    """
    depth, position, found = 0, 0, None
    expect_key, key = False, b""
    for token in _TOKEN.finditer(data):
        if token.start() != position:
            raise InvalidMessage("envelope.not_compact", "the message is not compact JSON")
        position = token.end()
        text = token.group()
        if text in (b"{", b"["):
            depth += 1
            expect_key = depth == 1
        elif text in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and text == b",":
            expect_key, key = True, b""
        elif depth == 1 and text != b":":
            if expect_key:
                expect_key, key = False, text
            elif key == b'"signature"':
                if found is not None:
                    raise InvalidMessage(
                        "encoding.duplicate_key", "the message has two signatures", field="signature"
                    )
                found = token.span()
    if position != len(data):
        raise InvalidMessage("envelope.not_compact", "the message is not compact JSON")
    if found is None:
        raise InvalidMessage("envelope.signature_missing", "the message has no signature", field="signature")
    return found


# --- link header ---


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkHeader:
    """Which link, which turn: binds a message to network, addressee, session and predecessor.

    ``counter`` counts the sender's messages in this session, from 1. ``prev`` is the ``signed_digest`` of the
    sender's message before it in this session, 32 zero bytes for the first. ``time`` is the sender's, in ms.
    """

    network: str
    to: str
    session: bytes
    counter: int
    incarnation: int
    prev: bytes
    clock: VectorClock
    time: int

    def to_json(self) -> dict[str, Any]:
        """The header as it is sent."""
        return {
            "purpose": PURPOSE,
            "network": self.network,
            "to": self.to,
            "session": b64u_encode(self.session),
            "counter": self.counter,
            "incarnation": self.incarnation,
            "prev": b64u_encode(self.prev),
            "clock": self.clock.to_json(),
            "time": self.time,
        }

    @staticmethod
    def decode(value: object) -> "LinkHeader":
        """Read a header strictly. Raises InvalidMessage ``field.*``, ``clock.*``, ``address.format``."""
        fields = Fields(value, _HEADER, path="header")
        fields.enum("purpose", (PURPOSE,))
        return LinkHeader(
            network=fields.text("network", 64, min_chars=1),
            to="0x" + address_bytes(fields.text("to", 42)).hex(),
            session=fields.b64u("session", 32),
            counter=fields.uint("counter", min_value=1),
            incarnation=fields.uint("incarnation", 2**31, min_value=1),
            prev=fields.b64u("prev", 32),
            clock=VectorClock.decode(fields.raw("clock")),
            time=fields.uint("time", MAX_INT),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSession:
    """What one side expects of its peer's next message in one session. Immutable: ``accept`` returns the next
    one."""

    network: str
    own_address: str
    peer_address: str
    session: bytes
    incarnation: int
    last_counter: int = 0
    last_digest: bytes = NO_MESSAGE
    allowed_skew_ms: int = MAX_SKEW_MS

    def accept(self, envelope: Envelope, header: LinkHeader, *, now_ms: int) -> "LinkSession":
        """The session after this message, whose header is ``header``.

        Raises VerificationError, checked in this order: ``link.wrong_sender``, ``link.foreign_network``,
        ``link.wrong_addressee``, ``link.wrong_session``, ``link.wrong_incarnation``, ``link.replayed``,
        ``link.skipped``, ``link.prev_mismatch``, ``link.stale``.
        """
        if address_bytes(envelope.address) != address_bytes(self.peer_address):
            _refuse("wrong_sender", "signed by somebody other than the peer of this link")
        if header.network != self.network:
            _refuse("foreign_network", f"meant for network {header.network!r}")
        if address_bytes(header.to) != address_bytes(self.own_address):
            _refuse("wrong_addressee", f"addressed to {header.to}")
        if header.session != self.session:
            _refuse("wrong_session", "belongs to another session")
        if header.incarnation != self.incarnation:
            _refuse("wrong_incarnation", "the sender's incarnation cannot change within a session")
        if header.counter <= self.last_counter:
            _refuse("replayed", f"message {header.counter} came after message {self.last_counter}")
        if header.counter != self.last_counter + 1:
            _refuse("skipped", f"message {header.counter} came right after message {self.last_counter}")
        if header.prev != self.last_digest:
            _refuse("prev_mismatch", "does not follow the message that came before it")
        if abs(header.time - now_ms) > self.allowed_skew_ms:
            _refuse("stale", f"its time is {header.time - now_ms:+d} ms from ours")
        return replace(self, last_counter=header.counter, last_digest=envelope.signed_digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSender:
    """The sending side of a session: numbers and chains its messages. Immutable."""

    network: str
    to: str
    session: bytes
    incarnation: int
    last_counter: int = 0
    last_digest: bytes = NO_MESSAGE

    def header(self, *, clock: VectorClock, time_ms: int) -> LinkHeader:
        """Header of the next message."""
        return LinkHeader(
            network=self.network,
            to=self.to,
            session=self.session,
            counter=self.last_counter + 1,
            incarnation=self.incarnation,
            prev=self.last_digest,
            clock=clock,
            time=time_ms,
        )

    def sent(self, text: str) -> "LinkSender":
        """The sender after ``text`` (a sealed envelope with that header) was sent."""
        return replace(self, last_counter=self.last_counter + 1, last_digest=signed_digest(text))


def _refuse(code: str, what: str) -> NoReturn:
    raise VerificationError(f"link.{code}", f"the message is refused: {what}", field="header")
