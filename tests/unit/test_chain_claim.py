"""An operator's claim at a court (docs/spec/16-chain-disputes.md): one digest here, in a wallet's library and in the contract."""

from dataclasses import replace
from random import Random

import pytest
from court_games import BOND, CHALLENGER, CLAIMANT, World, build
from eth_account.messages import encode_typed_data
from evm import ACCOUNTS, Revm

from aos.adapters.embedded.anvil import KEYS
from aos.core.codec import encode
from aos.core.dispute.chain_claim import (
    MAX_CLAIM_BYTES,
    ChainClaim,
    CourtDomain,
    claim_digest,
    claim_hash,
    parse_claim,
    sign_claim,
    verify_claim,
)
from aos.core.encoding import canonical_json
from aos.core.signing import keccak256
from aos.errors import InvalidMessage, RuleViolation, VerificationError

KEY = KEYS[ACCOUNTS.index(CLAIMANT)]


def a_claim(random: Random) -> ChainClaim:
    return ChainClaim(
        claimant=CLAIMANT,
        receipt=random.randbytes(32),
        model_id=random.randbytes(32),
        state_root=random.randbytes(32),
        expires=random.choice((0, 1, 2**40, 2**53 - 1)),
    )


def as_arguments(claim: ChainClaim) -> tuple[str, bytes, bytes, bytes, int]:
    return (claim.claimant, claim.receipt, claim.model_id, claim.state_root, claim.expires)


@pytest.fixture(scope="module")
def world() -> World:
    pytest.importorskip("pyrevm", reason="pip install pyrevm")
    return build(Revm())


def domain_of(world: World) -> CourtDomain:
    return CourtDomain(chain_id=1, court=world.court.address.lower())


def test_the_contract_computes_the_same_name_and_digest(world: World) -> None:
    random = Random("claims")
    for _ in range(20):
        claim = a_claim(random)
        assert world.court.read("claimHash", as_arguments(claim)) == claim_hash(claim)
        assert world.court.read("digest", claim_hash(claim)) == claim_digest(claim, domain_of(world))


def test_the_contract_takes_what_was_signed_and_for_no_other_court(world: World) -> None:
    claim = replace(a_claim(Random("taken")), expires=2**40)
    signed = sign_claim(KEY, claim, domain_of(world))
    assert verify_claim(signed) == CLAIMANT
    sent = as_arguments(claim)
    for elsewhere in (
        replace(domain_of(world), chain_id=31337),
        replace(domain_of(world), court=world.registry.address.lower()),
    ):
        other = sign_claim(KEY, claim, elsewhere)
        assert verify_claim(other) == CLAIMANT
        world.court.refuses("BadSignature", CHALLENGER, "open", sent, other.signature, 0, 0, value=BOND)
    done = world.court.send(CHALLENGER, "open", sent, signed.signature, 0, 0, value=BOND)
    (opened,) = world.court.events(done)
    assert opened.args["claim"] == claim_hash(claim)


def test_a_wallet_signs_the_same_digest() -> None:
    claim = a_claim(Random("wallet"))
    domain = CourtDomain(chain_id=31337, court="0x" + "c0" * 20)
    message = encode_typed_data(
        domain_data={
            "name": "AOS court",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": domain.court,
        },
        message_types={
            "Claim": [
                {"name": "claimant", "type": "address"},
                {"name": "receipt", "type": "bytes32"},
                {"name": "modelId", "type": "bytes32"},
                {"name": "stateRoot", "type": "bytes32"},
                {"name": "expires", "type": "uint64"},
            ]
        },
        message_data=dict(
            zip(("claimant", "receipt", "modelId", "stateRoot", "expires"), as_arguments(claim), strict=True)
        ),
    )
    assert keccak256(b"\x19" + message.version + message.header + message.body) == claim_digest(claim, domain)


def test_nobody_signs_for_another_and_a_changed_claim_is_nobodys() -> None:
    claim = a_claim(Random("other"))
    domain = CourtDomain(chain_id=31337, court="0x" + "c0" * 20)
    with pytest.raises(RuleViolation, match="another's to sign"):
        sign_claim(KEYS[ACCOUNTS.index(CHALLENGER)], claim, domain)
    signed = sign_claim(KEY, claim, domain)
    for name in ("receipt", "model_id", "state_root"):
        with pytest.raises(VerificationError) as caught:
            verify_claim(replace(signed, claim=replace(claim, **{name: bytes(32)})))
        assert caught.value.code == "signature.wrong_signer"


def test_a_claim_survives_its_json_and_a_large_one_is_not_read() -> None:
    signed = sign_claim(KEY, a_claim(Random("json")), CourtDomain(chain_id=2**53 - 1, court="0x" + "f" * 40))
    data = canonical_json(encode(signed))
    assert parse_claim(data) == signed
    assert len(data) < MAX_CLAIM_BYTES // 2
    with pytest.raises(InvalidMessage) as caught:
        parse_claim(data + b" " * MAX_CLAIM_BYTES)
    assert caught.value.code == "encoding.too_large"
