"""The game over the real trace: whatever a claimant alters in a real run, one opened tile shows it; an honest claim holds.

Tiny models of every shape that matters (grouped queries, tied and Q6_K output, biases, head norms, partial rotation, F16).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from dispute_real import (
    RULES,
    Job,
    Liar,
    PlayedReal,
    case_of,
    false_trap,
    first_difference,
    hidden_trap,
    honest_run,
    lies_of,
    play,
)
from dispute_toy import Key

from aos.core.codec import encode
from aos.core.dispute import players
from aos.core.dispute.fine.around import prove_header, prove_trap
from aos.core.dispute.fine.referee import Canonical
from aos.core.dispute.game import apply, start
from aos.core.dispute.moves import MAX_GAME_BYTES, Answer, Move, Open, Proof
from aos.core.dispute.transcript import Judgement, judge, transcript_of, write_transcript
from aos.core.encoding import b64u_decode, canonical_json, tagged_hash
from aos.core.signing import sign_statement
from aos.core.statements import Signed, sign

FUZZED = int(os.environ.get("AOS_FUZZED_PROOFS", "60"))
GREEDY = Job("tiny-q4_0", temperature=0)
SAMPLED = Job("tiny-q4_0", top_k=40, min_p=1_000, repeat_penalty=1_200_000)
JOBS = [
    GREEDY,
    SAMPLED,
    Job("tiny-q6_k"),
    Job("tiny-q8_0", top_k=20),
    Job("tiny-f16"),
    Job("tiny-qwen2"),
    Job("tiny-qwen3"),
    Job("tiny-llama-2"),
    Job("tiny-mixed"),
]


def transcript(played: PlayedReal) -> bytes:
    return write_transcript(transcript_of(RULES, played.case, played.moves, judged_at=100))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.model}-{job.temperature}")
def test_random_lies_are_proven_and_shams_are_refuted(job: Job) -> None:
    ends = lies_of(job, range(8))
    assert ends["sham: dispute.refuted"] >= 7
    assert sum(ends.values()) > ends["sham: dispute.refuted"]


@pytest.mark.parametrize("unit", [0, 1, 2, 3])
def test_a_lie_at_any_kind_of_op_is_proven_at_the_tile_where_it_was_told(unit: int) -> None:
    """At the last position of a sampled run; a lie that the next quantisation swallows is none."""
    run = honest_run(SAMPLED)
    position = run.known.tree.header.n_positions - 1
    trace = run.trace(position, unit)
    codes: Counter[str] = Counter()
    told = set()
    for op in trace.shape.ops[:-1]:
        for tile in {0, op.grid.tiles - 1}:
            liar = Liar(run, position, unit, op.first + tile)
            if not liar.lies:
                continue
            played = play(liar.run, run, liar.trace())
            (fault,) = played.game.faults
            assert fault.party == "claimant"
            node = played.game.node
            assert node is not None
            # A lie that leaves nothing but ones of the record contradicts the cuts, which are read from it, too.
            cuts = [each.first for each in trace.shape.ops if each.name == "cuts"]
            assert node.first in (op.first + tile, *cuts), op.name
            assert played.game.size <= MAX_GAME_BYTES
            codes[fault.code] += 1
            told.add(op.name)
    assert set(codes) <= {"tile.value", "tile.cut", "tile.commitment"}
    assert len(told) >= {0: 1, 1: 8, 2: 8, 3: 5}[unit], told


@pytest.mark.parametrize("how", ["late", "output"])
def test_a_state_root_that_is_not_the_shown_traces_is_proven(how: str) -> None:
    run = honest_run(GREEDY)
    trace = run.trace(1, 1)
    op = trace.shape.named("residual")
    liar = Liar(run, 1, 1, op.first, how)
    assert liar.lies
    (fault,) = play(liar.run, run, liar.trace()).game.faults
    assert (fault.party, fault.code) == (
        "claimant",
        {"late": "tile.value", "output": "tile.commitment"}[how],
    )


@pytest.mark.parametrize(("position", "unit", "op"), [(0, 0, 1), (1, 1, 3), (2, 2, 10), (1, 3, 21)])
def test_a_trap_that_did_not_happen_is_proven(position: int, unit: int, op: int) -> None:
    run = honest_run(GREEDY)
    false, trace = false_trap(run, position, unit, op)
    (fault,) = play(false, run, trace).game.faults
    assert (fault.party, fault.code) == ("claimant", "tile.trap")


def test_a_trap_that_was_kept_quiet_is_proven_and_a_true_one_holds() -> None:
    trapped = honest_run(Job("tiny-trap", prompt="is it so? yes"))
    quiet, trace = hidden_trap(trapped)
    (fault,) = play(quiet, trapped, trace).game.faults
    assert (fault.party, fault.code) == ("claimant", "tile.trap")
    position = trapped.known.tree.header.n_positions - 1
    assert trapped.known.trap is not None
    unit = trapped.known.trap[0]
    sham = play(
        trapped, trapped, trapped.trace(position, unit), at=(position, unit, bytes(32)), choices=Random(1)
    )
    assert [(f.party, f.code) for f in sham.game.faults] == [("challenger", "dispute.refuted")]


def test_every_choice_of_a_sham_is_answered() -> None:
    """Each tile of a layer of an honest claim, once."""
    run = honest_run(SAMPLED)
    trace = run.trace(2, 1)

    class Fixed(Random):
        def randrange(self, *_: int) -> int:  # type: ignore[override]
            return self.tile

        tile = 0

    for tile in range(0, trace.shape.n_tiles, 7):
        choices = Fixed()
        choices.tile = tile
        played = play(run, run, trace, at=(2, 1, bytes(32)), choices=choices)
        assert [f.code for f in played.game.faults] == ["dispute.refuted"]


# --- judged by a stranger


def proven() -> PlayedReal:
    run = honest_run(SAMPLED)
    liar = Liar(run, 2, 1, run.trace(2, 1).shape.named("residual").first)
    return play(liar.run, run, liar.trace())


def test_a_fresh_process_without_any_model_file_confirms_who_lied(tmp_path: Path) -> None:
    (tmp_path / "game.json").write_bytes(transcript(proven()))
    done = subprocess.run(
        [Path(sys.executable).with_name("aos"), "referee", "game.json", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 10, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["state"] == "CONVICTED"
    assert result["verdict"]["against"] == "claimant"
    assert result["verdict"]["code"] == "tile.value"


@pytest.mark.parametrize("member", ["manifest", "params", "nonce"])
def test_what_was_not_disclosed_cannot_be_judged_and_convicts_nobody(member: str) -> None:
    played = proven()
    case = replace(played.case, **{member: {"manifest": "", "params": None, "nonce": b""}[member]})
    if member == "nonce":
        case = replace(case, params=None)
    data = write_transcript(transcript_of(RULES, case, played.moves, judged_at=100))
    found = judge(data, Canonical())
    assert (found.state, found.checks[-2 if found.verdict else -1].status) == ("UNDECIDED", "SKIP")
    assert any("dispute.undisclosed" in check.text for check in found.checks)


def relabelled(member: str, value: object) -> Judgement:
    """The proven game, about a model whose manifest says something that this referee does not know."""
    played = proven()
    manifest = json.loads(played.case.manifest) | {member: value}
    text = canonical_json(manifest).decode()
    core = replace(played.case.core, model_id=tagged_hash("model", text.encode()))
    claimant, challenger = Key("real claimant"), Key("real challenger")
    signature = b64u_decode(sign_statement(claimant.secret, encode(core)))
    case = replace(played.case, manifest=text, core=core, signature=signature)
    opening = played.moves[0][0].statement
    assert isinstance(opening, Open)
    first = sign(challenger.secret, replace(opening, claim=case.claim))
    answer = played.moves[1][0].statement
    assert isinstance(answer, Answer)
    game = start(RULES, case, first, at=0)
    second = sign(claimant.secret, replace(answer, game=game.id, claim=case.claim, previous=first.hash))
    moves: list[tuple[Signed[Move], int]] = [(first, 0), (second, 1)]
    return judge(write_transcript(transcript_of(RULES, case, moves, judged_at=100)), Canonical())


@pytest.mark.parametrize(("member", "value"), [("arithmetic", 2), ("v", 3), ("quantum", True)])
def test_a_model_of_an_unknown_version_is_nobodys_fault(member: str, value: object) -> None:
    found = relabelled(member, value)
    assert (found.state, found.checks[-1].status) == ("UNDECIDED", "SKIP")
    assert "dispute.unknown_model" in found.checks[-1].text


def test_games_around_the_model_are_played_and_judged_the_same_way() -> None:
    run = honest_run(SAMPLED)
    liar = Liar(run, 2, 1, run.trace(2, 1).shape.named("residual").first)
    claimant, challenger = Key("real claimant"), Key("real challenger")
    case = case_of(run, claimant)
    base = play(run, liar.run, run.trace(2, 1), choices=Random(1)).moves[0][0].statement
    assert isinstance(base, Open)
    proofs = {"header": prove_header(run.known.tree), "trap": prove_trap(run.known.tree, None)}
    for kind in ("header", "trap", "prompt"):
        first = sign(challenger.secret, replace(base, kind=kind, leaf=b"", position=0, unit=0))
        game = start(RULES, case, first, at=0)
        for proof, state in ((proofs.get(kind, b""), "REFUTED"), (b"", "CONVICTED")):
            second = sign(claimant.secret, players.prove(game, proof))
            transcript = transcript_of(RULES, case, [(first, 0), (second, 1)], judged_at=2)
            found = judge(write_transcript(transcript), Canonical())
            # Without a tokenizer nothing can be said about the prompt.
            assert found.state == ("UNDECIDED" if kind == "prompt" else state), kind


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("n_out", 3),
        ("finish_reason", "stop"),
        ("sampling_seed", "4"),
        ("tokens_hash", bytes(32)),
        ("response_hash", bytes(32)),
        ("prompt_tokens_hash", bytes(32)),
    ],
)
def test_a_receipt_that_says_something_else_than_its_state_root_convicts(member: str, value: object) -> None:
    """The claimant signed both; the first answer opens the header, whatever the game is about."""
    claimant, challenger = Key("real claimant"), Key("real challenger")
    run = honest_run(SAMPLED)
    liar = Liar(run, 2, 1, run.trace(2, 1).shape.named("residual").first)
    genuine = case_of(liar.run, claimant)
    core = replace(genuine.core, **{member: value})
    case = replace(genuine, core=core, signature=b64u_decode(sign_statement(claimant.secret, encode(core))))
    position, unit, leaf = first_difference(liar.run, run)
    opening = Open(
        network=core.network,
        challenger=challenger.address,
        claimant=claimant.address,
        claim=case.claim,
        job_ref=core.job_ref,
        attempt=core.attempt,
        kind="unit",
        position=position,
        unit=unit,
        state_root=run.root,
        leaf=leaf,
        bond=1,
    )
    game = start(RULES, case, sign(challenger.secret, opening), at=0)
    shown = start(RULES, genuine, sign(challenger.secret, replace(opening, claim=genuine.claim)), at=0)
    answer = players.answer(shown, Canonical(), liar.trace())
    moved = replace(answer, game=game.id, claim=case.claim, previous=game.taken[-1].hash)  # type: ignore[call-arg]
    game = apply(game, Canonical(), sign(claimant.secret, moved), at=1)
    assert [(f.party, f.code) for f in game.faults] == [("claimant", "dispute.header")]


@pytest.mark.parametrize("place", [(2, 1), (4, 3), (1, 0)])
def test_no_bytes_of_a_claimant_break_the_referee(place: tuple[int, int]) -> None:
    """Bounds and proofs cut, lengthened and flipped at random places: a verdict, never another exception."""
    run = honest_run(SAMPLED)
    rng = Random(f"{place}")
    claimant = Key("real claimant")
    played = play(run, run, run.trace(*place), at=(*place, bytes(32)), choices=Random(3))
    held = 0
    for _ in range(FUZZED):
        turn = rng.choice((1, len(played.moves) - 1))
        game = start(RULES, played.case, played.moves[0][0], at=0)
        for move, at in played.moves[1:turn]:
            game = apply(game, Canonical(), move, at=at)
        statement = played.moves[turn][0].statement
        assert isinstance(statement, Answer | Proof)
        name = "bounds" if isinstance(statement, Answer) else "proof"
        data = bytearray(getattr(statement, name))
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(data))
            trick = rng.randrange(4)
            if trick == 0:
                del data[at:]
                data += b"\0"
            elif trick == 1:
                data[at] ^= 1 << rng.randrange(8)
            elif trick == 2:
                data[at : at + 4] = rng.randbytes(4)
            else:
                data[at:at] = rng.randbytes(rng.choice((1, 32)))
        other = replace(statement, **{name: bytes(data)})
        game = apply(game, Canonical(), sign(claimant.secret, other), at=turn)
        held += not game.faults or game.faults[0].party == "challenger"
    assert held == 0
