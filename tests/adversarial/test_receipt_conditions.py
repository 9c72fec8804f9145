"""No condition of any check could be left out: each is taken away in turn, and its attack is no longer refused.

``LIES`` has one attack for each member that a check compares; who lies signs. The mutation test then reads the checks'
source, takes away one refusal at a time (an ``if`` that refuses, or one pair of a comparison) and judges the attacks of that
error code again. A condition that no attack needs would prove nothing.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from hashlib import sha256
from types import FunctionType, ModuleType
from typing import Any

import pytest
from simulated_run import EPOCH_MS, GENESIS, TOKENS, Network, Result, secret
from test_receipt_attacks import (
    ATTACKS,
    NETWORK,
    Attack,
    honest_engine,
    key_of,
    redrawn,
    run,
    single,
    with_core,
)

from aos.core.answer import Answer, Receipt, seated_only, write_answer
from aos.core.checks import drawn, enclave, job, logged, result, signed
from aos.core.receipt import Replayed, verify_answer
from aos.core.report import Check
from aos.core.statements import sign
from aos.core.trust import load_policy

ELSEWHERE = Network(name="elsewhere")
OTHER = secret("another hash")
CHECK_MODULES = (signed, job, drawn, result, logged, enclave)


def tee(**edit: Callable[[Any], Any]) -> Callable[[], Answer]:
    return run(job_type="tee", edit=edit)


def put(**changes: Any) -> Callable[[Any], Any]:
    return lambda statement: replace(statement, **changes)


def lying_peer(*, countersign: dict[str, Any] | None = None, **core: Any) -> Callable[[], Answer]:
    """The first peer signs another core; the dispatcher that it names countersigns exactly that."""

    def make() -> Answer:
        answer = NETWORK.run()
        peer, *rest = answer.peers
        key = NETWORK.by_id(peer.core.operator).key
        stated = sign(key, replace(peer.core, **core))
        named = {NETWORK.dispatcher: NETWORK.key, ELSEWHERE.dispatcher: ELSEWHERE.key}
        over = replace(
            peer.countersign,
            network=stated.statement.network,
            dispatcher=stated.statement.dispatcher,
            receipt=stated.hash,
            receipt_signature=sha256(stated.signature).digest(),
            draw_record=stated.statement.draw_record,
            commit_set=stated.statement.commit_set,
        )
        counter = sign(named[over.dispatcher], replace(over, **(countersign or {})))
        made = Receipt(
            core=stated.statement,
            signature=stated.signature,
            countersign=counter.statement,
            countersign_signature=counter.signature,
        )
        return replace(answer, peers=(made, *rest))

    return make


def entries(
    change: Callable[[tuple[Any, ...]], tuple[Any, ...]], *, short: bool = False
) -> Callable[[], Answer]:
    def make() -> Answer:
        answer = NETWORK.run(min_operators=2)
        part = seated_only(answer.draw) if short else answer.draw
        return replace(answer, draw=replace(part, entries=change(part.entries)))

    return make


def an_unseated_one_too() -> Answer:
    """A shortened draw with the entry of somebody who has no seat."""
    answer = NETWORK.run(min_operators=2)
    short = seated_only(answer.draw)
    seats = {entry.operator.node_id for entry in short.entries}
    extra = next(entry for entry in answer.draw.entries if entry.operator.node_id not in seats)
    kept = tuple(sorted((*short.entries, extra), key=lambda entry: entry.index))
    return replace(answer, draw=replace(short, entries=kept))


def other_tokens_of_a_peer() -> Answer:
    """A peer that committed to other tokens under the same state root."""
    peer = NETWORK.by_id(NETWORK.run().peers[0].core.operator).name
    return NETWORK.run(results={peer: Result(tokens=TOKENS[::-1])})


def openings_reversed() -> Answer:
    answer = NETWORK.run()
    return replace(answer, commit=replace(answer.commit, openings=answer.commit.openings[::-1]))


def drawn_by_two_dispatchers() -> Answer:
    """D signs a draw call in another dispatcher's name, and that one signs the record."""
    answer = single(draw_call=put(dispatcher=ELSEWHERE.dispatcher))()
    record = sign(ELSEWHERE.key, answer.draw.draw_record.statement)
    assert record.hash == answer.draw.draw_record.hash
    return replace(answer, draw=replace(answer.draw, draw_record=record))


def padded() -> Answer:
    """A receipt with the longest value of every member: more than 2 KB, though each is in range."""
    answer = NETWORK.run(min_operators=1)
    core = replace(
        answer.receipt.core,
        network="n" * 63,
        node=2**31,
        attempt=1_000_000,
        engine="a" * 128,
        n_prompt=2**32 - 1,
        n_out=2**32 - 1,
        sampling_seed=str(2**64 - 1),
        seed_source="request",
        finish_reason="numeric_trap",
        tee="simulated",
        answer_statement=OTHER,
        draw_counts=BIG_COUNTS,
        started_at=2**53 - 1,
        finished_at=2**53 - 1,
    )
    signed_core = sign(key_of(answer), core)
    return replace(answer, receipt=replace(answer.receipt, core=core, signature=signed_core.signature))


BIG_COUNTS = replace(
    NETWORK.run(min_operators=1).receipt.core.draw_counts,
    **dict.fromkeys(("selected", "not_selected", "declined", "unanswered", "ineligible"), 2**53 - 1),
)


def lies() -> Iterator[Attack]:
    def lie(what: str, check: str, code: str, answer: Callable[[], Answer], **more: Any) -> Attack:
        return Attack(name=f"{code}: {what}", check=check, code=code, answer=answer, **more)

    def vrf(**changes: Any) -> Callable[[], Answer]:
        return single(core=lambda core: replace(core, vrf=replace(core.vrf, **changes)))

    # file, trust, receipt
    yield lie("entries reversed", "file-1", "file.draw_entries", entries(lambda e: e[::-1]))
    yield lie(
        "an index beyond the draw",
        "file-1",
        "file.draw_entries",
        entries(lambda e: (*e[:-1], replace(e[-1], index=99))),
    )
    yield lie(
        "paths in a whole draw",
        "file-1",
        "file.draw_entries",
        entries(lambda e: (replace(e[0], entry_path=(OTHER,)), *e[1:])),
    )
    yield lie(
        "entries of a shortened draw reversed",
        "file-1",
        "file.draw_entries",
        entries(lambda e: e[::-1], short=True),
    )
    yield lie("an unseated entry", "file-1", "file.draw_entries", an_unseated_one_too)
    yield lie("openings reversed", "file-1", "file.openings", openings_reversed)
    yield lie(
        "a dispatcher that is not trusted",
        "trust-1",
        "trust.dispatcher",
        run(),
        trust=lambda: replace(NETWORK.trust(), dispatchers=ELSEWHERE.trust().dispatchers),
    )
    yield lie("too large", "receipt-1", "receipt.size", padded)
    for member, value in (
        ("network", "other"),
        ("dispatcher", ELSEWHERE.dispatcher),
        ("receipt", OTHER),
        ("receipt_signature", OTHER),
        ("draw_record", OTHER),
        ("commit_set", OTHER),
    ):
        yield lie(member, "receipt-2", "receipt.countersign", single(countersign=put(**{member: value})))
    # request, acceptance
    for member, value in (("network", "other"), ("dispatcher", ELSEWHERE.dispatcher)):
        yield lie(member, "io-1", "io.request_network", single(request=put(**{member: value})))
    yield lie("an enclave's receipt", "params-1", "params.job_type", with_core(tee="simulated"))
    for member, value in (
        ("network", "other"),
        ("job_ref", OTHER),
        ("request_hash", OTHER),
        ("nonce", OTHER),
        ("issued_at", GENESIS + 3 * EPOCH_MS + 2_000),
    ):
        yield lie(member, "accept-1", "accept.foreign", single(acceptance=put(**{member: value})))
    yield lie("accepted later than drawn", "accept-1", "accept.epoch", single(acceptance=put(epoch=4)))
    yield lie("accepted in an earlier epoch", "beacon-1", "beacon.epoch", single(acceptance=put(epoch=2)))
    yield lie(
        "beyond the chain",
        "beacon-1",
        "beacon.epoch",
        single(
            acceptance=put(expires_at=GENESIS + 1_000 * EPOCH_MS),
            draw_call=redrawn(put(epoch=70)),
        ),
    )
    # draw
    for member, value in (
        ("network", "other"),
        ("job_ref", OTHER),
        ("attempt", 2),
        ("model_id", OTHER),
        ("draw_record", OTHER),
        ("draw_counts", BIG_COUNTS),
    ):
        yield lie(member, "vrf-1", "vrf.foreign_draw", with_core(**{member: value}))
    yield lie("dispatcher", "vrf-1", "vrf.foreign_draw", drawn_by_two_dispatchers)
    yield lie(
        "job_type",
        "vrf-1",
        "vrf.foreign_draw",
        single(request=lambda r: replace(r, job=replace(r.job, tag="tee"))),
    )
    yield lie("node", "vrf-1", "vrf.receipt", with_core(node=9))
    yield lie("key", "vrf-1", "vrf.receipt", vrf(key=OTHER))
    yield lie("beta", "vrf-1", "vrf.receipt", vrf(beta=OTHER * 2))
    yield lie("alpha_hash", "vrf-1", "vrf.receipt", vrf(alpha_hash=OTHER))
    for member, value in (
        ("network", "other"),
        ("dispatcher", ELSEWHERE.dispatcher),
        ("attempt", 3),
        ("model_id", OTHER),
        ("epoch", 9),
    ):
        yield lie(
            member,
            "seed-1",
            "seed.first_draw",
            run(attempt=2, min_operators=1, edit={"first_draw": put(**{member: value})}),
        )
    # commitments
    for member, value in (
        ("network", "other"),
        ("dispatcher", ELSEWHERE.dispatcher),
        ("job_ref", OTHER),
        ("attempt", 2),
        ("draw_record", OTHER),
    ):
        yield lie(member, "commit-1", "commit.foreign_set", single(commit_set=put(**{member: value})))
        if member != "dispatcher":
            yield lie(member, "commit-1", "commit.opening", single(commit=put(**{member: value})))
    yield lie("commit_set", "commit-1", "commit.foreign_set", with_core(commit_set=OTHER))
    yield lie(
        "out of order",
        "commit-1",
        "commit.order",
        run(edit={"commit_set": lambda c: replace(c, commits=c.commits[::-1])}),
    )
    # agreement
    for member, value in (
        ("network", "other"),
        ("dispatcher", ELSEWHERE.dispatcher),
        ("job_ref", OTHER),
        ("attempt", 2),
        ("request_hash", OTHER),
        ("params_hash", OTHER),
        ("model_id", OTHER),
        ("sampling_seed", "7"),
        ("draw_record", OTHER),
        ("draw_counts", BIG_COUNTS),
        ("commit_set", OTHER),
    ):
        yield lie(member, "agree-1", "agree.foreign", lying_peer(**{member: value}))
    for member, value in (
        ("tag", "suspicion"),
        ("position", "before"),
        ("tag_salt", OTHER),
        ("outcome", "single"),
    ):
        yield lie(member, "agree-1", "agree.countersign", lying_peer(countersign={member: value}))
    for member, value in (
        ("response_hash", OTHER),
        ("prompt_tokens_hash", OTHER),
        ("n_prompt", 1),
        ("n_out", 1),
        ("finish_reason", "length"),
        ("engine", "aos-canonical/2"),
    ):
        yield lie(member, "agree-1", "agree.result", lying_peer(**{member: value}))
    yield lie("tokens_hash", "agree-1", "agree.result", other_tokens_of_a_peer)
    yield lie(
        "compared, and called single",
        "agree-1",
        "agree.outcome",
        run(edit={"countersign": put(outcome="single")}),
    )
    # enclaves
    yield lie("network", "tee-1", "tee.not_bound", tee(boot=put(network="other")))
    yield lie("tee", "tee-1", "tee.not_bound", tee(core=put(tee="nitro")))
    yield lie("vrf_key", "tee-1", "tee.not_bound", tee(boot=put(vrf_key=OTHER)))
    yield lie("answer_statement", "tee-1", "tee.not_bound", tee(core=put(answer_statement=OTHER)))
    for member, value in (
        ("operator", ELSEWHERE.dispatcher),
        ("job_ref", OTHER),
        ("attempt", 2),
        ("request_hash", OTHER),
        ("response_hash", OTHER),
        ("tokens_hash", OTHER),
        ("prompt_tokens_hash", OTHER),
        ("model_id", OTHER),
        ("params_hash", OTHER),
        ("sampling_seed", "7"),
        ("engine", "simulated-engine/2"),
        ("n_prompt", 1),
        ("n_out", 1),
        ("finish_reason", "length"),
    ):
        yield lie(member, "tee-1", "tee.not_bound", tee(enclave_answer=put(**{member: value})))
    # re-execution
    yield lie(
        "other tokens",
        "local-1",
        "local.tokens",
        run(),
        replay=lambda a, r: replace(honest_engine(a, r), tokens=TOKENS[1:]),
    )


LIES = {attack.name: attack for attack in lies()}


@cache
def refused_with(name: str) -> str:
    """The code with which the unchanged checks refuse the attack."""
    return check_of(name).code


@cache
def material(name: str) -> tuple[bytes, Any, Any]:
    attack = BY_NAME[name]
    return write_answer(attack.answer()), attack.trust(), load_policy(attack.policy)


def check_of(name: str) -> Check:
    attack = BY_NAME[name]
    data, trust, policy = material(name)
    report = verify_answer(data, trust=trust, policy=policy, replay=attack.replay)
    return next(check for check in report.checks if check.id == attack.check)


BY_NAME = {**LIES, **{attack.name: attack for attack in ATTACKS}}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_one_member_is_refused_for_its_reason(name: str) -> None:
    check = check_of(name)
    assert (check.status, check.code) == ("FAIL", LIES[name].code)


# --- taking conditions away


def is_call_of(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def code_in(call: ast.expr | None) -> str:
    assert isinstance(call, ast.Call)
    code = call.args[0]
    assert isinstance(code, ast.Constant)
    return str(code.value)


def conditions(tree: ast.Module) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """(error code, what it compares, how to take it away) of every refusal in a module of checks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and len(node.body) == 1:
            (only,) = node.body
            if isinstance(only, ast.Raise) and only.exc is not None and is_call_of(only.exc, "refuse"):
                if ast.unparse(node.test) == "not comparison.equal":
                    continue  # its comparisons are taken away one by one, below
                yield (
                    code_in(only.exc),
                    ast.unparse(node.test),
                    lambda node=node: setattr(node, "test", ast.Constant(False)),
                )  # type: ignore[misc]
        elif is_call_of(node, "Comparison"):
            assert isinstance(node, ast.Call)
            members = {str(pair.arg): pair for pair in node.keywords}
            code, equal = members["code"].value, members["equal"]
            assert isinstance(code, ast.Constant)
            yield (
                str(code.value),
                ast.unparse(equal.value),
                lambda equal=equal: setattr(equal, "value", ast.Constant(True)),
            )  # type: ignore[misc]
        elif is_call_of(node, "same"):
            assert isinstance(node, ast.Call)
            for pair in node.keywords:
                yield code_in(node), str(pair.arg), lambda node=node, pair=pair: node.keywords.remove(pair)  # type: ignore[misc]


def all_conditions() -> Iterator[tuple[ModuleType, int, str, str]]:
    for module in CHECK_MODULES:
        for number, (code, what, _) in enumerate(conditions(ast.parse(inspect.getsource(module)))):
            yield module, number, code, what


@contextmanager
def without(module: ModuleType, number: int) -> Iterator[None]:
    """The module's functions with one condition taken away, for whoever imported them too."""
    tree = ast.parse(inspect.getsource(module))
    list(conditions(tree))[number][2]()
    mutated: dict[str, Any] = {"__name__": module.__name__}
    exec(compile(ast.fix_missing_locations(tree), str(module.__file__), "exec"), mutated)  # noqa: S102
    own = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
    }
    before = {name: function.__code__ for name, function in own.items()}
    try:
        for name, function in own.items():
            function.__code__ = mutated[name].__code__
        yield
    finally:
        for name, function in own.items():
            function.__code__ = before[name]


GUARDS = {"commit.missing", "tee.no_evidence"}
"""Conditions before which there is nothing to judge: without them the check breaks instead of passing."""


@pytest.mark.parametrize(
    ("module", "number", "code", "what"),
    [
        pytest.param(*found, id=f"{found[0].__name__.rsplit('.', 1)[1]}: {found[2]}: {found[3]:.60}")
        for found in all_conditions()
    ],
)
def test_every_condition_is_needed_by_an_attack(
    module: ModuleType, number: int, code: str, what: str
) -> None:
    attacks = [name for name, attack in BY_NAME.items() if attack.code == code]
    assert {refused_with(name) for name in attacks} <= {code}
    with without(module, number):
        through = []
        for name in attacks:
            try:
                check = check_of(name)
            except (AttributeError, IndexError):
                assert code in GUARDS
                through.append(name)
            else:
                if check.code != code:
                    through.append(name)
    assert through, f"no attack needs {what!r}"


def test_every_check_has_conditions_that_were_taken_away() -> None:
    found = list(all_conditions())
    assert len(found) > 130
    assert {module for module, *_ in found} == set(CHECK_MODULES)
    assert isinstance(honest_engine(NETWORK.run(), None), Replayed)
