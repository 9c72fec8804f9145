"""The game's rules, one attack after the other (docs/spec/13-dispute.md). Each refusal and each fault by its code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dispute_table import (
    ARITHMETIC,
    CHALLENGER,
    CLAIMANT,
    LIE,
    OTHER,
    RULES,
    T0,
    TOY,
    Table,
    liar,
    lying,
    sent,
    sham,
)
from dispute_toy import Key, Lie, Run, Toy, ToyArithmetic, ToyTrace, case_of, honest
from hypothesis import given
from hypothesis import strategies as st
from simulated_run import params

from aos.core.dispute import players, rules
from aos.core.dispute.case import check_case
from aos.core.dispute.contradiction import contradiction
from aos.core.dispute.game import apply, start
from aos.core.dispute.moves import Answer, Choose, Move, Open, Proof
from aos.core.dispute.place import Shape
from aos.core.dispute.resolution import bond_events, resolve, standing
from aos.core.merkle import leaf_hash, tree_root
from aos.core.statements import Signed
from aos.errors import AOSError, RuleViolation


def refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(AOSError) as caught:
        call()
    assert caught.value.code == code


# --- the honest paths


def test_a_lie_is_proven_at_the_one_tile_that_was_made_up() -> None:
    table = liar().play()
    assert table.fault() == ("claimant", "toy.value")
    assert table.game.node is not None
    assert table.game.node.first == LIE.index
    assert table.game.turn == 8
    verdict = table.game.verdict(table.last)
    assert (verdict.state, verdict.against, verdict.code) == ("proven", "claimant", "toy.value")


def test_a_challenge_of_the_truth_is_refuted_by_the_last_move() -> None:
    table = sham(8)
    assert table.fault() == ("challenger", "dispute.refuted")
    assert table.game.verdict(10**9).state == "proven"


@pytest.mark.parametrize("what", ["output", "trap"])
@pytest.mark.parametrize("index", [0, 39])
def test_a_state_that_is_not_the_traces_or_a_false_trap_is_proven(what: str, index: int) -> None:
    table = Table(run=lying(Lie(what=what, position=1, unit=1, index=index))).play()
    assert table.fault() == ("claimant", "toy.output")


@pytest.mark.parametrize("place", [(0, 0, 0), (3, 3, 8), (0, 3, 8), (3, 0, 0), (3, 2, 199)])
def test_first_and_last_positions_units_and_tiles(place: tuple[int, int, int]) -> None:
    position, unit, index = place
    table = Table(run=lying(Lie(what="tile", position=position, unit=unit, index=index))).play()
    assert table.fault() == ("claimant", "toy.value")


def test_a_unit_of_two_tiles_is_a_game_of_four_moves() -> None:
    toy = Toy(seed=1, n_positions=1, sizes=(1,))
    run, own = Run(toy, Lie(what="tile")), honest(toy)
    case = case_of(toy, run, CLAIMANT)
    arithmetic = ToyArithmetic(toy)
    base = liar().opening().statement
    assert isinstance(base, Open)
    opening = replace(base, claim=case.claim, position=0, unit=0, state_root=own.root, leaf=own.leaves[0])
    game = start(RULES, case, sent(CHALLENGER, opening), at=T0)
    game = apply(
        game, arithmetic, sent(CLAIMANT, players.answer(game, arithmetic, ToyTrace(run, 0, 0))), at=T0
    )
    assert len(game.children) == 2
    game = apply(game, arithmetic, sent(CHALLENGER, players.choose(game, ToyTrace(own, 0, 0))), at=T0)
    game = apply(
        game, arithmetic, sent(CLAIMANT, players.answer(game, arithmetic, ToyTrace(run, 0, 0))), at=T0
    )
    assert [f.code for f in game.faults] == ["toy.value"]
    assert game.turn == 4


@pytest.mark.parametrize("kind", ["header", "prompt", "tokens", "stop", "text", "trap"])
def test_a_game_around_the_model_is_decided_by_the_claimants_one_proof(kind: str) -> None:
    changes = {"kind": kind, "leaf": b"", "position": 0, "unit": 0}
    false = Table(run=lying(Lie(what="fact", kind=kind)), changes=changes).play()
    assert false.fault() == ("claimant", "toy.fact")
    assert false.game.turn == 2
    true = Table(own=lying(LIE), changes=changes).play()
    assert true.fault() == ("challenger", "dispute.refuted")


# --- challenges that no referee takes


OPENINGS: list[tuple[str, dict[str, Any]]] = [
    ("dispute.wrong_claim", {"claim": bytes(32)}),
    ("dispute.wrong_claim", {"network": "elsewhere"}),
    ("dispute.wrong_claim", {"claimant": OTHER.address}),
    ("dispute.wrong_claim", {"job_ref": bytes(32)}),
    ("dispute.wrong_claim", {"attempt": 2}),
    ("signature.wrong_signer", {"challenger": OTHER.address}),
    ("dispute.same_root", {"state_root": honest(TOY).root}),
    ("dispute.leaf", {"leaf": b""}),
    ("dispute.leaf", {"kind": "stop"}),
    ("dispute.no_such_place", {"position": 5}),
    ("dispute.no_such_place", {"position": 2**32 - 1}),
    ("dispute.bond", {"bond": 9}),
    ("dispute.bond", {"bond": 0}),
]


@pytest.mark.parametrize(("code", "changes"), OPENINGS)
def test_a_challenge_is_refused(code: str, changes: dict[str, Any]) -> None:
    table = Table(own=lying(LIE))
    refused(code, lambda: start(RULES, table.case, table.opening(**changes), at=T0))


def test_a_claimant_does_not_challenge_itself() -> None:
    table = Table(own=lying(LIE))
    opening = replace(table.opening().statement, challenger=CLAIMANT.address)  # type: ignore[type-var]
    refused("dispute.own_claim", lambda: start(RULES, table.case, sent(CLAIMANT, opening), at=T0))


def test_a_game_begins_with_a_challenge() -> None:
    table = sham(2)
    move = sent(CLAIMANT, players.choose(table.game, table.trace(table.own)))
    refused("dispute.move_type", lambda: start(RULES, table.case, move, at=T0))


def test_a_receipt_without_state_root_is_not_disputable() -> None:
    table = Table(own=lying(LIE))
    core = replace(table.case.core, state_root=b"")
    case = replace(table.case, core=core)
    refused(
        "dispute.not_disputable",
        lambda: start(RULES, case, table.opening(claim=case.claim), at=T0),
    )


def test_a_claim_that_its_operator_did_not_sign_is_none() -> None:
    table = Table(own=lying(LIE))
    refused(
        "signature.wrong_signer",
        lambda: check_case(replace(table.case, core=replace(table.case.core, attempt=3))),
    )


FOREIGN: list[tuple[str, dict[str, Any]]] = [
    ("manifest", {"manifest": "{}"}),
    ("params", {"params": params(), "nonce": bytes(32)}),
    ("request", {"request": "{}", "nonce": bytes(32)}),
    ("prompt_tokens", {"prompt_tokens": (1,), "nonce": bytes(32)}),
    ("tokens", {"tokens": (), "nonce": bytes(32)}),
    ("text", {"text": "", "nonce": bytes(32)}),
    ("nonce", {"text": ""}),
]


@pytest.mark.parametrize(("field_name", "changes"), FOREIGN)
def test_data_that_is_not_the_claims_is_refused_by_name(field_name: str, changes: dict[str, Any]) -> None:
    case = replace(case_of(TOY, honest(TOY), CLAIMANT), **changes)
    with pytest.raises(AOSError) as caught:
        check_case(case)
    assert (caught.value.code, caught.value.field) == ("dispute.foreign_data", field_name)


# --- moves that change nothing


def unchanged(table: Table, code: str, move: Signed[Move], *, after: int = 1) -> None:
    before = table.game
    refused(code, lambda: apply(before, ARITHMETIC, move, at=table.last + after))
    assert table.game is before
    table.play()
    assert table.game.mover is None


def test_a_move_sent_again_changes_nothing() -> None:
    table = sham(3)
    move = table.next_move()
    table.send(move)
    before = table.game
    assert (
        apply(before, ARITHMETIC, sent(CHALLENGER if before.turn % 2 else CLAIMANT, move), at=10**9) is before
    )


def test_a_move_of_another_game_is_refused() -> None:
    table = sham(1)
    move = replace(table.next_move(), game=bytes(32))  # type: ignore[call-arg]
    unchanged(table, "dispute.wrong_game", sent(CLAIMANT, move))


def test_a_move_before_its_turn_is_refused() -> None:
    table = sham(1)
    move = replace(table.next_move(), turn=3)  # type: ignore[call-arg]
    unchanged(table, "dispute.turn", sent(CLAIMANT, move))


@pytest.mark.parametrize("key", [CHALLENGER, OTHER])
def test_nobody_moves_for_the_claimant(key: Key) -> None:
    table = sham(1)
    unchanged(table, "signature.wrong_signer", sent(key, table.next_move()))


@pytest.mark.parametrize("key", [CLAIMANT, OTHER])
def test_nobody_moves_for_the_challenger(key: Key) -> None:
    table = sham(2)
    unchanged(table, "signature.wrong_signer", sent(key, table.next_move()))


def test_an_unsigned_move_is_refused() -> None:
    table = sham(1)
    move = Signed(statement=table.next_move(), signature=bytes(64) + b"\x1b")
    unchanged(table, "signature.scalar_range", move)


def test_a_move_that_does_not_follow_the_last_one_is_refused_and_convicts_nobody() -> None:
    """Who answered a challenger that signed two choices is not caught by the one that it was not shown."""
    table = sham(1)
    move = replace(table.next_move(), previous=bytes(32))  # type: ignore[call-arg]
    unchanged(table, "dispute.previous", sent(CLAIMANT, move))


def test_after_the_end_nothing_more_is_taken() -> None:
    table = sham(8)
    move = Choose(game=table.game.id, turn=7, previous=table.game.taken[-1].hash, child=0)
    refused("signature.wrong_signer", lambda: apply(table.game, ARITHMETIC, sent(CHALLENGER, move), at=T0))
    short = Table(own=lying(LIE), changes={"kind": "stop", "leaf": b""}).play()
    move = replace(move, game=short.game.id, turn=2)
    refused("dispute.over", lambda: apply(short.game, ARITHMETIC, sent(CHALLENGER, move), at=T0))


def test_an_oversized_move_or_game_is_refused_before_anything_else() -> None:
    tight = replace(RULES, max_bytes=2_000)
    table = Table(own=lying(LIE), rules=tight)
    answer = table.next_move()
    assert isinstance(answer, Answer)
    big = sent(OTHER, replace(answer, bounds=bytes(3_000)))  # not even its signature is looked at
    refused("dispute.size", lambda: apply(table.game, ARITHMETIC, big, at=T0))
    refused("dispute.size", lambda: apply(table.game, ARITHMETIC, sent(CLAIMANT, answer), at=T0))
    refused("dispute.size", lambda: Table(own=lying(LIE), rules=replace(RULES, max_bytes=300)))


# --- faults


def answered(turn: int, change: Callable[[Answer], Answer]) -> tuple[str, str]:
    """The fault of an honest claimant's answer in ``turn``, changed."""
    table = sham(turn)
    move = table.next_move()
    assert isinstance(move, Answer)
    return table.send(change(move)).fault()


ANSWERS: list[tuple[str, int, Callable[[Answer], Answer]]] = [
    ("dispute.place", 1, lambda a: replace(a, position=a.position + 1)),
    ("dispute.place", 1, lambda a: replace(a, unit=a.unit - 1)),
    ("dispute.place", 3, lambda a: replace(a, claim=bytes(32))),
    ("dispute.place", 3, lambda a: replace(a, claimant=OTHER.address)),
    ("toy.format", 1, lambda a: replace(a, bounds=b"")),
    ("toy.header", 1, lambda a: replace(a, bounds=a.bounds.replace(b'text\\":\\"', b'text\\":\\"x'))),
    ("dispute.children_length", 1, lambda a: replace(a, children=a.children[:-1])),
    ("dispute.children_count", 1, lambda a: replace(a, children=a.children[:-32])),
    ("dispute.children_count", 1, lambda a: replace(a, children=b"")),
    ("dispute.children_count", 3, lambda a: replace(a, children=a.children + bytes(32))),
    ("dispute.children_root", 1, lambda a: replace(a, children=bytes(32) + a.children[32:])),
    ("dispute.children_root", 1, lambda a: replace(a, unit_root=bytes(32))),
    ("dispute.children_root", 3, lambda a: replace(a, children=a.children[32:] + a.children[:32])),
    ("dispute.unit_root", 3, lambda a: replace(a, unit_root=bytes(32))),
    ("dispute.bounds", 5, lambda a: replace(a, bounds=b"again")),
]


@pytest.mark.parametrize(("code", "turn", "change"), ANSWERS, ids=lambda value: str(value)[:24])
def test_a_broken_answer_convicts_the_claimant_who_signed_it(
    code: str, turn: int, change: Callable[[Answer], Answer]
) -> None:
    assert answered(turn, change) == ("claimant", code)


PROOFS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("toy.format", lambda p: b""),
    ("toy.format", lambda p: p[:-1]),
    ("toy.trace", lambda p: p.replace(b'"value":"', b'"value":"00', 1)),
]


@pytest.mark.parametrize(("code", "change"), PROOFS)
def test_a_broken_proof_convicts_the_claimant(code: str, change: Callable[[bytes], bytes]) -> None:
    table = sham(7)
    move = table.next_move()
    assert isinstance(move, Proof)
    assert table.send(replace(move, proof=change(move.proof))).fault() == ("claimant", code)


@pytest.mark.parametrize("run", [honest(TOY), lying(Lie(what="tile", position=0, unit=0))])
def test_operands_of_the_wrong_position_or_root_convict(run: Run) -> None:
    """The liar proves the same tile of another position, or of another run: both open, neither belongs here."""
    table = liar().play(7)
    position = 1 if run is honest(TOY) else 2
    node = table.game.node
    assert node is not None
    proof = ToyTrace(run, position, 2).prove(node.first)
    move = replace(table.next_move(), proof=proof)  # type: ignore[call-arg]
    party, code = table.send(move).fault()
    assert (party, code.partition(".")[0]) == ("claimant", "toy")


def test_a_choice_beyond_the_children_loses() -> None:
    table = sham(2)
    move = replace(table.next_move(), child=len(table.game.children))  # type: ignore[call-arg]
    assert table.send(move).fault() == ("challenger", "dispute.child")


@pytest.mark.parametrize("turn", range(1, 8))
def test_a_move_of_another_kind_than_the_game_waits_for_loses(turn: int) -> None:
    table = sham(turn)
    head: dict[str, Any] = {
        "game": table.game.id,
        "turn": turn,
        "previous": table.game.taken[-1].hash,
    }
    wrong: Move = Choose(**head, child=0) if table.game.mover == "claimant" else Proof(**head, proof=b"")
    mover = table.game.mover
    assert table.send(wrong).fault() == (mover, "dispute.move_type")


def test_a_leaf_that_the_claim_commits_itself_is_no_challenge() -> None:
    table = Table(own=lying(LIE), changes={"leaf": honest(TOY).leaves[honest(TOY).place(2, 2) - 1]})
    assert table.play().fault() == ("challenger", "dispute.same_leaf")


@pytest.mark.parametrize("changes", [{"unit": 4}, {"unit": 2**32 - 1}, {"position": 4}])
def test_a_unit_that_does_not_exist_is_no_challenge(changes: dict[str, int]) -> None:
    """Position n_prompt + n_out - 1 may exist where a run traps; the header says whether it does."""
    table = Table(own=lying(LIE), changes=changes | {"leaf": bytes(32)})
    assert table.play().fault() == ("challenger", "dispute.no_such_place")


# --- contradictions


@pytest.mark.parametrize("turn", range(8))
@pytest.mark.parametrize("when", ["at once", "after the end"])
def test_two_different_moves_for_one_turn_convict_their_author(turn: int, when: str) -> None:
    table = sham(8)
    moves: list[Move] = []
    again = Table(own=lying(LIE))
    moves.append(again.opening().statement)
    while again.game.mover is not None:
        moves.append(again.next_move())
        again.send(moves[-1])
    if when == "at once":
        table = sham(turn + 1)
    first = moves[turn]
    other: Any
    if isinstance(first, Open):
        other = replace(first, bond=11)
    elif isinstance(first, Answer):
        other = replace(first, unit_root=bytes(32))
    elif isinstance(first, Choose):
        other = replace(first, child=first.child ^ 1)
    else:
        other = replace(first, proof=b"")
    author = "claimant" if turn % 2 else "challenger"
    before = len(table.game.faults)
    table.send(other, CLAIMANT if turn % 2 else CHALLENGER)
    codes = {fault.party: fault.code for fault in table.game.faults}
    if before and author == "challenger":
        assert codes == {"challenger": "dispute.refuted"}  # it has lost already
    else:
        assert codes[author] == "dispute.contradiction"
    assert table.game.mover is None
    found = contradiction(sent(Key(author), first), sent(Key(author), other), address=Key(author).address)
    assert found.code in ("dispute.contradiction", "dispute.two_unit_roots")


def test_nobody_contradicts_another() -> None:
    table = sham(3)
    move = Choose(game=table.game.id, turn=2, previous=table.game.taken[1].hash, child=5)
    for key in (CLAIMANT, OTHER):
        refused(
            "signature.wrong_signer", lambda key=key: apply(table.game, ARITHMETIC, sent(key, move), at=T0)
        )


def test_both_may_lose_one_game() -> None:
    table = sham(8)
    table.send(
        replace(Proof(game=table.game.id, turn=7, previous=table.game.taken[6].hash, proof=b"x")), CLAIMANT
    )
    assert {fault.party for fault in table.game.faults} == {"claimant", "challenger"}
    assert table.game.verdict(T0).against == "claimant"
    assert [event.event for event in bond_events(table.game, T0)] == ["locked", "burnt"]


def test_two_unit_roots_for_one_place_convict_across_games() -> None:
    answer = sham(1).next_move()
    assert isinstance(answer, Answer)
    other = replace(answer, game=leaf_hash(b"another challenger's"), unit_root=bytes(32))
    pair = sent(CLAIMANT, answer), sent(CLAIMANT, other)
    assert contradiction(*pair, address=CLAIMANT.address).code == "dispute.two_unit_roots"
    for harmless in (
        replace(other, unit_root=answer.unit_root),
        replace(other, unit=answer.unit - 1),
        replace(other, claim=bytes(32)),
        replace(other, position=0),
    ):
        refused(
            "dispute.no_contradiction",
            lambda harmless=harmless: contradiction(
                pair[0], sent(CLAIMANT, harmless), address=CLAIMANT.address
            ),
        )
    refused("signature.wrong_signer", lambda: contradiction(*pair, address=OTHER.address))


def test_a_challenge_with_another_state_root_than_ones_own_receipt_convicts() -> None:
    table = Table(own=lying(LIE))
    opening = table.opening()
    own = case_of(TOY, lying(LIE), CHALLENGER)
    receipt = Signed(statement=own.core, signature=own.signature)
    refused("dispute.no_contradiction", lambda: contradiction(opening, receipt, address=CHALLENGER.address))
    other = case_of(TOY, lying(Lie(what="tile")), CHALLENGER)
    untrue = Signed(statement=other.core, signature=other.signature)
    for pair in ((opening, untrue), (untrue, opening), (receipt, untrue)):
        assert contradiction(*pair, address=CHALLENGER.address).code == "dispute.two_state_roots"


# --- clocks


@pytest.mark.parametrize("turn", range(1, 8))
def test_silence_defaults_one_tick_after_the_deadline_and_convicts_nobody(turn: int) -> None:
    table = sham(turn)
    deadline = table.game.deadline
    assert deadline == table.last + 1_100
    assert table.game.verdict(deadline).state == "open"
    late = table.game.verdict(deadline + 1)
    assert (late.state, late.against, late.code) == ("defaulted", table.game.mover, "dispute.silent")
    assert table.game.faults == ()


@pytest.mark.parametrize("turn", range(1, 8))
def test_a_late_valid_move_cures(turn: int) -> None:
    table = sham(turn)
    table.send(table.next_move(), after=50_000)
    assert table.play().fault() == ("challenger", "dispute.refuted")


def test_grace_is_free_and_what_is_longer_is_the_movers_budget() -> None:
    table = sham(1)
    table.send(table.next_move(), after=100)
    assert table.game.spent == (0, 0)
    table.send(table.next_move(), after=700)
    assert table.game.spent == (0, 600)
    table.send(table.next_move(), after=1_100)
    assert table.game.spent == (1_000, 600)
    assert table.game.deadline == table.last + 100 + 400
    table.send(table.next_move(), after=1)
    assert table.game.deadline == table.last + 100


def test_what_is_late_when_the_window_closes_stays_late() -> None:
    table = sham(3)
    move = sent(CLAIMANT, table.next_move())
    assert table.game.closes == T0 + 100_000
    assert apply(table.game, ARITHMETIC, move, at=T0 + 99_999).turn == 4
    refused("dispute.late", lambda: apply(table.game, ARITHMETIC, move, at=T0 + 100_000))
    assert table.game.verdict(T0 + 100_000).state == "defaulted"


def test_a_contradiction_is_never_too_late() -> None:
    table = sham(3)
    move = Choose(game=table.game.id, turn=2, previous=table.game.taken[1].hash, child=5)
    table.game = apply(table.game, ARITHMETIC, sent(CHALLENGER, move), at=10**12)
    assert table.fault() == ("challenger", "dispute.contradiction")


def test_on_a_clock_that_all_can_check_silence_convicts_and_nothing_cures_it() -> None:
    table = Table(own=lying(LIE), rules=replace(RULES, silence_convicts=True)).play(3)
    deadline = table.game.deadline
    assert deadline is not None
    verdict = table.game.verdict(deadline + 1)
    assert (verdict.state, verdict.against) == ("proven", "claimant")
    move = sent(CLAIMANT, table.next_move())
    assert apply(table.game, ARITHMETIC, move, at=deadline).turn == 4
    refused("dispute.late", lambda: apply(table.game, ARITHMETIC, move, at=deadline + 1))


def test_a_proven_fault_does_not_depend_on_any_clock() -> None:
    slow, quick = liar(), liar()
    while slow.game.mover is not None:
        slow.send(slow.next_move(), after=14_000)
    quick.play()
    assert slow.game.faults == quick.game.faults
    assert {slow.game.verdict(t).state for t in (0, T0, 10**12)} == {"proven"}


# --- bonds and resolution


def bonds(table: Table, now: int) -> list[tuple[str, str, int]]:
    return [(event.event, event.party, event.units) for event in bond_events(table.game, now)]


def test_bonds_go_back_to_who_was_right_and_to_the_claimant_else() -> None:
    lock = ("locked", CHALLENGER.address, 10)
    assert bonds(liar().play(), T0) == [lock, ("returned", CHALLENGER.address, 10)]
    assert bonds(sham(8), T0) == [lock, ("forfeited", CLAIMANT.address, 10)]
    assert bonds(sham(3), T0) == [lock]
    assert bonds(sham(3), T0 + 50_000) == [lock]  # late, but it can still move
    assert bonds(sham(3), T0 + 100_000) == [lock, ("returned", CHALLENGER.address, 10)]
    assert bonds(sham(4), T0 + 100_000) == [lock, ("forfeited", CLAIMANT.address, 10)]


def test_a_bond_doubles_with_each_open_game_at_most_four_times() -> None:
    assert [rules.required_bond(RULES, n) for n in (-1, 0, 1, 2, 4, 5, 100)] == [
        10,
        10,
        20,
        40,
        160,
        160,
        160,
    ]
    table = Table(own=lying(LIE))
    refused("dispute.bond", lambda: start(RULES, table.case, table.opening(), at=T0, bond=20))


def test_a_sham_that_loses_on_purpose_makes_no_liar_right() -> None:
    """One game lost by its challenger, one won by another: the claim is convicted, in whatever order they end."""
    lost = Table(run=lying(LIE), changes={"leaf": lying(LIE).leaves[lying(LIE).place(2, 2) - 1]})
    lost.play()
    assert lost.fault() == ("challenger", "dispute.same_leaf")
    won = liar().play()
    assert standing([lost.game], T0) == "stands"
    for games in ([lost.game, won.game], [won.game, lost.game]):
        assert standing(games, T0) == "convicted"
        result = resolve({won.case.claim: won.run.root, b"honest": honest(TOY).root}, games, T0)
        assert result.state_root == honest(TOY).root


def test_there_is_no_result_while_a_game_is_open_or_two_roots_stand() -> None:
    table = liar().play(3)
    claims = {table.case.claim: table.run.root, b"honest": honest(TOY).root}
    assert resolve(claims, [table.game], table.last).state_root is None
    assert resolve(claims, [], T0).state_root is None
    late = resolve(claims, [table.game], T0 + 50_000)
    assert late.standing[table.case.claim] == "withheld"
    assert late.state_root == honest(TOY).root
    table.play()
    assert resolve(claims, [table.game], table.last).state_root == honest(TOY).root
    assert resolve(claims, [], T0, contradicted={b"honest"}).state_root == table.run.root
    assert resolve(claims, [table.game], T0, contradicted={b"honest"}).state_root is None


# --- the table, the tree


def test_the_table_is_the_specifications() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/spec/13-dispute.md").read_text("utf-8")
    written = re.search(r"^\| waits for \| event \| then \|\n.*?(?=\n\n)", page, re.M | re.S)
    assert written is not None
    assert written.group(0) == rules.markdown_table()


def test_what_the_table_does_not_have_is_refused() -> None:
    stages = {stage for stage, _ in rules.TABLE} | set(rules.TABLE.values())
    events = {event for _, event in rules.TABLE}
    for stage in stages:
        for event in events:
            if (stage, event) in rules.TABLE:
                assert rules.next_stage(stage, event) == rules.TABLE[stage, event]
            else:
                with pytest.raises(RuleViolation, match=r"dispute\.transition"):
                    rules.next_stage(stage, event)
    assert {source for source, target in rules.TABLE.items() if target == "over" and source[0] != "over"}
    assert all(rules.MOVER[stage] for stage in stages - {"over"})


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_every_descent_of_a_tree_ends_at_each_tile_once(fanout: list[int], data: st.DataObject) -> None:
    most = 1
    for width in fanout:
        most *= width
    n_tiles = data.draw(st.integers(1, most))
    shape = Shape(n_tiles, tuple(fanout))
    hashes = [leaf_hash(bytes([n])) for n in range(n_tiles)]

    def tiles(node: Any) -> list[int]:
        if shape.is_tile(node):
            assert node.count == 1
            return [node.first]
        children = [shape.child(node, index) for index in range(shape.width(node))]
        assert shape.hash(node, hashes) == tree_root([shape.hash(child, hashes) for child in children])
        return [tile for child in children for tile in tiles(child)]

    assert tiles(shape.root) == list(range(n_tiles))


@pytest.mark.parametrize(
    ("n_tiles", "fanout"),
    [
        (0, (1,)),
        (2, (1,)),
        (257, (257,)),
        (5, ()),
        (1, (1, 1, 1, 1)),
        (1, (0,)),
        (2**24 + 1, (256, 256, 256)),
    ],
)
def test_a_tree_of_another_shape_is_none(n_tiles: int, fanout: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no tree"):
        Shape(n_tiles, fanout)


def test_rules_that_allow_less_than_the_arithmetics_tree_decide_nothing() -> None:
    for tight in (replace(RULES, levels=2), replace(RULES, width=4)):
        table = Table(own=lying(LIE), rules=tight)
        refused("dispute.shape", lambda table=table: table.send(table.next_move()))
        assert table.game.faults == ()


# --- players


def test_a_party_does_not_move_out_of_turn_and_does_not_choose_where_nothing_differs() -> None:
    table = sham(2)
    refused("dispute.stage", lambda: players.answer(table.game, ARITHMETIC, table.trace(table.run)))
    refused("dispute.stage", lambda: players.prove(table.game, b""))
    refused("dispute.no_difference", lambda: players.choose(table.game, table.trace(table.run)))
    refused("dispute.stage", lambda: players.choose(sham(3).game, table.trace(table.own)))
