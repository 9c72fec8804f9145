"""Rows 28 and 41, on a second network: its stakes are a contract's, and its beacon is a block of a real node."""

import secrets
from collections.abc import Callable
from dataclasses import replace

from aos.adapters.chain.node import Block, ChainNode
from aos.adapters.chain.registry import block_since, newest_final
from aos.adapters.embedded.anvil import CHAIN_ID
from aos.attack.forge import reseeded, restate
from aos.attack.live import Live, Stolen, refusal
from aos.attack.rows.draws import REGISTRY, registration
from aos.attack.table import Trial, row
from aos.core import draw
from aos.core.beacon import block_time, verify_block_beacon
from aos.core.statements import DrawCall
from aos.core.trust import load_policy
from aos.errors import RuleViolation

_SUITS = 8
"""One block in so many gives a draw that suits the requester."""


@row(
    28,
    "requester grinds prompts or ids",
    "field.unknown",
    "draw.seed_proof",
    "beacon.mismatch",
    guests=True,
    chain=True,
    missing="a requester in league with D, who know the block twenty minutes ahead and choose among prompts or ids",
)
async def ground_draws(live: Live, t: Trial) -> None:
    network = _network(live)
    chosen = network.seed_body() | {"job_id": secrets.token_urlsafe(24)}
    t.attack(
        "a job id of the requester's choice", "field.unknown", await network.post("/api/job/submit", chosen)
    )
    answer = await network.single()
    call = answer.draw.draw_call.statement
    # No verifier reads a chain: what beacon-1 leaves open, the operators have checked, as below.
    policy = load_policy("dev")
    policy = replace(policy, required=tuple(name for name in policy.required if name != "beacon-1"))
    t.twin("a job under the id that D gives it", network.judge(answer, policy=policy))

    def foreseen(told: DrawCall) -> DrawCall:
        """The seed that a requester computes before it asks: with a key of its own."""
        seed, proof = draw.make_draw_seed(
            secrets.token_bytes(32),
            network=told.network,
            job_ref=told.job_ref,
            attempt=told.attempt,
            beacon=told.beacon,
            snapshot_root=told.snapshot_root,
        )
        return replace(told, draw_seed=seed, draw_proof=proof)

    told = restate(network, answer, draw_call=foreseen)
    t.attack("a draw computed before asking", "draw.seed_proof", network.judge(told))

    # What an operator does with a draw call: it finds the epoch's block with its own node.
    epoch_ms, genesis = network.trust.epoch_ms, network.trust.genesis
    node = ChainNode(live.chain_url, chain_id=CHAIN_ID)
    try:
        final = await newest_final(node)
        block = await block_since(node, final, block_time(call.epoch, genesis, epoch_ms))

        def drawn(told: DrawCall) -> str:
            return refusal(lambda: verify_block_beacon(told.beacon, block.hash))

        for name, other in (
            ("the block before", await node.block(block.number - 1)),
            ("the newest final block", final),
            ("one of many blocks, by the draw that it gives", await _suiting(network, call, node, block)),
        ):
            bent = reseeded(network, _under(other))(call)
            t.attack(f"a draw under {name}", "beacon.mismatch", drawn(bent))
        nowhere = reseeded(network, lambda told: replace(told, beacon=secrets.token_bytes(32)))(call)
        t.attack("a draw under a block that nobody made", "beacon.mismatch", drawn(nowhere))
        t.twin("the draw that the network made", drawn(call))
    finally:
        await node.close()


@row(
    41,
    "many identities of one owner",
    "registration.stake",
    guests=True,
    chain=True,
    missing="where there is no chain an identity costs nothing; whose the stakes are, nobody can see",
)
async def identities(live: Live, t: Trial) -> None:
    network = _network(live)
    node_id, staked = next(iter(network.operators.items()))
    models = await network.models_of(node_id)

    async def entered(keys: Stolen) -> str:
        return await network.post(REGISTRY, registration(network, keys, models).to_json())

    for number in ("second", "third", "fourth"):
        fresh = Stolen(signer=secrets.token_bytes(32), vrf=secrets.token_bytes(32))
        t.attack(f"a {number} identity without a stake", "registration.stake", await entered(fresh))
    borrowed = Stolen(signer=secrets.token_bytes(32), vrf=staked.vrf)
    t.attack("a second identity on the first one's stake", "registration.stake", await entered(borrowed))
    t.twin("the one that has staked", await entered(staked))


def _network(live: Live) -> Live:
    """Raises RuleViolation ``attack.no_chain``."""
    if live.chain is None:
        raise RuleViolation("attack.no_chain", "there is no network with a chain")
    return live.chain


def _under(block: Block) -> Callable[[DrawCall], DrawCall]:
    return lambda told: replace(told, beacon=block.hash)


async def _suiting(network: Live, call: DrawCall, node: ChainNode, right: Block) -> Block:
    """A block of the last that lie before the right one, under which D's key gives a seed as it is wanted."""
    for number in range(right.number - 1, -1, -1):
        block = await node.block(number)
        if reseeded(network, _under(block))(call).draw_seed[0] % _SUITS == 0:
            return block
    raise RuleViolation("attack.ground", "no block gives a draw that suits")
