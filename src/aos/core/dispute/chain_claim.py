"""An operator's claim at a court on a chain (docs/spec/16-chain-disputes.md, "Claims"): its name, its EIP-712 signature, and
whether it is the one that a receipt must come with.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from aos.core.codec import Address, Bytes32, Range, SignatureBytes, UInt, decode, encode
from aos.core.encoding import parse_json_strict
from aos.core.signing import address_bytes, address_of, keccak256, recover_digest, sign_digest
from aos.core.statements import ReceiptCore, hash_of
from aos.errors import RuleViolation, VerificationError

MAX_CLAIM_BYTES: Final = 2048
"""Of a signed claim as JSON."""

_DOMAIN = keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_NAME, _VERSION = keccak256(b"AOS court"), keccak256(b"1")
_CLAIM = keccak256(
    b"Claim(address claimant,bytes32 receipt,bytes32 modelId,bytes32 stateRoot,uint64 expires)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CourtDomain:
    """The court that a claim is for."""

    chain_id: Annotated[int, Range(1, 2**53 - 1)]
    court: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainClaim:
    """That the run of a receipt (its hash, 32 bytes) has this state root. ``expires`` in Unix seconds: until then, that second
    included, anybody may open a game."""

    claimant: Address
    receipt: Bytes32
    model_id: Bytes32
    state_root: Bytes32
    expires: UInt


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedChainClaim:
    """A claim as operators hand it over and dispatchers serve it."""

    TYPE: ClassVar[str] = "aos.chain_claim"
    V: ClassVar[int] = 1

    domain: CourtDomain
    claim: ChainClaim
    signature: SignatureBytes


def claim_hash(claim: ChainClaim) -> bytes:
    """The claim's name in games: the EIP-712 hash of the struct (32 bytes). Of no chain and no court."""
    return keccak256(
        b"".join(
            (
                _CLAIM,
                _address_word(claim.claimant),
                claim.receipt,
                claim.model_id,
                claim.state_root,
                claim.expires.to_bytes(32, "big"),
            )
        )
    )


def claim_digest(claim: ChainClaim, domain: CourtDomain) -> bytes:
    """What is signed of a claim (32 bytes)."""
    separator = keccak256(
        b"".join((_DOMAIN, _NAME, _VERSION, domain.chain_id.to_bytes(32, "big"), _address_word(domain.court)))
    )
    return keccak256(b"\x19\x01" + separator + claim_hash(claim))


def sign_claim(private_key: bytes, claim: ChainClaim, domain: CourtDomain) -> SignedChainClaim:
    """Sign with the claimant's key. Raises ConfigError ``key.invalid``; RuleViolation ``chain_claim.claimant``."""
    if address_of(private_key) != claim.claimant:
        raise RuleViolation("chain_claim.claimant", "the claim is another's to sign", field="claim.claimant")
    return SignedChainClaim(
        domain=domain, claim=claim, signature=sign_digest(private_key, claim_digest(claim, domain))
    )


def parse_claim(data: bytes) -> SignedChainClaim:
    """Read JSON of at most 2048 bytes; the signature is *not* verified. Raises InvalidMessage ``encoding.*``, ``field.*``,
    ``statement.*``."""
    return decode(SignedChainClaim, parse_json_strict(data, max_bytes=MAX_CLAIM_BYTES))


def verify_claim(signed: SignedChainClaim) -> str:
    """Check that the claimant signed; returns its address.

    Raises InvalidMessage ``signature.recovery_id``; VerificationError ``signature.*``.
    """
    claimant = signed.claim.claimant
    if recover_digest(claim_digest(signed.claim, signed.domain), signed.signature) != claimant:
        raise VerificationError(
            "signature.wrong_signer", f"the signature is not that of {claimant}", field="signature"
        )
    return claimant


def check_claim(
    signed: SignedChainClaim, core: ReceiptCore, domain: CourtDomain, *, valid_until: int
) -> None:
    """Is this the claim of that receipt at that court, good until ``valid_until`` (Unix seconds) at least?

    Raises VerificationError ``chain_claim.court``, ``chain_claim.claimant``, ``chain_claim.receipt``, ``chain_claim.model``,
    ``chain_claim.state_root``, ``chain_claim.expires``, in this order, then as ``verify_claim``. The claimant is at fault.
    """
    claim = signed.claim
    for name, code, stated, wanted in (
        ("domain", "court", encode(signed.domain), encode(domain)),
        ("claim.claimant", "claimant", claim.claimant, core.operator),
        ("claim.receipt", "receipt", claim.receipt, hash_of(core)),
        ("claim.model_id", "model", claim.model_id, core.model_id),
        ("claim.state_root", "state_root", claim.state_root, core.state_root),
    ):
        if stated != wanted:
            raise VerificationError(
                f"chain_claim.{code}", f"the claim's {name} is not that of the receipt it is for", field=name
            )
    if claim.expires < valid_until:
        raise VerificationError(
            "chain_claim.expires",
            f"the claim can be challenged until {claim.expires}, and must be until {valid_until}",
            field="claim.expires",
        )
    verify_claim(signed)


def _address_word(address: str) -> bytes:
    return bytes(12) + address_bytes(address)
