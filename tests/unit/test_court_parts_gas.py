"""What asking for the parts of a unit costs, on a real node under Prague's rules: a tail's logits are most of them."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chain_steps import context_of
from court_games import BOND, CHALLENGER, CLAIMANT, OWNER, build, sign
from evm import Node, names
from gas import check_gas
from test_court_gas import params_of
from test_model_registry_contract import as_arguments

from aos.core.codec import decode
from aos.core.dispute.fine.bounds import Bounds, Run, open_unit
from aos.core.dispute.fine.onchain import chain_bounds, frontier
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import StateHeader, record_size, unit_leaf
from aos.core.dispute.trace_tree import TreeShape
from aos.core.encoding import parse_canonical
from aos.core.hashes import run_params_hash
from aos.core.manifest import Manifest
from aos.core.merkle import leaf_hash, tree_root

BLOCK = 16_777_216
"""The most gas that a transaction may have (EIP-7825); a block has more."""


@pytest.mark.parametrize("n_vocab", [32_000, 152_064])
def test_the_parts_of_a_tail(node: Node, repository: Path, n_vocab: int) -> None:
    vector: dict[str, Any] = json.loads((repository / "vectors/aos/dispute/chain.json").read_text())
    text = vector["manifest"].encode()
    manifest = decode(Manifest, parse_canonical(text, max_bytes=65_536), where="manifest")
    assert manifest.graph is not None
    manifest = replace(manifest, graph=replace(manifest.graph, n_vocab=n_vocab))
    rng, salt = random.Random(n_vocab), bytes.fromhex(vector["salt"])
    params = SimpleNamespace(**vector["params"], seed=7)
    last, tail = 2000, manifest.graph.n_layers + 1
    header = StateHeader(
        model_id=manifest.model_id,
        prompt_tokens_hash=bytes(32),
        params_hash=run_params_hash(salt, params),
        sampling_seed=7,
        n_prompt=last - 98,
        n_out=100,
        finish_reason="stop",
        tokens_hash=bytes(32),
        response_hash=bytes(32),
        tokens_root=bytes(32),
        n_positions=last + 1,
    )
    # Tiles of 1,024 bytes: the logits, the sampler's record, whose first is shown whole, the token.
    head = rng.randbytes(min(record_size(n_vocab), 1024))
    tiles = [-(-4 * n_vocab // 1024), -(-record_size(n_vocab) // 1024), 1]
    hashes = [[rng.randbytes(32) for _ in range(count)] for count in tiles]
    hashes[1][0] = leaf_hash(head)
    units = [[rng.randbytes(32) for _ in range(tail + 1)] for _ in range(last + 1)]
    units[last][tail] = unit_leaf(last, tail, [tree_root(part) for part in hashes])
    tree = StateTree(header, units)
    run = Run(manifest=manifest, params=params, salt=salt, state_root=tree.root)
    bounds = Bounds(
        header=header.entry(),
        header_path=tree.open_header(),
        trap_unit=None,
        op=0,
        tile_hashes=tuple(map(tuple, hashes)),
        leaf_opening=tree.open_leaves(last, tail),
        head=head,
    ).encode()
    unit = open_unit(run, last, tail, bounds)
    assert unit.shape is not None
    children = [rng.randbytes(32) for _ in frontier(TreeShape(unit.shape.n_tiles), (0, 0, 1), 4)]
    world = build(node)
    world.models.send(OWNER, "register", as_arguments(manifest), "")
    claim = (CLAIMANT, bytes(32), manifest.model_id, tree.root, 2**40)
    claim_id = world.court.read("claimHash", claim)
    game = world.court.read("gameId", claim_id, CHALLENGER)
    world.court.send(CHALLENGER, "open", claim, sign(world, claim_id), last, tail, value=BOND)
    opening = chain_bounds(bounds, run, last, tail)
    answer = (game, *claim[2:4], params_of(vector), opening, tree_root(children), children)
    done = world.court.send(CLAIMANT, "answer", *answer)
    (answered,) = world.court.events(done)
    check_gas(
        "Court.askParts" + f" {n_vocab}" * (n_vocab > 32_000),
        world.court.send(CHALLENGER, "askParts", game).gas,
    )
    context = context_of(unit, answered.args["unitRoot"])
    done = world.court.send(CLAIMANT, "showParts", game, context, hashes, head)
    assert names(world.court.events(done)) == ["PartsShown"]
    check_gas(f"Court.showParts of {sum(tiles)}", done.gas, limit=BLOCK)
