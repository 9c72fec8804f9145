"""Write ``vectors/aos/dispute``: .venv/bin/python scripts/make_dispute_vectors.py

Deterministic: keys are hashes of names, runs those of tiny models (tests/dispute_real.py). ``moves.json`` has moves as they are
sent, ``transcripts.json`` whole games over real traces: files, and cases that replace some values of a file, ``chain_claims.json``
the claims that operators sign for a court on a chain (spec 16). Who lies has signed the lie.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from dispute_real import (  # noqa: E402
    RULES,
    Job,
    Liar,
    PlayedReal,
    case_of,
    false_trap,
    honest_run,
    play,
)
from dispute_toy import Key  # noqa: E402

from aos.core.codec import encode  # noqa: E402
from aos.core.dispute.chain_claim import (  # noqa: E402
    ChainClaim,
    CourtDomain,
    check_claim,
    claim_digest,
    claim_hash,
    parse_claim,
    sign_claim,
)
from aos.core.dispute.fine.referee import Canonical  # noqa: E402
from aos.core.dispute.moves import Answer, Choose, Move, Open, Proof, read_move  # noqa: E402
from aos.core.dispute.transcript import judge, transcript_of, write_transcript  # noqa: E402
from aos.core.encoding import b64u_encode, canonical_json  # noqa: E402
from aos.core.signing import CURVE_ORDER  # noqa: E402
from aos.core.statements import ReceiptCore, hash_of, sign  # noqa: E402
from aos.engine.trace import AbsentUnit  # noqa: E402
from aos.errors import AOSError  # noqa: E402

CLAIMANT, CHALLENGER, OTHER = Key("real claimant"), Key("real challenger"), Key("other")
ABSENT = {"absent": True}
ZERO = b64u_encode(bytes(32))
Change = tuple[list[Any], Any]


def games() -> dict[str, PlayedReal]:
    """The genuine games."""
    run = honest_run(Job("tiny-q4_0", top_k=40, repeat_penalty=1_200_000, max_tokens=2))
    liar = Liar(run, 2, 1, run.trace(2, 1).shape.named("residual").first)
    late = replace(liar, how="output")
    trap, trap_trace = false_trap(run, 1, 2, 10)
    nowhere = (2, 9, bytes(32))
    same = (2, 1, run.units[2][1])
    deep = honest_run(Job("tiny-llama-2", max_tokens=2))
    deep_liar = Liar(deep, 2, 1, deep.trace(2, 1).shape.named("residual").first)
    return {
        "deep": play(deep, deep_liar.run, deep.trace(2, 1), choices=Random("deep")),
        "lie in a layer": play(liar.run, run, liar.trace()),
        "state root of another trace": play(late.run, run, late.trace()),
        "trap that did not happen": play(trap, run, trap_trace),
        "unit that does not exist": play(run, liar.run, AbsentUnit(run.known), at=nowhere),
        "leaf of the claim itself": play(run, liar.run, run.trace(2, 1), at=same),
        "sham": play(run, liar.run, run.trace(2, 1), choices=Random("sham")),
    }


def document(played: PlayedReal, *, keep: int = 99, judged_at: int = 100) -> Any:
    """A game's transcript as JSON."""
    moves = played.moves[:keep]
    return json.loads(write_transcript(transcript_of(RULES, played.case, moves, judged_at=judged_at)))


def signed(key: Key, move: Move) -> Any:
    """A move as a transcript holds it."""
    return json.loads(canonical_json(sign(key.secret, move).to_json()))


def changed(value: Any, changes: list[Change]) -> Any:
    """A copy of a document with some places replaced; "keep" is how many moves stay, "append" are moves behind them."""
    copy = json.loads(json.dumps(value))
    for path, new in changes:
        if path == ["keep"]:
            del copy["moves"][new:]
            continue
        if path == ["append"]:
            copy["moves"] += new
            continue
        place = copy
        for step in path[:-1]:
            place = place[step]
        if new == ABSENT:
            del place[path[-1]]
        else:
            place[path[-1]] = new
    return copy


def transcript_cases(files: dict[str, Any]) -> list[tuple[str, str, list[Change]]]:
    """(name, file, changes) of every case."""
    sham = files["sham"]
    opening, answer, choice, proof = (read_move(entry["move"]).statement for entry in sham["moves"])
    if not (isinstance(opening, Open) and isinstance(answer, Answer)):
        raise TypeError("a game begins with challenge and answer")
    if not (isinstance(choice, Choose) and isinstance(proof, Proof)):
        raise TypeError("this game ends with choice and proof")

    def again(number: int, key: Key, /, **values: Any) -> list[Change]:
        """The game up to a turn, whose move is replaced by one with other values, signed anew."""
        moves = [opening, answer, choice, proof]
        other = replace(moves[number], **values)
        return [(["keep"], number), (["append"], [{"at": number, "move": signed(key, other)}])]

    deep = [read_move(entry["move"]).statement for entry in files["deep"]["moves"]]

    def deep_again(number: int, **values: Any) -> list[Change]:
        other = replace(deep[number], **values)
        return [(["keep"], number), (["append"], [{"at": number, "move": signed(CLAIMANT, other)}])]

    largest = max(len(canonical_json(entry["move"])) for entry in sham["moves"])

    def more(key: Key, move: Move) -> list[Change]:
        """The whole game, and one more move."""
        return [(["append"], [{"at": 4, "move": signed(key, move)}])]

    cases: list[tuple[str, str, list[Change]]] = [(name, name, []) for name in files]
    cases += [
        ("not answered yet", "sham", [(["keep"], 1)]),
        ("claimant late", "sham", [(["keep"], 1), (["judged_at"], 10**9)]),
        ("challenger late", "sham", [(["keep"], 2), (["judged_at"], 10**9)]),
        ("late answer, still in the window", "sham", [
            (["moves", at, "at"], 3_000_000) for at in (1, 2, 3)] + [(["judged_at"], 3_000_000)]),
        ("answer after the window", "sham", [
            (["moves", at, "at"], 3_600_000) for at in (1, 2, 3)] + [(["judged_at"], 3_600_000)]),
        ("move sent again", "sham", [(["keep"], 2), (["append"], [sham["moves"][1]])]),
        ("manifest not disclosed", "lie in a layer", [(["case", "manifest"], "")]),
        ("parameters not disclosed", "lie in a layer", [(["case", "params"], None)]),
        ("foreign manifest", "sham", [(["case", "manifest"], "{}")]),
        ("foreign parameters", "sham", [(["case", "params", "top_k"], 41)]),
        ("receipt changed", "sham", [(["case", "core", "n_out"], 1)]),
        ("no moves", "sham", [(["moves"], [])]),
        ("times go back", "sham", [(["moves", 2, "at"], 0)]),
        ("unknown member", "sham", [(["note"], "hello")]),
        ("no rules", "sham", [(["rules"], ABSENT)]),
        ("wider than allowed", "sham", [(["rules", "width"], 257)]),
        ("first move is none", "sham", [(["moves", 0, "move"], {})]),
        ("challenge not signed by the challenger", "sham", again(0, OTHER)),
        ("challenge of another claim", "sham", again(0, CHALLENGER, claim=bytes(32))),
        ("challenge of another run", "sham", again(0, CHALLENGER, attempt=2)),
        ("challenge of the challenger's own claim", "sham", again(0, CLAIMANT, challenger=CLAIMANT.address)),
        ("an answer instead of a challenge", "sham", [
            (["keep"], 0), (["append"], [sham["moves"][1]])]),
        ("bounds twice", "deep", deep_again(3, bounds=b"x")),
        ("another unit root", "deep", deep_again(3, unit_root=bytes(32))),
        ("children of another node", "deep", deep_again(3, children=bytes(len(deep[3].children)))),
        ("challenge with the claim's own root", "sham",
         again(0, CHALLENGER, state_root=read_root(sham))),
        ("challenge without a leaf", "sham", again(0, CHALLENGER, leaf=b"")),
        ("challenge of no position", "sham", again(0, CHALLENGER, position=2**32 - 1)),
        ("challenge without a bond", "sham", again(0, CHALLENGER, bond=0)),
        ("answer signed by the challenger", "sham", again(1, CHALLENGER)),
        ("answer of another game", "sham", again(1, CLAIMANT, game=bytes(32))),
        ("answer before its turn", "sham", again(1, CLAIMANT, turn=3)),
        ("answer that does not follow", "sham", again(1, CLAIMANT, previous=bytes(32))),
        ("answer about another place", "sham", again(1, CLAIMANT, unit=answer.unit + 1)),
        ("answer with a child too few", "sham", again(1, CLAIMANT, children=answer.children[:-32])),
        ("answer with half a hash", "sham", again(1, CLAIMANT, children=answer.children[:-16])),
        ("answer with children of another root", "sham",
         again(1, CLAIMANT, children=answer.children[32:] + answer.children[:32])),
        ("answer with another unit root", "sham", again(1, CLAIMANT, unit_root=bytes(32))),
        ("bounds of nothing", "sham", again(1, CLAIMANT, bounds=b"")),
        ("bounds too long", "sham", again(1, CLAIMANT, bounds=answer.bounds + b"\0")),
        ("bounds with another header", "sham",
         again(1, CLAIMANT, bounds=answer.bounds[:60] + bytes([answer.bounds[60] ^ 1]) + answer.bounds[61:])),
        ("bounds with another tile hash", "sham",
         again(1, CLAIMANT, bounds=answer.bounds[:-200] + bytes([answer.bounds[-200] ^ 1]) + answer.bounds[-199:])),
        ("choice signed by the claimant", "sham", again(2, CLAIMANT)),
        ("choice beyond the children", "sham", again(2, CHALLENGER, child=255)),
        ("choice where a proof is due", "sham", [
            (["keep"], 3), (["append"], [{"at": 3, "move": signed(
                CLAIMANT, Choose(game=proof.game, turn=3, previous=proof.previous, child=0))}])]),
        ("empty proof", "sham", again(3, CLAIMANT, proof=b"")),
        ("proof cut short", "sham", again(3, CLAIMANT, proof=proof.proof[:-1])),
        ("proof too long", "sham", again(3, CLAIMANT, proof=proof.proof + b"\0")),
        ("proof with another output", "sham",
         again(3, CLAIMANT, proof=bytes([proof.proof[0] ^ 1]) + proof.proof[1:])),
        ("proof with another path", "sham",
         again(3, CLAIMANT, proof=proof.proof[:-1] + bytes([proof.proof[-1] ^ 1]))),
        ("two challenges", "sham", [(["keep"], 1), (["append"], [{
            "at": 0, "move": signed(CHALLENGER, replace(opening, bond=2))}])]),
        ("two answers", "sham", [(["keep"], 2), (["append"], [{
            "at": 1, "move": signed(CLAIMANT, replace(answer, unit_root=bytes(32)))}])]),
        ("two proofs", "sham", more(CLAIMANT, replace(proof, proof=b""))),
        ("a move after the end", "sham", more(CHALLENGER, Choose(
            game=proof.game, turn=4, previous=proof.previous, child=0))),
        ("a contradiction that another signed", "sham", more(OTHER, replace(proof, proof=b""))),
        ("two state roots of the claimant", "sham", [(["evidence"], [other_receipt(files)])]),
        ("two unit roots of the claimant", "sham", [(["evidence"], [
            signed(CLAIMANT, replace(answer, game=bytes(32), unit_root=bytes(32)))])]),
        ("evidence that is harmless", "sham", [(["evidence"], [sham["moves"][1]["move"]])]),
        ("too large together", "sham", [(["rules", "max_bytes"], largest)]),
    ]  # fmt: skip
    return cases


def read_root(file: Any) -> bytes:
    """The claim's state root."""
    from aos.core.encoding import b64u_decode

    return b64u_decode(file["case"]["core"]["state_root"])


def other_receipt(files: dict[str, Any]) -> Any:
    """The same claimant's receipt of the same attempt, with another state root."""
    case = files["lie in a layer"]["case"]
    return {"statement": case["core"], "signature": case["signature"]}


def transcript_vectors() -> dict[str, Any]:
    """Files and cases, each with what judging it gives."""
    files = {name: document(played) for name, played in games().items()}
    cases = []
    for name, file, changes in transcript_cases(files):
        found = judge(canonical_json(changed(files[file], changes)), Canonical())
        failed = next((check for check in found.checks if check.status == "FAIL"), None)
        faults = [] if found.game is None else [[f.party, f.code] for f in found.game.faults]
        cases.append(
            {
                "name": name,
                "file": file,
                "changes": [[path, value] for path, value in changes],
                "state": found.state,
                "exit_code": found.exit_code,
                "faults": faults,
                "check": failed.id if failed else None,
                "error": failed.code if failed else faults[0][1] if faults else None,
            }
        )
    texts = {name: canonical_json(file).decode() for name, file in files.items()}
    return {"source": "scripts/make_dispute_vectors.py", "files": texts, "cases": cases}


def move_vectors() -> dict[str, Any]:
    """Moves that are read, and others with the code of their refusal."""
    opening, answer, choice, proof = (move.statement for move, _ in games()["sham"].moves)
    short = replace(answer, bounds=b"bounds", children=bytes(64)), replace(proof, proof=b"proof")  # type: ignore[call-arg]
    genuine = [
        signed(CHALLENGER, opening),
        signed(CLAIMANT, short[0]),
        signed(CHALLENGER, choice),
        signed(CLAIMANT, short[1]),
    ]
    names = ("challenge", "answer", "choice", "proof")
    listed: list[tuple[str, Any]] = list(zip(names, genuine, strict=True))

    def lie(turn: int, name: str, value: Any) -> Any:
        return changed(genuine[turn], [(["statement", name], value)])

    listed += [
        ("nothing", None),
        ("a list", []),
        ("no statement", {"signature": genuine[0]["signature"]}),
        ("no signature", changed(genuine[0], [(["signature"], ABSENT)])),
        ("short signature", changed(genuine[0], [(["signature"], "AAAA")])),
        ("a member beside", changed(genuine[0], [(["at"], 1)])),
        ("another type", lie(0, "type", "aos.receipt")),
        ("type that is no text", lie(0, "type", 5)),
        ("another version", lie(0, "v", 2)),
        ("unknown member", lie(2, "because", "it is wrong")),
        ("missing member", lie(2, "child", ABSENT)),
        ("unknown kind", lie(0, "kind", "weights")),
        ("address in capitals", lie(0, "challenger", genuine[0]["statement"]["challenger"].upper())),
        ("negative bond", lie(0, "bond", -1)),
        ("bond as text", lie(0, "bond", "1")),
        ("leaf of three bytes", lie(0, "leaf", "AAAA")),
        ("turn 0", lie(1, "turn", 0)),
        ("turn 8", lie(1, "turn", 8)),
        ("padded bytes", lie(1, "bounds", "AA==")),
        ("child 256", lie(2, "child", 256)),
        ("child true", lie(2, "child", True)),
    ]
    cases = []
    for name, value in listed:
        move, error = reading(value)
        cases.append({"name": name, "move": value, "hash": move, "error": error})
    return {"source": "scripts/make_dispute_vectors.py", "cases": cases}


def reading(value: Any) -> tuple[str | None, str | None]:
    """A move's hash, or the code with which it is refused."""
    try:
        return read_move(value).hash.hex(), None
    except AOSError as error:
        return None, error.code


def chain_claim_vectors() -> dict[str, Any]:
    """Signed claims of one receipt at one court: name and digest, or the code with which they are refused."""
    core = case_of(honest_run(Job("tiny-q4_0", max_tokens=2)), CLAIMANT).core
    domain = CourtDomain(chain_id=31337, court="0x" + "c0" * 20)
    until = 1_800_000_000
    claim = ChainClaim(
        claimant=CLAIMANT.address,
        receipt=hash_of(core),
        model_id=core.model_id,
        state_root=core.state_root,
        expires=until,
    )

    def signed(key: Key = CLAIMANT, *, at: CourtDomain = domain, **changes: Any) -> Any:
        return encode(sign_claim(key.secret, replace(claim, claimant=key.address, **changes), at))

    good = signed()
    signature = sign_claim(CLAIMANT.secret, claim, domain).signature
    mirrored = (CURVE_ORDER - int.from_bytes(signature[32:64], "big")).to_bytes(32, "big")

    def with_signature(data: bytes) -> Any:
        return {**good, "signature": b64u_encode(data)}

    listed: list[tuple[str, Any]] = [
        ("of this receipt", good),
        ("good for longer", signed(expires=until + 1)),
        ("good for as long as can be said", signed(expires=2**53 - 1)),
        ("of another chain", signed(at=replace(domain, chain_id=1))),
        ("of another court", signed(at=replace(domain, court="0x" + "c1" * 20))),
        ("of another operator", signed(OTHER)),
        ("of another receipt", signed(receipt=bytes(32))),
        ("of another model", signed(model_id=bytes(32))),
        ("of another state root", signed(state_root=bytes(32))),
        ("a second too short", signed(expires=until - 1)),
        ("signed by another", {**good, "signature": signed(OTHER)["signature"]}),
        ("signed for another court", {**signed(at=replace(domain, chain_id=1)), "domain": encode(domain)}),
        ("changed after it was signed", changed(good, [(["claim", "expires"], until + 1)])),
        ("s in the upper half", with_signature(signature[:32] + mirrored + bytes([55 - signature[64]]))),
        ("recovery id 0", with_signature(signature[:64] + b"\0")),
        ("r of zero", with_signature(bytes(32) + signature[32:])),
        ("signature of 64 bytes", with_signature(signature[:64])),
        ("another type", changed(good, [(["type"], "aos.receipt")])),
        ("another version", changed(good, [(["v"], 2)])),
        ("no domain", changed(good, [(["domain"], ABSENT)])),
        ("a member beside", changed(good, [(["claim", "bond"], 1)])),
        ("expires below zero", changed(good, [(["claim", "expires"], -1)])),
        ("expires as text", changed(good, [(["claim", "expires"], str(until))])),
        ("expires beyond 2^53 - 1", changed(good, [(["claim", "expires"], 2**53)])),
        ("chain id 0", changed(good, [(["domain", "chain_id"], 0)])),
        ("address in capitals", changed(good, [(["claim", "claimant"], CLAIMANT.address.upper())])),
        ("no state root", changed(good, [(["claim", "state_root"], "")])),
    ]
    cases = [{"name": name, "claim": value, **judged(value, core, domain, until)} for name, value in listed]
    return {
        "source": "scripts/make_dispute_vectors.py",
        "receipt": encode(core),
        "domain": encode(domain),
        "valid_until": until,
        "cases": cases,
    }


def judged(value: Any, core: ReceiptCore, domain: CourtDomain, until: int) -> dict[str, str | None]:
    """What ``check_claim`` says of a claim as JSON."""
    try:
        read = parse_claim(json.dumps(value).encode())
        check_claim(read, core, domain, valid_until=until)
    except AOSError as error:
        return {"hash": None, "digest": None, "error": error.code}
    digest = claim_digest(read.claim, read.domain)
    return {"hash": claim_hash(read.claim).hex(), "digest": digest.hex(), "error": None}


def pretty(vectors: dict[str, Any]) -> str:
    """JSON, a case a line."""
    lines = []
    for name, value in vectors.items():
        if isinstance(value, list):
            inner = ",\n".join("  " + json.dumps(case, sort_keys=True) for case in value)
            lines.append(f"{json.dumps(name)}: [\n{inner}\n]")
        elif isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            lines.append(f"{json.dumps(name)}: {{\n{inner}\n}}")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


MADE: dict[str, Callable[[], dict[str, Any]]] = {
    "moves": move_vectors,
    "transcripts": transcript_vectors,
    "chain_claims": chain_claim_vectors,
}


def main() -> None:
    """Write the files."""
    directory = ROOT / "vectors/aos/dispute"
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in MADE.items():
        path = directory / f"{name}.json"
        path.write_text(pretty(make()), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
