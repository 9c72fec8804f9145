"""The canonical arithmetic as the game sees it (docs/spec/13-dispute.md; docs/spec/11-trace.md). A referee's side: it holds
no weights and no run, and loads NumPy, so that ``aos.core.dispute`` itself does not.
"""

from typing import NoReturn

from aos.core.codec import decode
from aos.core.dispute.case import Case, OpenedUnit
from aos.core.dispute.fine.bounds import Bounds, Run, Unit, open_unit
from aos.core.dispute.fine.tile import check_tile, n_tiles
from aos.core.dispute.moves import Kind
from aos.core.dispute.state_tree import StateHeader
from aos.core.dispute.trace_tree import fanout, unit_root
from aos.core.encoding import parse_canonical
from aos.core.manifest import Manifest
from aos.core.statements import ReceiptCore
from aos.errors import Unavailable, VerificationError

MAX_MANIFEST_BYTES = 64 * 1024


class Canonical:
    """``aos.core.dispute.case.Arithmetic`` of profile ``aos-canonical/1``."""

    def open_unit(self, case: Case, position: int, unit: int, bounds: bytes) -> OpenedUnit:
        """See ``Arithmetic``. Raises what ``bounds.open_unit`` raises; VerificationError ``dispute.header`` where receipt
        and state root disagree; Unavailable ``dispute.undisclosed``."""
        run = run_of(case)
        _, header, _ = Bounds.decode(bounds, run, position, unit)
        check_header(case.core, header)
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
        """See ``Arithmetic``."""
        _undisclosed("what is around the model")


def run_of(case: Case) -> Run:
    """What a referee knows of the claim's run. ``case`` was checked. Raises Unavailable ``dispute.undisclosed``."""
    if not case.manifest:
        _undisclosed("the model's manifest")
    if case.params is None or not case.nonce:
        _undisclosed("parameters and nonce")
    manifest = decode(
        Manifest, parse_canonical(case.manifest.encode(), max_bytes=MAX_MANIFEST_BYTES), where="manifest"
    )
    return Run(manifest=manifest, params=case.params, salt=case.nonce, state_root=case.core.state_root)


def check_header(core: ReceiptCore, header: StateHeader) -> None:
    """Check that a run's header is what its receipt says. Raises VerificationError ``dispute.header`` naming the member."""
    stated = {
        "model_id": core.model_id,
        "prompt_tokens_hash": core.prompt_tokens_hash,
        "sampling_seed": int(core.sampling_seed),
        "n_prompt": core.n_prompt,
        "n_out": core.n_out,
        "finish_reason": core.finish_reason,
        "tokens_hash": core.tokens_hash,
        "response_hash": core.response_hash,
    }
    for name, value in stated.items():
        if getattr(header, name) != value:
            raise VerificationError(
                "dispute.header", f"receipt and state root disagree about {name}", field=name
            )


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
