"""The court about a run's tokens, its counts and its receipt: who lies is convicted, who does not never is, and the Python
referee says the same (docs/spec/16-chain-disputes.md, "Tokens, receipt and parameters").
"""

import importlib.util
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from court_games import (
    BOND,
    BUDGET,
    CHALLENGER,
    CLAIMANT,
    GRACE,
    OTHER,
    SLASH,
    STAKE,
    Match,
    World,
    build,
    sign,
)
from dispute_real import NONCE, Key
from dispute_runs import GREEDY, SALT, SAMPLED, TinyRun, flipped, model_file, tiny_run
from evm import Done, Reverted, Revm, names
from liar_games import JOBS, aimed, case_about
from liars import early_stop, honest, swapped_token
from simulated_run import Network

from aos.adapters.chain.court import accuse_data, move_data
from aos.core.codec import decode, encode
from aos.core.dispute.chain_claim import ChainClaim, claim_hash
from aos.core.dispute.coarse import aim
from aos.core.dispute.fine.around import prove_header, prove_tokens
from aos.core.dispute.fine.bounds import state_shape
from aos.core.dispute.fine.chain_around import (
    MEMBERS,
    OTHER_RECEIPT,
    OTHER_TOKENS,
    TOKENS_UNIT,
    Accusation,
    accuse,
    accuse_token,
    aim_at_unit,
    may_end,
    open_token,
    params_are_asked,
    receipt_states,
    token_is_chosen,
    tokens_are_hashed,
)
from aos.core.dispute.fine.chain_game import AnswerTokens, ChainGame
from aos.core.dispute.fine.chain_players import claimant_move
from aos.core.dispute.fine.onchain import FAULTS
from aos.core.dispute.state_opening import Place, StateTree
from aos.core.dispute.state_tree import TOKEN, StateHeader, StateShape, tokens_root
from aos.core.encoding import b64u_decode, canonical_json, parse_canonical
from aos.core.hashes import params_hash, prompt_tokens_hash, run_params_hash, token_bytes, tokens_hash, u32
from aos.core.manifest import Manifest
from aos.core.merkle import tree_root
from aos.core.statements import FinishReason, Params, ReceiptCore, hash_of
from aos.engine.around import check_stop
from aos.engine.party import Party
from aos.errors import InvalidMessage, VerificationError

pytest.importorskip("pyrevm", reason="pip install pyrevm")

PROMPT = "what is the meaning"
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sampled": ("tiny-q4_0", PROMPT, SAMPLED),
    "greedy": ("tiny-f32", PROMPT, GREEDY),
    "stopped": ("tiny-ends", "b", {"temperature": 0, "max_tokens": 8}),
    "trapped": ("tiny-trap", "is it", GREEDY | {"max_tokens": 60}),
    "trapped in its prompt": ("tiny-trap", "is it so? yes", GREEDY),
    "long": ("tiny-q4_0", PROMPT, GREEDY | {"max_tokens": 122}),
}


@pytest.fixture
def world() -> World:
    return build(Revm())


@cache
def template() -> ReceiptCore:
    return Network().run().receipt.core


class Told:
    """An operator's claim about a run, true or not: its tree, tokens and receipt."""

    def __init__(
        self, world: World, run: TinyRun, core: ReceiptCore | None = None, computed: TinyRun | None = None
    ) -> None:
        self.world, self.run = world, run
        self.computed = computed or run
        """What its tails come from, where it says other tokens than they chose."""
        self.tree, self.tokens = run.known.tree, list(run.known.tokens)
        header = self.tree.header
        stated = {
            name: getattr(header, name) for name in MEMBERS if name not in ("state_root", "sampling_seed")
        }
        self.core = core or replace(
            template(), state_root=self.tree.root, sampling_seed=str(header.sampling_seed), **stated
        )
        self.json = canonical_json(encode(self.core))
        self.receipt = hash_of(self.core)
        manifest = run.known.run.manifest
        self.claim = (CLAIMANT, self.receipt, manifest.model_id, self.tree.root, 2**40)
        self.claim_id = world.court.read("claimHash", self.claim)
        self.signature = sign(world, self.claim_id)
        self.id = world.court.read("gameId", self.claim_id, CHALLENGER)
        self.opened = prove_header(self.tree)

    def saying(
        self, tokens: list[int] | None = None, core: dict[str, Any] | None = None, **header: Any
    ) -> "Told":
        """The claim of who says something else: of its tokens (what follows of them with it), its header, its receipt."""
        members = dict(header)
        known = self.run.known
        n_prompt = header.get("n_prompt", self.tree.header.n_prompt)
        if tokens is not None:
            members = {
                "tokens_root": tokens_root(tokens),
                "tokens_hash": tokens_hash(SALT, tokens[n_prompt:]),
                "prompt_tokens_hash": prompt_tokens_hash(SALT, tokens[:n_prompt]),
                **header,
            }
            known = replace(known, tokens=tokens)
        told = replace(self.tree.header, **members)
        units = [*self.tree.units, *[[bytes(32)] * len(self.tree.units[0])] * told.n_positions][
            : told.n_positions
        ]
        run = replace(self.run, known=known).with_tree(StateTree(told, units))
        found = Told(self.world, run, computed=self.computed)
        if core is None:
            return found
        return Told(self.world, run, replace(found.core, **core), computed=self.computed)

    def register(self) -> "Told":
        Match.register(self.world, self.run.known.run.manifest)
        return self

    # --- tokens

    def chose(self, position: int) -> bool:
        """Whether the tail at the position chose a token."""
        header = self.tree.header
        return header.n_prompt <= position + 1 < header.n_prompt + header.n_out

    def proof(self, position: int) -> bytes:
        """What its tails chose, opened in its tree."""
        if not self.chose(position):
            return prove_tokens(self.tree, self.tokens, position, self.trap_unit, None)
        payload = self.computed.trace(position, self.run.tail).payload(position, self.run.tail)
        return open_token(self.tree, self.shape, self.tokens, position, payload)

    @property
    def trap_unit(self) -> int | None:
        return None if self.run.known.trap is None else self.run.known.trap[0]

    @property
    def shape(self) -> StateShape:
        return state_shape(self.run.known.run, self.tree.header, self.trap_unit)

    def judge(self, position: int, proof: bytes) -> bool | None:
        """The contract's verdict, which the referee shares; None where nothing is shown."""
        known = self.run.known.run

        def referee(model_id: bytes, state_root: bytes, at: int, data: bytes) -> bool:
            return token_is_chosen(known.manifest, known.graph, state_root, at, data)

        return self._both("tokenIsChosen", referee, (self.claim[2], self.tree.root, position, proof))

    def judge_hashes(
        self, nonce: bytes, n_prompt: int, ids: bytes, opened: bytes | None = None
    ) -> bool | None:
        """As ``judge``."""
        args = (self.tree.root, self.opened if opened is None else opened, nonce, n_prompt, ids)
        return self._both("tokensAreHashed", tokens_are_hashed, args)

    def judge_receipt(self, member: int, begin: int, core: bytes | None = None) -> bool | None:
        """As ``judge``."""
        args = (self.tree.root, self.opened, self.receipt, self.json if core is None else core, member, begin)
        return self._both("receiptStates", receipt_states, args)

    def _both(self, function: str, referee: Callable[..., bool], args: tuple[Any, ...]) -> bool | None:
        found: bool | None = None
        expected: bool | None = None
        with suppress(Reverted):
            found = self.world.bounds.read(function, *args)
        with suppress(VerificationError, InvalidMessage):
            expected = referee(*args)
        assert found is expected
        return expected

    def begin(self, member: int) -> int:
        return self.json.index(f',"{MEMBERS[member]}":'.encode())

    def accused(self, tokens: list[int] | None = None, params: Params | None = None) -> Accusation | None:
        """What its own data convict it of: with the tokens and parameters that its receipt hashes."""
        params = params or asked(self.run)
        return accuse(self.core, self.tree, nonce=SALT, params=params, tokens=tokens or self.tokens)

    # --- transactions

    def open(self, position: int, unit: int = TOKENS_UNIT) -> Done:
        return self.world.court.send(
            CHALLENGER, "open", self.claim, self.signature, position, unit, value=BOND
        )

    def answer(self, position: int) -> Done:
        return self.world.court.send(CLAIMANT, "answerTokens", *self.place, self.proof(position))

    @property
    def place(self) -> tuple[bytes, bytes, bytes]:
        return self.id, self.claim[2], self.claim[3]

    def convict(self, function: str, *args: object) -> Done:
        return self.world.court.send(OTHER, function, self.claim, self.signature, *args)

    def is_convicted(self, done: Done, code: int) -> None:
        """Fails unless the stake moved once, for this reason, to who sent it."""
        (event,) = self.world.court.events(done)
        assert (event.name, event.args["code"]) == ("Convicted", code)
        info = self.world.registry.read("operatorInfo", CLAIMANT)
        assert (info[0], info[3], info[4]) == (4 * STAKE - SLASH, 0, False)
        assert self.world.registry.read("owed", OTHER) == SLASH // 2
        assert self.world.registry.read("burnt") == SLASH // 2


def asked(run: TinyRun) -> Params:
    """A run's parameters, as a request has them."""
    given = run.known.run.params
    members = {
        name: getattr(given, name) for name in ("temperature", "top_p", "top_k", "min_p", "max_tokens")
    }
    return Params(**members, repeat_penalty=given.repeat_penalty, stop=tuple(given.stop), seed=None)


def told(world: World, name: str = "sampled") -> Told:
    return Told(world, tiny_run(*RUNS[name])).register()


def other(tokens: list[int], index: int) -> list[int]:
    """The tokens, one of them another."""
    return [*tokens[:index], tokens[index] ^ 1, *tokens[index + 1 :]]


# --- who is right


@pytest.mark.parametrize("name", RUNS)
def test_an_honest_claim_is_right_at_every_position(world: World, name: str) -> None:
    claim = told(world, name)
    header = claim.tree.header
    total = header.n_prompt + header.n_out
    positions = range(total + 2) if total < 64 else (0, 61, 62, 63, 64, 126, 127, 128, total - 2, total - 1)
    for position in positions:
        assert claim.judge(position, claim.proof(position)) is True
        if claim.chose(position):  # the claimant opens the same
            place = Place(position=position, unit=claim.run.tail, part=TOKEN, tile=0)
            opening = claim.run.trace(position, claim.run.tail).open_state(place)
            own = prove_tokens(claim.tree, claim.tokens, position, claim.trap_unit, opening)
            assert own == claim.proof(position)
    assert claim.judge(2**32 - 1, claim.proof(2**32 - 1)) is True
    ids = token_bytes(claim.tokens)
    assert claim.judge_hashes(SALT, header.n_prompt, ids) is True
    for member in range(len(MEMBERS)):
        assert claim.judge_receipt(member, claim.begin(member)) is True
    assert claim.accused() is None


@pytest.mark.parametrize("name", ["sampled", "trapped", "trapped in its prompt"])
def test_a_claimant_s_engine_proves_every_position(world: World, name: str) -> None:
    """Also where no tail chose a token, as a sham challenger asks."""
    claim = told(world, name)
    party = Party(claim.run.engine, model_file(RUNS[name][0]))
    for position in (0, 1, claim.run.last - 1, claim.run.last, claim.run.last + 1, 2**32 - 1):
        assert party.prove_tokens(claim.run.known, position) == claim.proof(position)


def test_who_challenges_right_tokens_loses_its_bond(world: World) -> None:
    claim = told(world)
    last = claim.run.last
    claim.open(last)
    with pytest.raises(Reverted):  # whose turn it is not
        world.court.send(OTHER, "answerTokens", *claim.place, claim.proof(last))
    world.court.refuses("OtherContext", CLAIMANT, "answerTokens", claim.id, bytes(32), *claim.place[2:], b"")
    with pytest.raises(Reverted):  # of another position
        world.court.send(CLAIMANT, "answerTokens", *claim.place, claim.proof(last - 1))
    assert names(world.court.events(claim.answer(last))) == ["Refuted", "Ended"]
    assert world.court.read("owed", CLAIMANT) == BOND
    info = world.registry.read("operatorInfo", CLAIMANT)
    assert (info[0], info[3], info[4]) == (4 * STAKE, 0, True)


@pytest.mark.parametrize("position", [0, 7, 2**32 - 1])
def test_a_challenge_where_no_token_was_chosen_is_refuted(world: World, position: int) -> None:
    claim = told(world, "trapped")
    position = claim.run.last if position == 7 else position
    claim.open(position)
    assert names(world.court.events(claim.answer(position))) == ["Refuted", "Ended"]


def test_what_is_right_convicts_nobody_at_once(world: World) -> None:
    claim = told(world)
    header = claim.tree.header

    def refuses(function: str, *args: object) -> None:
        world.court.refuses("ProvesNothing(0)", OTHER, function, claim.claim, claim.signature, *args)

    for position in (0, claim.run.last):
        refuses("convictToken", position, claim.proof(position))
    refuses("convictTokens", claim.opened, SALT, header.n_prompt, token_bytes(claim.tokens))
    refuses("convictReceipt", claim.opened, claim.json, 0, claim.begin(0))
    assert world.registry.read("operatorInfo", CLAIMANT)[0] == 4 * STAKE


# --- who lies about a token


@pytest.mark.parametrize(
    ("name", "which"), [("sampled", 0), ("greedy", -1), ("trapped", -1), ("long", 55), ("long", -1)]
)
def test_a_token_that_the_tail_did_not_choose_convicts(world: World, name: str, which: int) -> None:
    honest = told(world, name)
    index = range(honest.tree.header.n_prompt, len(honest.tokens))[which]
    liar = honest.saying(other(honest.tokens, index))
    for position in (index - 2, index - 1, index):
        assert liar.judge(position, liar.proof(position)) is (position != index - 1)
    # Everything else about it is right.
    assert liar.judge_hashes(SALT, liar.tree.header.n_prompt, token_bytes(liar.tokens)) is True
    assert liar.accused() is None
    proof = liar.proof(index - 1)
    done = liar.convict("convictToken", index - 1, proof)
    liar.is_convicted(done, OTHER_TOKENS)
    assert FAULTS[OTHER_TOKENS] == "around.tokens"
    world.court.refuses(
        "AlreadyConvicted", OTHER, "convictToken", liar.claim, liar.signature, index - 1, proof
    )
    world.court.refuses("AlreadyConvicted", CHALLENGER, "open", liar.claim, liar.signature, 0, 0, value=BOND)
    # The honest claim of the same operator stands.
    assert not world.court.read("convicted", honest.claim_id)


def test_a_liar_about_a_token_has_no_move(world: World) -> None:
    honest = told(world)
    index = honest.tree.header.n_prompt
    liar = honest.saying(other(honest.tokens, index))
    liar.open(index - 1)
    court = world.court
    court.refuses("ProvesNothing(12)", CLAIMANT, "answerTokens", *liar.place, liar.proof(index - 1))
    # Nor is there another way out of this game.
    trace = liar.run.trace(index - 1, 1)
    game = Match(world=world, run=liar.run, trace=trace, position=index - 1, unit=1)
    with pytest.raises(Reverted) as refusal:
        court.send(CLAIMANT, "answer", *liar.place, game.params, game.bounds, bytes(32), [])
    assert court.contract.error(refusal.value.data) == "OtherKind"
    for proof in (honest.proof(index - 1), liar.proof(index), liar.opened, b""):
        with pytest.raises(Reverted):
            court.send(CLAIMANT, "answerTokens", *liar.place, proof)
    world.evm.wait(GRACE + BUDGET + 1)
    with pytest.raises(Reverted) as refusal:
        liar.answer(index - 1)
    done = court.send(OTHER, "timeout", liar.id)
    assert names(court.events(done)) == ["Convicted", "Ended"]
    assert (court.read("owed", CHALLENGER), world.registry.read("owed", CHALLENGER)) == (BOND, SLASH // 2)
    assert world.registry.read("operatorInfo", CLAIMANT)[0] == 4 * STAKE - SLASH


def test_a_game_about_a_unit_is_not_answered_with_tokens(world: World) -> None:
    claim = told(world)
    claim.open(claim.run.last, unit=1)
    world.court.refuses("OtherKind", CLAIMANT, "answerTokens", *claim.place, claim.proof(claim.run.last))


def test_a_tail_that_is_not_the_committed_one_shows_nothing(world: World) -> None:
    """A liar whose leaf commits to its own token is right about its tokens: its tail is wrong, and that is a unit's game."""
    honest = told(world)
    last = honest.run.last
    logits, record, _ = honest.run.trace(last, honest.run.tail).payload(last, honest.run.tail)
    tokens = other(honest.tokens, last + 1)
    lying = honest.run.committing(last, honest.run.tail, [logits, record, tokens[-1].to_bytes(4, "little")])
    liar = Told(world, lying).saying(tokens)
    payload = [logits, record, tokens[-1].to_bytes(4, "little")]
    assert liar.judge(last, open_token(liar.tree, liar.shape, tokens, last, payload)) is True
    # The accuser's own tail does not lead to the claim's root.
    own = honest.run.trace(last, honest.run.tail).payload(last, honest.run.tail)
    assert liar.judge(last, open_token(liar.tree, liar.shape, tokens, last, own)) is None


@pytest.mark.parametrize("name", ["sampled", "trapped", "long"])
def test_no_bit_of_a_proof_can_be_another(world: World, name: str) -> None:
    rng = random.Random(name)
    claim = told(world, name)
    header = claim.tree.header
    for position in {header.n_prompt - 1, header.n_prompt + header.n_out - 2}:
        proof = claim.proof(position)
        # On the unit of a trap nothing depends here: it is no tail that chose a token.
        trap = len(claim.opened) if claim.trap_unit is not None else len(proof)
        for bit in rng.sample(range(8 * len(proof)), 24):
            if not trap <= bit // 8 < trap + 4:
                assert claim.judge(position, flipped(proof, bit)) is None, bit
        for bad in (b"", proof[:-1], proof + b"\0", proof[:240], proof[:-32], claim.proof(position + 1)):
            assert claim.judge(position, bad) is None
    opened, ids = claim.opened, token_bytes(claim.tokens)
    for bad in (b"", opened[:-1], opened + b"\0", flipped(opened, rng.randrange(8 * len(opened)))):
        assert claim.judge_hashes(SALT, header.n_prompt, ids, bad) is None
    for nonce, n_prompt, shown in (
        (bytes(32), header.n_prompt, ids),
        (SALT, header.n_prompt - 1, ids),
        (SALT, len(claim.tokens) + 1, ids),
        (SALT, header.n_prompt, ids[:-4]),
        (SALT, header.n_prompt, ids + bytes(4)),
        (SALT, header.n_prompt, ids[:-1]),
        (SALT, header.n_prompt, flipped(ids, 5)),
    ):
        assert claim.judge_hashes(nonce, n_prompt, shown) is None


def test_another_model_s_header_shows_nothing(world: World) -> None:
    claim, foreign = told(world), told(world, "greedy")
    last = claim.run.last
    known = foreign.run.known.run
    with pytest.raises(Reverted):
        world.bounds.read("tokenIsChosen", foreign.claim[2], claim.tree.root, last, claim.proof(last))
    with pytest.raises(VerificationError, match="model"):
        token_is_chosen(known.manifest, known.graph, claim.tree.root, last, claim.proof(last))


# --- who commits to other tokens than it hashes


@pytest.mark.parametrize("which", ["first of the prompt", "last", "one more", "fewer of the prompt"])
def test_tokens_that_the_header_does_not_commit_to_convict(world: World, which: str) -> None:
    honest = told(world, "long")
    header = honest.tree.header
    n_prompt, tokens = header.n_prompt, honest.tokens
    shown = {
        "first of the prompt": other(tokens, 0),
        "last": other(tokens, len(tokens) - 1),
        "one more": [*tokens, 5],
        "fewer of the prompt": tokens,
    }[which]
    if which == "fewer of the prompt":
        n_prompt -= 1
    liar = honest.saying(
        prompt_tokens_hash=prompt_tokens_hash(SALT, shown[:n_prompt]),
        tokens_hash=tokens_hash(SALT, shown[n_prompt:]),
    )
    # No tail says so: what the run read is what its tails chose.
    last = honest.run.last
    assert liar.judge(last, liar.proof(last)) is True
    assert liar.judge_hashes(SALT, n_prompt, token_bytes(shown)) is False
    args = (liar.opened, SALT, n_prompt, token_bytes(shown))
    if len(shown) == len(tokens) and n_prompt == header.n_prompt:
        assert liar.accused(shown) == Accusation(function="convictTokens", arguments=args)
    done = liar.convict("convictTokens", *args)
    liar.is_convicted(done, OTHER_TOKENS)


# --- who states another run in its receipt


@pytest.mark.parametrize("member", range(len(MEMBERS)))
def test_a_receipt_that_states_another_run_convicts(world: World, member: int) -> None:
    honest = told(world)
    name = MEMBERS[member]
    values: dict[str, Any] = {"n_prompt": 90, "n_out": 60, "sampling_seed": "210", "finish_reason": "stop"}
    liar = honest.saying(core={name: values.get(name, b"\x01" * 32)})
    args = (liar.opened, liar.json, member, liar.begin(member))
    assert liar.accused() == Accusation(function="convictReceipt", arguments=args)
    for each in range(len(MEMBERS)):
        assert liar.judge_receipt(each, liar.begin(each)) is (each != member)
        assert liar.judge_receipt(each, liar.begin((each + 1) % len(MEMBERS))) is None
    done = liar.convict("convictReceipt", *args)
    liar.is_convicted(done, OTHER_RECEIPT)
    assert FAULTS[OTHER_RECEIPT] == "dispute.header"


def test_nothing_else_is_a_member_of_a_receipt(world: World) -> None:
    claim = told(world)
    end = len(claim.json)
    for member, begin in ((0, 0), (0, end), (0, end + 1), (0, 2**255), (9, claim.begin(0)), (2**255, 0)):
        assert claim.judge_receipt(member, begin) is None
    assert claim.judge_receipt(0, claim.begin(0), claim.json + b" ") is None
    # Text that spells a member is none: quotes within it are escaped.
    odd = Told(world, claim.run, replace(claim.core, engine=',"tokens_hash":"x",'))
    assert [at for at in range(len(odd.json)) if odd.json.startswith(b',"tokens_hash":', at)] == [
        odd.begin(2)
    ]
    assert odd.judge_receipt(2, odd.begin(2)) is True
    for at in (odd.json.index(b"tokens_hash"), odd.json.index(b"tokens_hash") - 3):
        assert odd.judge_receipt(2, at) is None


# --- who computes with other parameters than were asked for


ASKED = {
    "drawn": Params(
        temperature=1_300_000,
        top_p=900_000,
        top_k=200,
        min_p=1_000,
        repeat_penalty=1_100_000,
        max_tokens=6,
        stop=('a","temperature":5', ',"stop":["', "\u00e9\n"),
        seed=None,
    ),
}
ASKED["seeded"] = replace(ASKED["drawn"], stop=(), seed=str(2**64 - 1))


def abi(params: Params) -> tuple[tuple[Any, ...], bool, int]:
    """As the contract takes them."""
    numbers = (SALT, params.max_tokens, params.min_p, params.repeat_penalty)
    stop = canonical_json(list(params.stop))
    return (
        (*numbers, stop, params.temperature, params.top_k, params.top_p),
        params.seed is None,
        int(params.seed or 0),
    )


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("other", [{}, {"temperature": 0}, {"max_tokens": 5}, {"stop": ("a",)}])
def test_parameters_that_nobody_asked_for_convict(world: World, name: str, other: dict[str, Any]) -> None:
    params = ASKED[name]
    used = replace(params, **other)
    claim = told(world).saying(
        params_hash=run_params_hash(SALT, used), core={"params_hash": params_hash(SALT, params)}
    )
    begin = claim.json.index(b',"params_hash":')
    fixed = (claim.tree.root, claim.opened, claim.receipt, claim.json)

    def judge(shown: Params, at: int = begin) -> bool | None:
        found: bool | None = None
        expected: bool | None = None
        with suppress(Reverted):
            found = world.bounds.read("paramsAreAsked", *fixed, at, *abi(shown))
        with suppress(VerificationError):
            expected = params_are_asked(*fixed, at, SALT, shown)
        assert found is expected
        return expected

    right = used == params
    assert judge(params) is right
    assert judge(params, begin + 1) is None
    for wrong in ({"top_k": 201}, {"seed": "5"}, {"stop": ("b",)}, {"temperature": 1}):
        assert judge(replace(params, **wrong)) is None
    args = (claim.opened, claim.json, begin, *abi(params))
    accused = claim.accused(params=params)
    assert accused == (None if right else Accusation(function="convictParams", arguments=args))
    if right:
        world.court.refuses("ProvesNothing(0)", OTHER, "convictParams", claim.claim, claim.signature, *args)
    else:
        claim.is_convicted(claim.convict("convictParams", *args), OTHER_RECEIPT)


# --- who counts tokens that no such run has


def taken(claim: Told, position: int) -> bool:
    """Whether the contract takes bounds of a claim; else it is for the header."""
    trace = claim.run.trace(position, 1)
    game = Match(world=claim.world, run=claim.run, trace=trace, position=position, unit=1)
    args = (claim.claim[2], claim.tree.root, position, 1, game.params, game.bounds)
    try:
        claim.world.bounds.read("open", *args)
    except Reverted as refusal:
        return claim.world.bounds.contract.error(refusal.data) != "BadHeader"
    return True


@pytest.mark.parametrize("finish", ["stop", "length", "cancelled"])
@pytest.mark.parametrize("fewer", [0, 1])
def test_a_run_that_ends_before_its_limit_is_not_ended_by_it(
    world: World, finish: FinishReason, fewer: int
) -> None:
    """An operator that computes less than was asked, and says that the limit ended it, can answer no challenge."""
    honest = told(world)
    n_out = honest.tree.header.n_out - fewer
    tokens = honest.tokens[: honest.tree.header.n_prompt + n_out]
    claim = honest.saying(tokens, n_out=n_out, n_positions=len(tokens) - 1, finish_reason=finish)
    params = claim.run.known.run.params
    right = may_end(claim.tree.header, params.max_tokens, claim.run.known.run.graph.n_ctx)
    assert right is (finish == "stop" or (finish == "length") == (fewer == 0))
    assert taken(claim, 2) is right
    if right:
        return
    with pytest.raises(VerificationError, match="run"):
        check_stop(claim.run.engine.tokenizer, tuple(tokens[-n_out:]), (), params.max_tokens, finish)


def test_who_may_end_a_run_is_who_the_stop_game_lets(world: World) -> None:
    """Whatever ends a run lawfully is counted lawfully: no honest claimant's bounds are refused."""
    claim = told(world)
    tokenizer = claim.run.engine.tokenizer
    rng = random.Random(4)
    end = min(tokenizer.vocabulary.ends)
    plain = next(iter(set(range(300, 320)) - set(tokenizer.vocabulary.ends)))
    for _ in range(200):
        limit, count = rng.randint(1, 6), rng.randint(1, 7)
        tokens = tuple(rng.choice([plain] * 5 + [end]) for _ in range(count))
        finish: FinishReason = rng.choice(["stop", "length", "cancelled", "numeric_trap"])
        header: StateHeader = replace(claim.tree.header, n_out=count, finish_reason=finish)
        try:
            check_stop(tokenizer, tokens, (), limit, finish)
        except VerificationError:
            continue
        assert may_end(header, limit, 10**6)
        assert may_end(header, 10**6, header.n_prompt + limit)


# --- the whole way, from what a challenger has


JOB = replace(JOBS[1], prompt="what is the meaning of it", max_tokens=5)


@pytest.mark.parametrize("disclosed", [True, False])
@pytest.mark.parametrize("at", [0, 1, -5, -2, -1])
def test_a_swapped_token_costs_the_stake(world: World, at: int, disclosed: bool) -> None:
    """A run that reads another token than its tail chose, or than it was asked, and follows from it to its end."""
    own = honest(JOB)
    at %= len(own.known.tokens)
    liar = swapped_token(JOB, at, (own.known.tokens[at] + 1) % 200, disclosed=disclosed)
    if liar is None:
        assert disclosed  # the prompt's tokens that it says are other: a tokenizer's matter
        assert at < own.header.n_prompt
        return
    core = case_about(liar, Key("claimant")).core
    known = liar.known
    hashed = liar.disclosed or known.tokens
    found = accuse(core, known.tree, nonce=NONCE, params=JOB.params, tokens=hashed)
    if disclosed:
        assert found is None
        aim = aimed(liar, own)
        assert aim is not None
        assert (aim.kind, aim.position) == ("tokens", at - 1)
        shape = state_shape(known.run, liar.header, None)
        payload = own.at(aim.position, own.n_layers + 1).payload(aim.position, own.n_layers + 1)
        found = accuse_token(known.tree, shape, hashed, aim.position, payload)
    assert found is not None
    assert found.function == ("convictToken" if disclosed else "convictTokens")
    claim = ChainClaim(
        claimant=CLAIMANT,
        receipt=hash_of(core),
        model_id=known.run.manifest.model_id,
        state_root=known.tree.root,
        expires=2**40,
    )
    Match.register(world, known.run.manifest)
    signature = sign(world, claim_hash(claim))
    data = accuse_data(claim, signature, found)
    done = world.evm.transact(OTHER, world.court.address, data)
    assert names(world.court.events(done)) == ["Convicted"]
    assert world.registry.read("operatorInfo", CLAIMANT)[0] == 4 * STAKE - SLASH


def test_an_early_end_by_the_limit_costs_the_stake(world: World) -> None:
    """Its claimant can open no unit, so it is silent where it is challenged."""
    own = honest(JOB)
    limits = {"max_tokens": JOB.params.max_tokens, "n_ctx": own.known.run.graph.n_ctx}
    for finish in ("length", "stop"):
        liar = early_stop(JOB, 3, finish)
        assert liar is not None
        found = aimed(liar, own)
        assert found is not None
        assert found.kind == "stop"
        unit = aim_at_unit(found, liar.known.tree, own.known.tree, **limits)
        if finish == "stop":
            assert unit is None  # whether a token ends a run is a tokenizer's matter
            continue
        assert unit is not None
        run = replace(tiny_run(*RUNS["sampled"]), known=liar.known)
        claim = Told(world, run, template()).register()
        claim.open(unit.position, unit.unit)
        trace = liar.at(unit.position, unit.unit)
        game = Match(world=world, run=run, trace=trace, position=unit.position, unit=unit.unit)
        args = (*claim.place, game.params, game.bounds, trace.tree.root, [])
        with pytest.raises(Reverted) as refusal:
            world.court.send(CLAIMANT, "answer", *args)
        assert world.bounds.contract.error(refusal.value.data) == "BadHeader"
        world.evm.wait(GRACE + BUDGET + 1)
        done = world.court.send(OTHER, "timeout", claim.id)
        assert names(world.court.events(done)) == ["Convicted", "Ended"]


def test_the_player_answers_a_game_about_the_tokens(world: World) -> None:
    claim = told(world)
    last = claim.run.last
    claim.open(last)
    known = claim.run.known.run
    state = world.court.read("games", claim.id)
    game = ChainGame(
        id=claim.id,
        claim=claim.claim_id,
        claimant=CLAIMANT,
        challenger=CHALLENGER,
        stage=state[3],
        position=last,
        unit=TOKENS_UNIT,
        tiles=0,
        node=(0, 0, 0),
        hash=bytes(32),
        element=0,
        asked=False,
        deadline=0,
        convicted=False,
    )
    move = claimant_move(game, known, claim.proof(last), None)
    assert isinstance(move, AnswerTokens)
    done = world.evm.transact(CLAIMANT, world.court.address, move_data(claim.id, move))
    assert names(world.court.events(done)) == ["Refuted", "Ended"]


# --- vectors

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/aos/dispute/court.json").read_text("utf-8"))


@cache
def judges() -> World:
    world = build(Revm())
    Match.register(world, decode(Manifest, parse_canonical(VECTORS["manifest"].encode(), max_bytes=65_536)))
    return world


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['call']}: {case['name']}")
def test_contract_and_referee_say_what_the_vectors_say(case: dict[str, Any]) -> None:
    manifest = decode(Manifest, parse_canonical(VECTORS["manifest"].encode(), max_bytes=65_536))
    assert manifest.graph is not None
    root, call = b64u_decode(case["state_root"]), case["call"]
    raw = {
        name: b64u_decode(case[name])
        for name in ("proof", "header", "nonce", "ids", "receipt")
        if name in case
    }
    referee: Callable[..., bool]
    if call == "tokenIsChosen":
        args: tuple[Any, ...] = (root, case["position"], raw["proof"])
        referee, told, shown = token_is_chosen, (manifest, manifest.graph, *args), (manifest.model_id, *args)
    elif call == "tokensAreHashed":
        args = (root, raw["header"], raw["nonce"], case["n_prompt"], raw["ids"])
        referee, told, shown = tokens_are_hashed, args, args
    else:
        args = (root, raw["header"], raw["receipt"], case["core"].encode())
        if call == "receiptStates":
            args = (*args, case["member"], case["begin"])
            referee, told, shown = receipt_states, args, args
        else:
            params = decode(Params, case["params"])
            args = (*args, case["begin"])
            referee, told, shown = params_are_asked, (*args, raw["nonce"], params), (*args, *abi(params))
    bounds = judges().bounds
    if case["holds"] is None:
        with pytest.raises((VerificationError, InvalidMessage)) as refusal:
            referee(*told)
        assert refusal.value.code == case["error"]
        with pytest.raises(Reverted):
            bounds.read(call, *shown)
        return
    assert referee(*told) is case["holds"]
    assert bounds.read(call, *shown) is case["holds"]


def test_the_script_makes_the_same_vectors(repository: Path) -> None:
    path = repository / "scripts/make_court_vectors.py"
    spec = importlib.util.spec_from_file_location("make_court_vectors", path)
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.made() == (repository / "vectors/aos/dispute/court.json").read_text("utf-8")


def test_a_false_trap_that_no_leaf_says_is_played_about_the_last_unit(world: World) -> None:
    """An early end as by a trap, over the honest leaves: no unit differs, and the last one cannot be opened."""
    own = told(world, "greedy")
    liar = own.saying(own.tokens[:-1], n_out=own.tree.header.n_out - 1, finish_reason="numeric_trap")
    assert liar.tree.units == own.tree.units
    found = aim(liar.tree, own.tree, claimed_tokens=liar.tokens, own_tokens=own.tokens)
    assert found is not None
    assert found.kind == "trap"
    unit = aim_at_unit(found, liar.tree, own.tree, max_tokens=99, n_ctx=99)
    assert unit is not None
    assert (unit.position, unit.unit) == (own.tree.header.n_positions - 1, own.run.tail)
    # Where the claim has no such unit, it may be right: there a challenge would be lost.
    members = {"n_out": liar.tree.header.n_out, "n_positions": own.tree.header.n_positions - 1}
    shorter = own.saying(own.tokens[:-1], **members)
    assert aim_at_unit(found, liar.tree, shorter.tree, max_tokens=99, n_ctx=99) is None
    liar.open(unit.position, unit.unit)
    trace = own.run.trace(unit.position, unit.unit)
    game = Match(world=world, run=own.run, trace=trace, position=unit.position, unit=unit.unit)
    leaf = liar.tree.open_leaves(unit.position, unit.unit).encode()
    for op in range(24):
        for payload in (b"", tree_root([bytes(32)])):
            opening = liar.opened + u32(unit.unit) + u32(op) + payload + leaf
            with pytest.raises(Reverted):
                world.court.send(CLAIMANT, "answer", *liar.place, game.params, opening, trace.tree.root, [])
    world.evm.wait(GRACE + BUDGET + 1)
    assert names(world.court.events(world.court.send(OTHER, "timeout", liar.id))) == ["Convicted", "Ended"]
