"""The Court as its parties read it, and the calldata of their moves (docs/spec/16-chain-disputes.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aos.adapters.chain.contracts import Event, contract
from aos.adapters.chain.node import Block, ChainNode, Reverted
from aos.adapters.chain.registry import REGISTRY
from aos.core.dispute.chain_claim import ChainClaim
from aos.core.dispute.fine.chain_around import Accusation
from aos.core.dispute.fine.chain_game import (
    Answer,
    AnswerTokens,
    AskParts,
    ChainGame,
    Choose,
    Move,
    Pick,
    Prove,
    Reveal,
    ShowParts,
    ShowTile,
    Stage,
)
from aos.core.dispute.fine.onchain import FAULTS
from aos.core.encoding import canonical_json
from aos.core.manifest import GRAPH_KINDS, Manifest
from aos.core.merkle import HASH_BYTES
from aos.core.signing import keccak256
from aos.errors import InvalidMessage, Unavailable, VerificationError

COURT = contract("Court")
MODELS = contract("ModelRegistry")
BOUNDS = contract("UnitBounds")
STEP_NAMES = ("StepNorm", "StepProduct", "StepAttention", "StepElement", "StepLogits", "StepSampler")
"""The contracts of one-step rules, in the order in which `aos chain deploy` names them to a court."""
STEPS = tuple(contract(name) for name in STEP_NAMES)
LOGS_AT_ONCE = 2_000
"""Blocks: what public nodes answer at least."""
SILENT = 100
NO_SUCH_ELEMENT = 101
_ROOTS = 8
_GRAPH = (
    "n_ctx",
    "n_layers",
    "n_vocab",
    "width",
    "ff_width",
    "n_heads",
    "n_kv_heads",
    "head_width",
    "n_rot",
    "eps_bits",
    "rope_base_bits",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CourtFacts:
    """What a court is made of and asks for. Addresses in lower case, money in wei, times in seconds."""

    registry: str
    models: str
    bounds: str
    steps: tuple[str, ...]
    bond: int
    slash: int
    grace_s: int
    budget_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A game that was opened, at a block."""

    game: bytes
    claim: bytes
    claimant: str
    challenger: str
    position: int
    unit: int
    bond: int
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a game ended: its challenge refuted, its claim convicted (``code`` says why), or settled, since another game had
    convicted the claim."""

    kind: Literal["refuted", "convicted", "settled"]
    code: str = ""


class CourtContract:
    """A Court at ``address``. All of it is read at one block; whoever acts on the newest one may have to act again."""

    def __init__(self, node: ChainNode, address: str) -> None:
        self._node = node
        self.address = address.lower()
        self._facts: CourtFacts | None = None
        self._since: dict[bytes, int] = {}

    async def facts(self, block: Block) -> CourtFacts:
        """Raises VerificationError ``chain.contract`` where this or a contract that it calls is not this release's."""
        if self._facts is not None:
            return self._facts
        await self._is(self.address, (COURT,), block)
        names = ("registry", "bounds", "bond", "slashAmount", "grace", "budget")
        calls = [COURT.call(name) for name in names]
        calls += [COURT.call("steps", number) for number in range(len(STEPS))]
        answers = await self._node.calls(self.address, calls, block=block)
        registry, bounds, bond, slash, grace, budget = (
            COURT.answer(name, data) for name, data in zip(names, answers, strict=False)
        )
        steps = tuple(str(COURT.answer("steps", data)).lower() for data in answers[len(names) :])
        await self._is(registry, (REGISTRY,), block)
        (named,) = await self._node.calls(registry, [REGISTRY.call("court")], block=block)
        if str(REGISTRY.answer("court", named)).lower() != self.address:
            raise VerificationError(
                "chain.foreign", f"the registry {registry} has another court than {self.address}"
            )
        await self._is(bounds, (BOUNDS,), block)
        left = list(STEPS)
        for step in steps:
            left.remove(await self._is(step, left, block))
        (named,) = await self._node.calls(bounds, [BOUNDS.call("models")], block=block)
        models = str(BOUNDS.answer("models", named)).lower()
        await self._is(models, (MODELS,), block)
        self._facts = CourtFacts(
            registry=str(registry).lower(),
            models=models,
            bounds=str(bounds).lower(),
            steps=steps,
            bond=bond,
            slash=slash,
            grace_s=grace,
            budget_s=budget,
        )
        return self._facts

    async def _is(self, address: str, wanted: Sequence[Any], block: Block) -> Any:
        code = await self._node.code(address, block=block)
        for each in wanted:
            if each.is_code(code):
                return each
        raise VerificationError(
            "chain.contract",
            f"there is no {' or '.join(each.name for each in wanted)} of this release at {str(address).lower()}",
            hint="`aos chain deploy` deploys a court; was the deployment final yet?",
        )

    async def game(self, game: bytes, block: Block) -> ChainGame | None:
        """A game, None where there is none. Raises Unavailable ``chain.moved``: read it again."""
        data = await self._node.calls(
            self.address, [COURT.call("games", game), COURT.call("deadline", game)], block=block
        )
        held = COURT.answer("games", data[0])
        claimant, _, _, stage, challenger, _, position, unit, _ = held[:9]
        tiles, first, end, level, node, claim, _, element, asked = held[9:]
        if stage == Stage.NONE:
            return None
        (convicted,) = await self._node.calls(self.address, [COURT.call("convicted", claim)], block=block)
        children: tuple[bytes, ...] = ()
        parts, head, tile = None, b"", None
        for event in await self._events(game, block):
            args = event.args
            if event.name in ("Answered", "Revealed"):
                children = tuple(args["children"])
            elif event.name == "PartsShown":
                parts, head = tuple(tuple(part) for part in args["hashes"]), args["head"]
            elif event.name == "TileShown":
                tile = args["data"]
        found = ChainGame(
            id=game,
            claim=claim,
            claimant=str(claimant).lower(),
            challenger=str(challenger).lower(),
            stage=stage,
            position=position,
            unit=unit,
            tiles=tiles,
            node=(level, first, end),
            hash=node,
            element=element,
            asked=asked,
            deadline=COURT.answer("deadline", data[1]),
            convicted=COURT.answer("convicted", convicted),
            children=children,
            parts=parts,
            head=head,
            tile=tile,
        )
        found.check_shown()
        return found

    async def opened(self, *, first: int, last: int, game: bytes | None = None) -> list[Opened]:
        """The games that were opened in blocks ``first`` to ``last``, oldest first."""
        found = []
        for begin in range(first, last + 1, LOGS_AT_ONCE):
            end = min(begin + LOGS_AT_ONCE - 1, last)
            topics = [COURT.topic("Opened"), *([] if game is None else [game])]
            for entry in await self._node.logs(self.address, topics, first=begin, last=end):
                event = COURT.event(entry.topics, entry.data)
                if event is None:
                    raise _nonsense()
                args = event.args
                found.append(
                    Opened(
                        game=args["game"],
                        claim=args["claim"],
                        claimant=str(args["claimant"]).lower(),
                        challenger=str(args["challenger"]).lower(),
                        position=args["position"],
                        unit=args["unit"],
                        bond=args["bond"],
                        block=entry.block,
                    )
                )
        return found

    async def outcome(self, game: ChainGame, block: Block) -> Outcome:
        """How a game that is over ended. Raises Unavailable ``chain.moved``."""
        events = [event.name for event in await self._events(game.id, block)]
        if "Ended" not in events:
            raise _moved()
        if "Refuted" in events:
            return Outcome(kind="refuted")
        who = bytes(12) + bytes.fromhex(game.challenger[2:])
        convictions = await self._node.logs(
            self.address,
            [COURT.topic("Convicted"), game.claim, None, who],
            first=self._since[game.id],
            last=block.number,
        )
        for entry in convictions:
            event = COURT.event(entry.topics, entry.data)
            if event is None:
                raise _nonsense()
            code = event.args["code"]
            if code != SILENT and not 0 < code < len(FAULTS):
                raise _nonsense()
            return Outcome(kind="convicted", code="silent" if code == SILENT else FAULTS[code])
        return Outcome(kind="settled")

    async def required_bond(self, claim: bytes, block: Block) -> int:
        """Wei that a challenge of the claim takes now."""
        (data,) = await self._node.calls(self.address, [COURT.call("requiredBond", claim)], block=block)
        return int(COURT.answer("requiredBond", data))

    async def convicted(self, claim: bytes, block: Block) -> bool:
        """Whether the claim is."""
        (data,) = await self._node.calls(self.address, [COURT.call("convicted", claim)], block=block)
        return bool(COURT.answer("convicted", data))

    async def owed(self, account: str, block: Block) -> int:
        """Wei that the court owes."""
        (data,) = await self._node.calls(self.address, [COURT.call("owed", account)], block=block)
        return int(COURT.answer("owed", data))

    async def model_known(self, model_id: bytes, block: Block) -> bool:
        """Whether units of this model can be opened."""
        models = (await self.facts(block)).models
        try:
            await self._node.calls(models, [MODELS.call("facts", model_id)], block=block)
        except Reverted:
            return False
        return True

    async def step_of(self, move: Prove, block: Block) -> int:
        """The number of the contract that has the rule of the tile. Raises InvalidMessage ``chain.answer`` where none has."""
        args = (context_tuple(move.context), move.tile, move.element, move.shown, move.proof)
        for number, (address, step) in enumerate(zip((await self.facts(block)).steps, STEPS, strict=True)):
            try:
                await self._node.calls(address, [step.call("check", *args)], block=block)
            except Reverted as refusal:
                if step.error(refusal.data) == "OtherStep":
                    continue
            return number
        raise InvalidMessage("chain.answer", f"no contract of the court has the rule of tile {move.tile}")

    async def _events(self, game: bytes, block: Block) -> list[Event]:
        since = await self._opened_at(game, block)
        found = []
        for begin in range(since, block.number + 1, LOGS_AT_ONCE):
            end = min(begin + LOGS_AT_ONCE - 1, block.number)
            for entry in await self._node.logs(self.address, [None, game], first=begin, last=end):
                event = COURT.event(entry.topics, entry.data)
                if event is None:
                    raise _nonsense()
                found.append(event)
        return found

    async def _opened_at(self, game: bytes, block: Block) -> int:
        if game in self._since and self._since[game] <= block.number:
            if await self.opened(first=self._since[game], last=self._since[game], game=game):
                return self._since[game]
            del self._since[game]  # another history
        last = block.number
        while last >= 0:
            first = max(0, last - LOGS_AT_ONCE + 1)
            for each in await self.opened(first=first, last=last, game=game):
                self._since[game] = each.block
                return each.block
            last = first - 1
        raise _moved()


# --- calldata


def open_data(claim: ChainClaim, signature: bytes, position: int, unit: int) -> bytes:
    """Of the challenge, with a bond."""
    return COURT.call("open", claim_tuple(claim), signature, position, unit)


def move_data(game: bytes, move: Move, *, step: int = 0) -> bytes:
    """Of a move; ``step`` as ``CourtContract.step_of`` says, of a proof."""
    match move:
        case Answer():
            args: tuple[object, ...] = (
                move.model_id,
                move.state_root,
                _params(move),
                move.bounds,
                move.root,
                list(move.children),
            )
            return COURT.call("answer", game, *args)
        case AnswerTokens():
            return COURT.call("answerTokens", game, move.model_id, move.state_root, move.proof)
        case Reveal():
            return COURT.call("reveal", game, list(move.children))
        case ShowParts():
            hashes = [list(part) for part in move.hashes]
            return COURT.call("showParts", game, context_tuple(move.context), hashes, move.head)
        case ShowTile():
            return COURT.call("showTile", game, move.data)
        case Prove():
            args = (context_tuple(move.context), move.tile, move.element, step, move.shown, move.proof)
            return COURT.call("prove", game, *args)
        case Choose():
            args = (move.path, len(move.siblings), move.node, list(move.siblings), move.element)
            return COURT.call("choose", game, *args)
        case AskParts():
            return COURT.call("askParts", game)
        case Pick():
            return COURT.call("pick", game, move.element)


def accuse_data(claim: ChainClaim, signature: bytes, accusation: Accusation) -> bytes:
    """Of a conviction in one transaction, without a game."""
    return COURT.call(accusation.function, claim_tuple(claim), signature, *accusation.arguments)


def claim_tuple(claim: ChainClaim) -> tuple[object, ...]:
    """The contract's ``Claim``."""
    return claim.claimant, claim.receipt, claim.model_id, claim.state_root, claim.expires


def _params(move: Answer) -> tuple[object, ...]:
    """The contract's ``Params``."""
    return (
        move.salt,
        move.max_tokens,
        move.min_p,
        move.repeat_penalty,
        canonical_json(list(move.stop)),
        move.temperature,
        move.top_k,
        move.top_p,
    )


def context_tuple(words: bytes) -> tuple[bytes | int, ...]:
    """The contract's ``Context`` of its 33 words."""
    each = [words[at : at + HASH_BYTES] for at in range(0, len(words), HASH_BYTES)]
    return (*each[:_ROOTS], *(int.from_bytes(word, "big") for word in each[_ROOTS:]))


def manifest_tuple(manifest: Manifest) -> tuple[object, ...]:
    """The ModelRegistry's ``Manifest``. The model has a graph."""
    graph = manifest.graph
    assert graph is not None  # noqa: S101  a model of the canonical arithmetic
    return (
        manifest.file_sha256,
        manifest.file_size,
        manifest.weights_root,
        manifest.tokenizer,
        manifest.chat_template or bytes(HASH_BYTES),
        manifest.rope_table,
        (*(getattr(graph, name) for name in _GRAPH), graph.tied),
        list(GRAPH_KINDS).index(manifest.architecture),
        manifest.arithmetic,
    )


def register_model_data(manifest: Manifest, uri: str = "") -> bytes:
    """Of the transaction that registers a model, at the ModelRegistry."""
    return MODELS.call("register", manifest_tuple(manifest), uri)


def game_id(claim: bytes, challenger: str) -> bytes:
    """The game of a challenger about a claim (by its struct hash)."""
    return keccak256(claim + bytes(12) + bytes.fromhex(challenger[2:]))


def _moved() -> Unavailable:
    return Unavailable(
        "chain.moved", "the chain was reorganised while the game was read", hint="read it again"
    )


def _nonsense() -> InvalidMessage:
    return InvalidMessage("chain.answer", "the court has a log entry that its contract does not write")
