"""A party to disputes that has the model: its runs computed once more, their leaves, its next move in a game
(docs/spec/13-dispute.md, "How to play"). What a worker does for its operator, and ``aos challenge`` for whoever runs it.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aos.core.codec import decode
from aos.core.dispute import players
from aos.core.dispute.audit import AuditRequest
from aos.core.dispute.case import UnitTrace as AnyTrace
from aos.core.dispute.fine.around import prove_header, prove_tokens, prove_trap
from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.chain_around import TOKENS_UNIT
from aos.core.dispute.fine.chain_game import MAX_GAME_BYTES, ChainGame, move_json
from aos.core.dispute.fine.chain_players import claimant_move
from aos.core.dispute.fine.referee import Canonical
from aos.core.dispute.game import Game
from aos.core.dispute.moves import Move
from aos.core.dispute.state_opening import Place
from aos.core.dispute.state_tree import TOKEN
from aos.core.dispute.transcript import read_transcript, replay
from aos.core.encoding import b64u_encode, parse_json_strict
from aos.core.statements import Prompt
from aos.engine.around import check_with_tokenizer, write_tables
from aos.engine.gguf import read_gguf
from aos.engine.native import NativeEngine
from aos.engine.reference import ReferenceEngine
from aos.engine.trace import AbsentUnit, Claimed, KnownRun, ModelWeights, UnitTrace, known_run
from aos.errors import InvalidMessage, RuleViolation
from aos.ports import SamplingParams

KEPT = 4
"""Runs and traces kept between two moves."""


class Party:
    """Plays with one engine and model file. One question at a time: each computes a run once more."""

    def __init__(
        self,
        engine: NativeEngine | ReferenceEngine,
        path: Path,
        *,
        cache_dir: Path | None = None,
        threads: int = 1,
    ) -> None:
        self._engine = engine
        self._path = path
        self._cache_dir = cache_dir
        self._threads = threads
        self._weights: ModelWeights | None = None
        self._runs: OrderedDict[Any, KnownRun] = OrderedDict()
        self._traces: OrderedDict[Any, UnitTrace] = OrderedDict()

    def run(self, prompt: Prompt, tokens: Sequence[int], params: SamplingParams, *, salt: bytes) -> KnownRun:
        """This engine's run, given the tokens that it is claimed to have: up to the first that it does not choose."""
        key = (prompt, tuple(tokens), params, salt)
        if key not in self._runs:
            run = self._engine.replayed(prompt, tokens, params, salt=salt)
            _keep(self._runs, key, known_run(run, self._engine.manifest))
        return self._runs[key]

    def leaves(self, known: KnownRun) -> dict[str, Any]:
        """What the run's claimant serves, as JSON (docs/spec/13-dispute.md, "The claim")."""
        tree = known.tree
        return {
            "header": b64u_encode(tree.header.entry()),
            "units": [b64u_encode(b"".join(leaves)) for leaves in tree.units],
            "manifest": self._engine.manifest.json().decode(),
            "prompt_tokens": list(known.tokens[: tree.header.n_prompt]),
            "tokenizer": b64u_encode(write_tables(self._engine.tokenizer, self._template())),
        }

    def _template(self) -> bytes:
        source = read_gguf(self._path).metadata.get("tokenizer.chat_template")
        return source if isinstance(source, bytes) else b""

    def audit(self, known: KnownRun, request: AuditRequest) -> tuple[int, Iterator[bytes]]:
        """What an audit asks of the run: bytes in number, and piece after piece (docs/spec/14-audit.md, "The bundle").

        Raises as ``aos.engine.audit.open_layers``.
        """
        from aos.engine.audit import open_layers  # an auditor's arithmetic comes with it

        return open_layers(known, self._engine, self._loaded().tensor_leaves, request)

    def move(self, known: KnownRun, party: str | None, data: bytes) -> Move:
        """The next move in the game that a transcript (bytes) is. Raises RuleViolation ``dispute.stage``, and what game and
        trace raise."""
        arithmetic = Canonical(check_with_tokenizer)
        game = replay(read_transcript(data), arithmetic)
        if party != game.mover:
            raise RuleViolation("dispute.stage", f"it is the turn of {game.mover or 'nobody'}")
        if game.open.kind != "unit":
            return players.prove(game, self._around(known, game))
        if party == "claimant":
            return players.answer(game, arithmetic, self.trace(known, game.open.position, game.open.unit))
        context = None if game.opened is None else game.opened.context
        trace = self._own(
            known, game.open.position, game.open.unit, context if isinstance(context, Unit) else None
        )
        return players.choose(game, trace)

    def court_move(self, known: KnownRun, data: bytes) -> dict[str, Any]:
        """The claimant's next move in a game on a chain, ``data`` being the JSON of a ``ChainGame``: ``{"kind", "move",
        "manifest"}``. Raises RuleViolation ``dispute.stage``; InvalidMessage ``field.*``, and what the trace raises.
        """
        game = decode(ChainGame, parse_json_strict(data, max_bytes=MAX_GAME_BYTES), where="game")
        if game.unit == TOKENS_UNIT:
            move = claimant_move(game, known.run, self.prove_tokens(known, game.position), None)
        else:
            trace = self.trace(known, game.position, game.unit)
            there = trace if isinstance(trace, UnitTrace) else None
            move = claimant_move(game, known.run, trace.bounds, there)
        return {**move_json(move), "manifest": self._engine.manifest.json().decode()}

    def trace(self, known: KnownRun, position: int, unit: int) -> AnyTrace:
        """What a claimant shows of a unit of its run."""
        try:
            return self._own(known, position, unit, None)
        except InvalidMessage as error:
            if error.code != "trace.unit":
                raise
            return AbsentUnit(known)

    def against(self, known: KnownRun, position: int, unit: int, claim: Claimed) -> UnitTrace:
        """What a challenger compares a unit of a claim with. Raises InvalidMessage ``trace.unit`` where its own run has none."""
        return self._own(known, position, unit, claim)

    def _own(self, known: KnownRun, position: int, unit: int, against: Claimed | None) -> UnitTrace:
        key = (known.tree.root, position, unit, None if against is None else (against.trap_op, against.cuts))
        if key not in self._traces:
            trace = UnitTrace(known, self._loaded(), self._engine, position, unit, against=against)
            _keep(self._traces, key, trace)
        return self._traces[key]

    def _loaded(self) -> ModelWeights:
        if self._weights is None:
            self._weights = ModelWeights(
                read_gguf(self._path), cache_dir=self._cache_dir, threads=self._threads
            )
        return self._weights

    def _around(self, known: KnownRun, game: Game) -> bytes:
        if game.open.kind == "trap":
            return prove_trap(known.tree, known.trap)
        if game.open.kind != "tokens":
            return prove_header(known.tree)
        return self.prove_tokens(known, game.open.position)

    def prove_tokens(self, known: KnownRun, position: int) -> bytes:
        """A claimant's proof that the token behind a position is the one that the tail there chose, or that none chose one."""
        trap, header, tail = known.trap, known.tree.header, None
        if header.n_prompt <= position + 1 < header.n_prompt + header.n_out:
            unit = len(known.tree.units[position]) - 1
            place = Place(position=position, unit=unit, part=TOKEN, tile=0)
            tail = self._own(known, position, unit, None).open_state(place)
        return prove_tokens(known.tree, known.tokens, position, None if trap is None else trap[0], tail)


def _keep(kept: OrderedDict[Any, Any], key: object, value: object) -> None:
    kept[key] = value
    while len(kept) > KEPT:
        kept.popitem(last=False)
