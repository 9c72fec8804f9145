"""What a game is about: the claim with what opens it, and the ports through which the game recomputes.

A claim is an operator's signed ``aos.receipt`` that names a ``state_root`` (docs/spec/13-dispute.md, "The claim").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from aos.core import hashes
from aos.core.codec import MaxLength, OptionalBytes32, SignatureBytes, UInt32, encode
from aos.core.dispute.moves import Kind
from aos.core.encoding import b64u_encode, tagged_hash
from aos.core.signing import verify_statement
from aos.core.statements import Params, ReceiptCore, hash_of
from aos.errors import VerificationError

MAX_MANIFEST_CHARS = 64 * 1024
MAX_TOKENIZER_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A claim, and what is disclosed of the data that it hashes; null or empty where it is not.

    ``manifest`` and ``request`` are the exact canonical JSON as text, ``tokenizer`` the bytes whose hash the manifest
    names. Nothing but ``core`` and ``signature`` is believed before ``check_case``.
    """

    TYPE: ClassVar[str] = "aos.dispute_case"
    V: ClassVar[int] = 1

    core: ReceiptCore
    signature: SignatureBytes
    manifest: Annotated[str, MaxLength(MAX_MANIFEST_CHARS)]
    nonce: OptionalBytes32
    params: Params | None
    request: Annotated[str, MaxLength(1 << 20)]
    prompt_tokens: Annotated[tuple[UInt32, ...], MaxLength(1_000_000)] | None
    tokens: Annotated[tuple[UInt32, ...], MaxLength(1_000_000)] | None
    text: Annotated[str, MaxLength(1 << 22)] | None
    tokenizer: Annotated[bytes, MaxLength(MAX_TOKENIZER_BYTES)] | None

    @property
    def claim(self) -> bytes:
        """The claim's name in every game about it: the receipt's hash."""
        return hash_of(self.core)


def check_case(case: Case) -> tuple[str, ...]:
    """Check that the operator signed the claim, and every disclosed member against it; returns their names.

    Raises InvalidMessage and VerificationError: ``signature.*``, ``dispute.not_disputable`` (no ``state_root``),
    ``dispute.foreign_data`` naming the member. ``tokenizer`` is the arithmetic's to check: the manifest names its hash.
    """
    core = case.core
    verify_statement(encode(core), b64u_encode(case.signature), core.operator)
    if not core.state_root:
        raise VerificationError(
            "dispute.not_disputable", "this receipt commits to no state root", field="core.state_root"
        )
    nonce, known = case.nonce, []
    if case.manifest:
        _same("manifest", tagged_hash("model", case.manifest.encode()), core.model_id)
        known.append("manifest")
    salted: tuple[tuple[str, object], ...] = (
        ("params", case.params),
        ("request", case.request or None),
        ("prompt_tokens", case.prompt_tokens),
        ("tokens", case.tokens),
        ("text", case.text),
    )
    disclosed = [name for name, value in salted if value is not None]
    if disclosed and not nonce:
        raise VerificationError(
            "dispute.foreign_data", "without the nonce nothing shows that this is the claim's", field="nonce"
        )
    if case.params is not None:
        _same("params", hashes.params_hash(nonce, case.params), core.params_hash)
    if case.request:
        _same("request", hashes.request_hash(nonce, case.request.encode()), core.request_hash)
    if case.prompt_tokens is not None:
        _same("prompt_tokens", hashes.prompt_tokens_hash(nonce, case.prompt_tokens), core.prompt_tokens_hash)
    if case.tokens is not None:
        _same("tokens", hashes.tokens_hash(nonce, case.tokens), core.tokens_hash)
    if case.text is not None:
        _same("text", hashes.response_hash(nonce, case.text), core.response_hash)
    return (*known, *disclosed)


def _same(name: str, computed: bytes, stated: bytes) -> None:
    if computed != stated:
        raise VerificationError(
            "dispute.foreign_data", f"the {name} in this file is not that of the claim", field=name
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedUnit:
    """A unit as the claim's ``state_root`` commits it.

    ``leaf`` is the unit's (or trap's) leaf hash. ``n_tiles`` is 0 where the header says that there is no such unit.
    ``outputs`` pairs each trace tile that ``state_root`` commits (values, or that the unit did or did not trap) with the
    hash that is committed. ``context`` goes back to the arithmetic as it came.
    """

    leaf: bytes
    n_tiles: int
    fanout: tuple[int, ...]
    outputs: tuple[tuple[int, bytes], ...]
    context: object


class Arithmetic(Protocol):
    """Recomputes one value from openings alone. What it raises says who is at fault.

    VerificationError and InvalidMessage: the claimant's bytes do not hold, and it signed them. Unavailable: this
    referee lacks what it needs; nobody is at fault.
    """

    def open_unit(self, case: Case, position: int, unit: int, bounds: bytes) -> OpenedUnit:
        """Check the claimant's opening of a unit under ``case.core.state_root``, and its header against the claim."""

    def unit_root(self, opened: OpenedUnit, position: int, unit: int, root: bytes) -> bytes:
        """The ``unit_root`` that belongs to the root hash of a unit's trace tree."""

    def check_tile(self, opened: OpenedUnit, unit_root: bytes, index: int, proof: bytes) -> None:
        """Recompute tile ``index``: operands and output opened where the graph dictates, equal to the last bit."""

    def check_around(self, case: Case, kind: Kind, position: int, unit: int, proof: bytes) -> None:
        """Check the claimant's proof about something around the model."""


class UnitTrace(Protocol):
    """A party's own trace of one unit."""

    @property
    def tile_hashes(self) -> Sequence[bytes]:
        """The hash of every tile, in order."""

    @property
    def outputs(self) -> Sequence[tuple[int, bytes]]:
        """For every tile that a state root may commit, the hash of what this trace has there (also where this party's own
        run committed something else, a trap)."""

    @property
    def bounds(self) -> bytes:
        """The opening of the unit under this party's own ``state_root``."""

    def prove(self, index: int) -> bytes:
        """The proof of tile ``index``, with its operands."""
