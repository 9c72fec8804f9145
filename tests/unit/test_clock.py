"""Vector clocks, the causal state of a node, and what is evidence."""

import json
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.core.clock import MAX_NODES, ClockState, MessageFacts, VectorClock, equivocation
from aos.errors import AOSError, InvalidMessage, VerificationError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/aos/clock/clock.json").read_text())
CLOCKS = st.dictionaries(st.integers(1, 5), st.integers(1, 4), max_size=5).map(VectorClock)


@pytest.mark.parametrize("case", VECTORS["decode"], ids=lambda c: repr(c["value"])[:40])
def test_decode_vectors(case: dict[str, Any]) -> None:
    if case["error"] is None:
        assert VectorClock.decode(case["value"]).to_json() == case["value"]
    else:
        with pytest.raises(InvalidMessage) as caught:
            VectorClock.decode(case["value"])
        assert caught.value.code == case["error"]


def _facts(m: dict[str, Any]) -> MessageFacts:
    return MessageFacts(
        sender=m["sender"],
        incarnation=m["incarnation"],
        counter=m["counter"],
        digest=bytes.fromhex(m["digest"]),
        clock=VectorClock.decode(m["clock"]),
    )


@pytest.mark.parametrize("case", VECTORS["observe"], ids=lambda c: c["name"])
def test_observe_vectors(case: dict[str, Any]) -> None:
    state = ClockState(node=case["node"], incarnation=1)
    for _ in range(case["signed"]):
        state = state.sign()
    *before, last = case["messages"]
    for m in before:
        state = state.observe(_facts(m), gapless=m["gapless"], relayed=m["relayed"])
    if case["error"] is None:
        state = state.observe(_facts(last), gapless=last["gapless"], relayed=last["relayed"])
        assert state.clock.to_json() == case["clock"]
        assert ClockState.decode(json.loads(json.dumps(state.to_json()))) == state
    else:
        with pytest.raises(VerificationError) as caught:
            state.observe(_facts(last), gapless=last["gapless"], relayed=last["relayed"])
        assert caught.value.code == case["error"]


def test_the_clock_is_shown_as_in_the_guide() -> None:
    clock = VectorClock().tick(1).tick(1)
    assert clock.to_json() == {"1": "2"}
    assert list(VectorClock({10: 1, 2: 1}).to_json()) == ["2", "10"]


@given(CLOCKS, CLOCKS)
def test_any_two_clocks_stand_in_exactly_one_relation(a: VectorClock, b: VectorClock) -> None:
    assert [a == b, a.happens_before(b), b.happens_before(a), a.concurrent_with(b)].count(True) == 1
    merged = a.merge(b)
    assert merged == b.merge(a)
    assert all(c == merged or c.happens_before(merged) for c in (a, b))
    assert a.happens_before(a.tick(3))


def test_concurrent_clocks_are_in_no_order() -> None:
    a, b = VectorClock({1: 2, 2: 1}), VectorClock({1: 1, 2: 2})
    assert a.concurrent_with(b)
    assert not a.happens_before(b)
    assert not a.happens_before(a)


@pytest.mark.parametrize("counts", [{0: 1}, {1: 0}, {-1: 1}, {1: 2**53}, {2**31 + 1: 1}])
def test_counts_and_nodes_are_in_range(counts: dict[int, int]) -> None:
    with pytest.raises(InvalidMessage) as caught:
        VectorClock(counts)
    assert caught.value.code == "clock.range"


def test_a_clock_is_bounded() -> None:
    with pytest.raises(InvalidMessage) as caught:
        VectorClock.decode({str(i): "1" for i in range(1, MAX_NODES + 2)})
    assert caught.value.code == "clock.too_large"


def test_states_and_clocks_do_not_change_in_place() -> None:
    state = ClockState(node=1, incarnation=1)
    after = state.sign()
    assert (state.clock[1], after.clock[1]) == (0, 1)
    assert not state.own_signed
    seen = after.observe(
        MessageFacts(sender=2, incarnation=1, counter=1, digest=bytes(32), clock=VectorClock({2: 1}))
    )
    assert after.seen == {}
    assert seen.seen[2].counter == 1


def test_a_conversation_of_two_real_states() -> None:
    d, o = ClockState(node=1, incarnation=1), ClockState(node=2, incarnation=1)
    for turn in range(1, 6):
        d = d.sign()
        call = MessageFacts.of(sender=1, incarnation=1, digest=bytes([turn]) * 32, clock=d.clock)
        o = o.observe(call, gapless=False, relayed=True).sign()
        reply = MessageFacts.of(sender=2, incarnation=1, digest=bytes([100 + turn]) * 32, clock=o.clock)
        assert call.clock.happens_before(reply.clock)
        d = d.observe(reply)
    assert d.clock.to_json() == {"1": "5", "2": "5"}
    assert o.clock == d.clock


def facts(**change: Any) -> MessageFacts:
    base: dict[str, Any] = {
        "sender": 2, "incarnation": 1, "counter": 4, "digest": bytes(32), "clock": VectorClock({2: 4}),
    }  # fmt: skip
    return MessageFacts(**{**base, **change})


def test_two_messages_under_one_number_are_evidence_whatever_their_clocks() -> None:
    other = facts(digest=b"\1" * 32, clock=VectorClock({1: 1, 2: 4}))
    found = equivocation(facts(), other)
    assert (found.sender, found.incarnation, found.counter) == (2, 1, 4)
    assert equivocation(other, facts()) == found


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sender": 3, "digest": b"\1" * 32},
        {"incarnation": 2, "digest": b"\1" * 32},
        {"counter": 5, "digest": b"\1" * 32},
    ],
)
def test_nothing_else_is_evidence(change: dict[str, Any]) -> None:
    with pytest.raises(VerificationError) as caught:
        equivocation(facts(), facts(**change))
    assert caught.value.code == "clock.no_equivocation"


@pytest.mark.parametrize("change", [{"digest": b""}, {"incarnation": 0}])
def test_facts_without_digest_or_incarnation_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as caught:
        ClockState(node=1, incarnation=1).observe(facts(**change))
    assert caught.value.code == "clock.range"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("node", 0),
        ("incarnation", "1"),
        ("clock", {"1": 1}),
        ("own_signed", 1),
        ("own_named", None),
        ("seen", {"02": {}}),
        ("seen", {"2": {}}),
    ],
)
def test_a_bent_stored_state_is_refused(name: str, value: Any) -> None:
    stored = {**ClockState(node=1, incarnation=1).to_json(), name: value}
    with pytest.raises(AOSError):
        ClockState.decode(stored)


def test_a_node_begins_again_only_in_a_higher_incarnation() -> None:
    state = replace(ClockState(node=2, incarnation=4).sign(), own_named=True)
    again = state.reopened(5)
    assert (again.clock[2], again.own_signed, again.own_named) == (1, True, False)
    for incarnation in (0, 3, 4, 2**31 + 1):
        with pytest.raises(InvalidMessage) as caught:
            state.reopened(incarnation)
        assert caught.value.code == "clock.range"


def test_the_last_number_is_not_used_twice() -> None:
    state = ClockState(node=2, incarnation=1, clock=VectorClock({2: 2**53 - 2})).sign()
    assert state.clock[2] == 2**53 - 1
    with pytest.raises(InvalidMessage) as caught:
        state.sign()
    assert caught.value.code == "clock.range"


@dataclass
class Party:
    """A node of the model below: its state, what is stored of it, and its links, first in first out."""

    state: ClockState
    stored: ClockState
    inbox: deque[MessageFacts]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["say", "hear", "restart", "lose"]), st.integers(1, 3)), max_size=60)
)
def test_honest_nodes_never_refuse_each_other(moves: list[tuple[str, int]]) -> None:
    """Operators and the dispatcher talk in any interleaving, restart, and lose their state; nobody lies, nobody is refused."""
    parties = {
        n: Party(ClockState(node=n, incarnation=1), ClockState(node=n, incarnation=1), deque())
        for n in (1, 2, 3, 4)
    }
    numbers: set[tuple[int, int, int]] = set()
    digest = 0

    def say(sender: int, receiver: int) -> None:
        nonlocal digest
        party = parties[sender]
        party.state = party.state.sign()
        party.stored = party.state
        digest += 1
        facts = MessageFacts.of(
            sender=sender,
            incarnation=party.state.incarnation,
            digest=digest.to_bytes(32, "big"),
            clock=party.state.clock,
        )
        number = (facts.sender, facts.incarnation, facts.counter)
        assert number not in numbers
        numbers.add(number)
        parties[receiver].inbox.append(facts)

    def hear(receiver: int) -> None:
        party = parties[receiver]
        if party.inbox:
            facts = party.inbox.popleft()
            party.state = party.state.observe(facts, gapless=False, relayed=facts.sender == 1)
            assert not party.state.clock.happens_before(VectorClock({facts.sender: facts.counter}))
            assert party.state.clock[facts.sender] >= facts.counter

    for move, number in moves:
        operator = number + 1
        if move == "say":
            say(operator, 1)
            say(1, operator)
        elif move == "hear":
            hear(1)
            hear(operator)
        else:
            # A broken session: what was under way on this operator's link is lost on both sides.
            party = parties[operator]
            party.inbox.clear()
            parties[1].inbox = deque(f for f in parties[1].inbox if f.sender != operator)
            incarnation = party.state.incarnation + 1
            if move == "restart":
                party.state = party.stored.reopened(incarnation)
            else:
                party.state = ClockState(node=operator, incarnation=incarnation)
    for receiver, party in parties.items():
        while party.inbox:
            hear(receiver)
