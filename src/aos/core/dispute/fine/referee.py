"""The canonical arithmetic as the game sees it (docs/spec/13-dispute.md; docs/spec/11-trace.md). A referee's side: it holds
no weights and no run, and loads NumPy, so that ``aos.core.dispute`` itself does not.
"""

from collections.abc import Callable
from typing import NoReturn

from aos.core.codec import decode
from aos.core.dispute.case import Case, OpenedUnit
from aos.core.dispute.fine.around import (
    check_header_proof,
    check_receipt,
    check_tokens_proof,
    check_trap_proof,
)
from aos.core.dispute.fine.bounds import Bounds, Run, Unit, open_unit
from aos.core.dispute.fine.tile import check_tile, n_tiles
from aos.core.dispute.moves import Kind
from aos.core.dispute.state_tree import ARITHMETIC_VERSION
from aos.core.dispute.trace_tree import fanout, unit_root
from aos.core.encoding import parse_canonical
from aos.core.manifest import GraphSizes, Manifest
from aos.core.statements import Params
from aos.errors import InvalidMessage, Unavailable

MAX_MANIFEST_BYTES = 64 * 1024

WithTokenizer = Callable[[Case, Kind, Manifest, GraphSizes, Params], None]


class Canonical:
    """``aos.core.dispute.case.Arithmetic`` of profile ``aos-canonical/1``."""

    def __init__(self, with_tokenizer: WithTokenizer | None = None) -> None:
        """``with_tokenizer`` is ``aos.engine.around.check_with_tokenizer`` where it is at hand; without it such games are
        nobody's fault.
        """
        self._with_tokenizer = with_tokenizer

    def open_unit(self, case: Case, position: int, unit: int, bounds: bytes) -> OpenedUnit:
        """See ``Arithmetic``. Raises what ``bounds.open_unit`` raises; VerificationError ``dispute.header`` where receipt
        and state root disagree; Unavailable ``dispute.undisclosed``."""
        run = run_of(case)
        _, header, _ = Bounds.decode(bounds, run, position, unit)
        check_receipt(case.core, header)
        opened = open_unit(run, position, unit, bounds)
        count = n_tiles(opened)
        return OpenedUnit(
            leaf=opened.leaf,
            n_tiles=count,
            fanout=fanout(count) if count else (),
            outputs=opened.outputs,
            context=opened,
        )

    def unit_root(self, opened: OpenedUnit, position: int, unit: int, root: bytes) -> bytes:
        """See ``Arithmetic``."""
        context = _unit(opened).context
        if context is None:
            raise ValueError("the run has no such unit")
        return unit_root(context.state_root, position, unit, opened.n_tiles, root)

    def check_tile(self, opened: OpenedUnit, unit_root: bytes, index: int, proof: bytes) -> None:
        """See ``Arithmetic``, and ``tile.check_tile``."""
        check_tile(_unit(opened), unit_root, index, proof)

    def check_around(self, case: Case, kind: Kind, position: int, unit: int, proof: bytes) -> None:
        """See ``Arithmetic``: ``around`` for what needs no tokenizer, else what this referee was given for it."""
        run = run_of(case)
        if kind == "header":
            check_header_proof(case, run, proof)
        elif kind == "tokens":
            check_tokens_proof(case, run, position, proof)
        elif kind == "trap":
            check_trap_proof(case, run, proof)
        elif self._with_tokenizer is None or case.params is None:
            _undisclosed("what needs a tokenizer")
        else:
            check_header_proof(case, run, proof)
            self._with_tokenizer(case, kind, run.manifest, run.graph, case.params)


def run_of(case: Case) -> Run:
    """What a referee knows of the claim's run. ``case`` was checked.

    Raises Unavailable ``dispute.undisclosed``, and ``dispute.unknown_model`` for a manifest or arithmetic of a version that
    this referee does not know: that is not the claimant's fault.
    """
    if not case.manifest:
        _undisclosed("the model's manifest")
    if case.params is None or not case.nonce:
        _undisclosed("parameters and nonce")
    try:
        value = parse_canonical(case.manifest.encode(), max_bytes=MAX_MANIFEST_BYTES)
        manifest = decode(Manifest, value, where="manifest")
    except InvalidMessage as error:
        raise Unavailable("dispute.unknown_model", error.message, field="manifest") from error
    if manifest.arithmetic > ARITHMETIC_VERSION:
        raise Unavailable("dispute.unknown_model", "this referee does not know the model's arithmetic")
    return Run(manifest=manifest, params=case.params, salt=case.nonce, state_root=case.core.state_root)


def _unit(opened: OpenedUnit) -> Unit:
    if not isinstance(opened.context, Unit):
        raise TypeError("opened by another arithmetic")
    return opened.context


def _undisclosed(what: str) -> NoReturn:
    raise Unavailable(
        "dispute.undisclosed",
        f"{what} cannot be judged from this file",
        hint="the parties can disclose it in the transcript's case",
    )
