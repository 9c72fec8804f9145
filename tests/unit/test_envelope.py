"""Envelopes as received, link headers, and the session that refuses by name."""

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.core.clock import VectorClock
from aos.core.envelope import (
    Envelope,
    LinkHeader,
    LinkSender,
    LinkSession,
    open_envelope,
    seal,
    signed_digest,
)
from aos.core.signing import address_of, to_checksum
from aos.errors import AOSError, InvalidMessage, VerificationError

CASES = json.loads((Path(__file__).parents[2] / "vectors/aos/envelope/open.json").read_text())["cases"]
D_KEY, O_KEY = bytes(range(1, 33)), bytes(range(2, 34))
D, O = address_of(D_KEY), address_of(O_KEY)  # noqa: E741
SESSION, NOW = bytes(range(32)), 1_700_000_000_000


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_vectors(case: dict[str, Any]) -> None:
    def run(text: str | bytes) -> Envelope:
        return open_envelope(text, expected_address=case["expected_address"])

    if case["error"] is None:
        envelope = run(case["text"])
        assert run(case["text"].encode()) == envelope
        assert envelope.address == json.loads(case["text"])["address"].lower()
        assert signed_digest(case["text"]) == envelope.signed_digest
    else:
        for text in (case["text"], case["text"].encode()):
            with pytest.raises(AOSError) as caught:
                run(text)
            assert caught.value.code == case["error"]


def test_the_original_message_is_read_exactly() -> None:
    envelope = open_envelope(CASES[0]["text"], expected_address=None)
    body = envelope.params[0]
    assert isinstance(body, dict)
    assert isinstance(body["job"], dict)
    assert body["job"]["params"] == {
        "temperature": Decimal("1.0"),
        "top_p": Decimal("0.5"),
        "max_tokens": 1024,
    }
    assert (envelope.method, envelope.hash, envelope.result) == ("dispatch_job", "", None)


def test_sizes_are_checked_first() -> None:
    for text in ("x" * 101, b"x" * 101, "\u20ac" * 50):
        with pytest.raises(InvalidMessage) as caught:
            open_envelope(text, expected_address=None, max_bytes=100)
        assert caught.value.code == "encoding.too_large"
    with pytest.raises(InvalidMessage) as caught:
        seal(D_KEY, id="1", method="m", params=["x" * 100], max_bytes=200)
    assert caught.value.code == "encoding.too_large"


def test_hostile_quotes_cost_linear_time() -> None:
    text = b'"' + b'\\"' * 500_000
    with pytest.raises(InvalidMessage):
        open_envelope(text, expected_address=None)


@pytest.mark.parametrize("bad", [float("nan"), b"x", "\ud800", {1}])
def test_what_is_not_json_is_not_sealed(bad: Any) -> None:
    with pytest.raises(InvalidMessage) as caught:
        seal(D_KEY, id="1", method="m", params=[bad])
    assert caught.value.code == "envelope.unserialisable"


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidMessage) as caught:
        open_envelope("\ud800", expected_address=None)
    assert caught.value.code == "encoding.utf8"


def link() -> tuple[LinkSender, LinkSession]:
    sender = LinkSender(network="net", to=O, session=SESSION, incarnation=1)
    session = LinkSession(
        network="net", own_address=to_checksum(O), peer_address=D, session=SESSION, incarnation=1
    )
    return sender, session


def send(
    sender: LinkSender, body: Any, time: int = NOW, **change: Any
) -> tuple[LinkSender, Envelope, LinkHeader]:
    header = replace(sender.header(clock=VectorClock({1: sender.last_counter + 1}), time_ms=time), **change)
    text = seal(D_KEY, id="1", method="m", params=[body, header.to_json()])
    envelope = open_envelope(text, expected_address=D)
    return sender.sent(text), envelope, LinkHeader.decode(envelope.params[1])


def test_a_session_of_several_messages_is_accepted() -> None:
    sender, session = link()
    for turn in range(4):
        sender, envelope, header = send(sender, {"turn": turn}, NOW + turn)
        session = session.accept(envelope, header, now_ms=NOW)
        assert header.clock.to_json() == {"1": str(turn + 1)}
    assert session.last_counter == 4


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"network": "other"}, "link.foreign_network"),
        ({"to": D}, "link.wrong_addressee"),
        ({"session": bytes(32)}, "link.wrong_session"),
        ({"incarnation": 2}, "link.wrong_incarnation"),
        ({"counter": 1}, "link.replayed"),
        ({"counter": 3}, "link.skipped"),
        ({"prev": bytes(32)}, "link.prev_mismatch"),
        ({"time": NOW + 60_001}, "link.stale"),
        ({"time": NOW - 60_001}, "link.stale"),
    ],
)
def test_a_message_out_of_place_is_refused_by_name(change: dict[str, Any], code: str) -> None:
    sender, session = link()
    sender, envelope, header = send(sender, {})
    session = session.accept(envelope, header, now_ms=NOW)
    _, envelope, header = send(sender, {}, **change)
    with pytest.raises(VerificationError) as caught:
        session.accept(envelope, header, now_ms=NOW)
    assert caught.value.code == code


def test_a_replayed_reflected_or_relayed_message_is_refused() -> None:
    sender, session = link()
    sender, envelope, header = send(sender, {})
    after = session.accept(envelope, header, now_ms=NOW)
    with pytest.raises(VerificationError) as caught:
        after.accept(envelope, header, now_ms=NOW)
    assert caught.value.code == "link.replayed"
    with pytest.raises(VerificationError) as caught:
        replace(session, peer_address=O).accept(envelope, header, now_ms=NOW)
    assert caught.value.code == "link.wrong_sender"
    with pytest.raises(VerificationError) as caught:
        replace(session, own_address=D).accept(envelope, header, now_ms=NOW)
    assert caught.value.code == "link.wrong_addressee"


def test_a_message_swapped_for_another_breaks_the_chain() -> None:
    sender, session = link()
    after_a, _, _ = send(sender, "a")
    _, envelope_b, header_b = send(sender, "b")
    session = session.accept(envelope_b, header_b, now_ms=NOW)
    _, envelope, header = send(after_a, "next")
    with pytest.raises(VerificationError) as caught:
        session.accept(envelope, header, now_ms=NOW)
    assert caught.value.code == "link.prev_mismatch"


GOOD = link()[0].header(clock=VectorClock({1: 1}), time_ms=NOW).to_json()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"purpose": "aos.other"}, "field.range"),
        ({"network": ""}, "field.range"),
        ({"to": "0x12"}, "address.format"),
        ({"session": "AA"}, "field.range"),
        ({"counter": 0}, "field.range"),
        ({"counter": "1"}, "field.type"),
        ({"incarnation": 0}, "field.range"),
        ({"prev": ""}, "field.range"),
        ({"clock": {"1": 1}}, "clock.type"),
        ({"clock": {"1": "0"}}, "clock.format"),
        ({"time": Decimal("1.5")}, "field.type"),
        ({"time": -1}, "field.range"),
        ({"extra": 1}, "field.unknown"),
    ],
)
def test_a_bent_header_is_refused(change: dict[str, Any], code: str) -> None:
    assert LinkHeader.decode(GOOD).to_json() == GOOD
    with pytest.raises(InvalidMessage) as caught:
        LinkHeader.decode({**GOOD, **change})
    assert caught.value.code == code


@pytest.mark.parametrize("name", list(GOOD))
def test_every_header_member_is_required(name: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        LinkHeader.decode({k: v for k, v in GOOD.items() if k != name})
    assert caught.value.code == "field.missing"


SEALED = seal(
    O_KEY, id="7", method="heartbeat", params=[{"x": [1, "caf\u00e9", None]}, {"deep": {"deeper": True}}]
).encode()


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(SEALED) - 1), change=st.integers(1, 255))
def test_any_changed_byte_is_refused_or_another_signers(position: int, change: int) -> None:
    data = bytearray(SEALED)
    data[position] ^= change
    with pytest.raises(AOSError):
        open_envelope(bytes(data), expected_address=O)
    with pytest.raises(AOSError):  # a recovered stranger is not the address that is named
        open_envelope(bytes(data), expected_address=None)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [SEALED[:40], SEALED[40:], b'"signature":"', b'","signature":""}', b"{", b"}", b'\\"']
        ),
        max_size=6,
    )
)
def test_any_pieces_of_an_envelope_are_refused_by_name(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    if data != SEALED:
        with pytest.raises(AOSError):
            open_envelope(data, expected_address=O)
