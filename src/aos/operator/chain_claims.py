"""The claims that an operator signs for the court on a chain: one of each opML receipt, stored before it is sent
(docs/spec/16-chain-disputes.md, "Claims").
"""

from aos.core.codec import decode, encode
from aos.core.dispute.chain_claim import ChainClaim, SignedChainClaim, claim_hash, sign_claim
from aos.core.statements import ReceiptCore, hash_of
from aos.operator.identity import Identity
from aos.operator.network import Network
from aos.operator.rows import Assignment, from_text, to_text
from aos.operator.store import Store


async def claim_for(
    store: Store, identity: Identity, network: Network, held: Assignment, *, now_s: int, hours: int
) -> SignedChainClaim | None:
    """The claim that goes with a signed receipt, at the court that the network names; None where it names none, or the receipt
    has no state root. It can be challenged for ``hours`` from ``now_s`` (Unix seconds) on. Asked again, it is the same.
    """
    core = decode(ReceiptCore, held.receipt)
    if network.court is None or not core.state_root:
        return None
    claim = ChainClaim(
        claimant=identity.node_id,
        receipt=hash_of(core),
        model_id=core.model_id,
        state_root=core.state_root,
        expires=now_s + hours * 3_600,
    )
    async with store.transaction() as db:
        place = (held.job_ref, held.attempt, network.court.chain_id, network.court.court)
        await db.execute(
            "INSERT INTO chain_claim (job_ref, attempt, chain_id, court, claim, signed_at, expires, signed)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (job_ref, attempt, chain_id, court) DO NOTHING",
            *place,
            claim_hash(claim),
            now_s,
            claim.expires,
            to_text(encode(sign_claim(identity.signer_key, claim, network.court))),
        )
        text = await db.fetchval(
            "SELECT signed FROM chain_claim WHERE (job_ref, attempt, chain_id, court) = ($1, $2, $3, $4)",
            *place,
        )
    return decode(SignedChainClaim, from_text(text))
