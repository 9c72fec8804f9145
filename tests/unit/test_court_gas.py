"""What a dispute costs at the 7B shape, on a real node under Prague's rules (pyrevm reads low)."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chain_steps import judged
from court_games import BOND, CHALLENGER, CLAIMANT, OWNER, World, build, sign
from evm import Node, names
from gas import check_gas
from simulated_run import Network
from test_model_registry_contract import as_arguments

from aos.core.codec import decode, encode
from aos.core.dispute.fine.around import prove_header, prove_tokens
from aos.core.dispute.fine.chain_around import TOKENS_UNIT
from aos.core.dispute.fine.chain_game import UNSEEN
from aos.core.dispute.state_opening import StateOpening, StateTree
from aos.core.dispute.state_tree import StateHeader, tokens_root, unit_leaf
from aos.core.dispute.trace_tree import tile_hash
from aos.core.encoding import b64u_decode, canonical_json, parse_canonical
from aos.core.hashes import params_hash, prompt_tokens_hash, token_bytes, tokens_hash
from aos.core.manifest import Manifest
from aos.core.merkle import leaf_hash
from aos.core.statements import Params, hash_of

HALVINGS = 4
DISPUTE, DISPUTE_4096, ELEMENT_4096, BLOCK_STEP = 3_000_000, 1_900_000, 800_000, 180_000
MOVES = ("open", "answer", "choose", "reveal", "showTile", "pick", "prove")
OF_4096 = {"q.chunks", "q"}
CHUNKS_OF_BLOCKS = {"q.chunks", "up.chunks", "down.chunks", "output.chunks"}
WORST = ("q.chunks", "q", "down.chunks", "v.finite", "mix")
"""Ops whose whole games are played, the costliest of all (`scripts/chain_gas.py`) among them; of the others the last move."""


@pytest.fixture
def vector(repository: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((repository / "vectors/aos/dispute/chain.json").read_text())
    return loaded


@pytest.fixture
def world(node: Node) -> World:
    return build(node)


def raw(text: str) -> bytes:
    return b64u_decode(text)


def context(vector: dict[str, Any]) -> tuple[bytes | int, ...]:
    data = raw(vector["context"])
    words = [data[at : at + 32] for at in range(0, len(data), 32)]
    return (*words[:8], *(int.from_bytes(word, "big") for word in words[8:]))


def params_of(vector: dict[str, Any]) -> tuple[Any, ...]:
    """The run's parameters as an argument."""
    p = vector["params"]
    return (
        bytes.fromhex(vector["salt"]),
        p["max_tokens"],
        p["min_p"],
        p["repeat_penalty"],
        json.dumps(p["stop"], separators=(",", ":")).encode(),
        p["temperature"],
        p["top_k"],
        p["top_p"],
    )


class Dispute:
    """A game of the vector, move by move; ``total`` is what all moves together cost."""

    def __init__(self, world: World, vector: dict[str, Any], number: int, *, register: bool) -> None:
        self.world, self.vector, self.total = world, vector, 0
        manifest = decode(
            Manifest, parse_canonical(vector["manifest"].encode(), max_bytes=65_536), where="manifest"
        )
        if register:
            world.models.send(OWNER, "register", as_arguments(manifest), "")
        receipt = number.to_bytes(32, "big")
        self.claim = (CLAIMANT, receipt, manifest.model_id, raw(vector["state_root"]), 2**40)
        self.claim_id = world.court.read("claimHash", self.claim)
        self.id = world.court.read("gameId", self.claim_id, CHALLENGER)

    def play(self, game: dict[str, Any]) -> dict[str, int]:
        """All moves; the most that a move of a kind cost."""
        vector, costs = self.vector, dict.fromkeys(MOVES, 0)

        def move(sender: str, function: str, *args: object, value: int = 0) -> None:
            done = self.world.court.send(sender, function, *args, value=value)
            costs[function] = max(costs[function], done.gas)
            self.total += done.gas
            self.last = names(self.world.court.events(done))

        signature = sign(self.world, self.claim_id)
        bond = self.world.court.read("requiredBond", self.claim_id)
        move(CHALLENGER, "open", self.claim, signature, vector["position"], vector["unit"], value=bond)
        params = params_of(vector)
        shown = [[raw(each) for each in some] for some in game["shown"]]
        roots = (self.claim[2], self.claim[3])
        move(
            CLAIMANT, "answer", self.id, *roots, params, raw(vector["bounds"]), raw(vector["root"]), shown[0]
        )
        length = len(game["right"])
        for number, done in enumerate(range(0, length, HALVINGS)):
            count = min(HALVINGS, length - done)
            turns = game["right"][done : done + count]
            path = sum(int(right) << (count - 1 - i) for i, right in enumerate(turns))
            others = [raw(each) for each in reversed(game["others"][done : done + count])]
            node = raw(game["nodes"][done + count - 1])
            move(CHALLENGER, "choose", self.id, path, count, node, others, UNSEEN)
            if done + count < length:
                move(CLAIMANT, "reveal", self.id, shown[number + 1])
        proof = raw(game["proof"])
        # A proof begins with its tile.
        tile = next(proof[:n] for n in range(1, 1025) if tile_hash(proof[:n]) == node)
        move(CLAIMANT, "showTile", self.id, tile)
        move(CHALLENGER, "pick", self.id, game["element"])
        words, element = context(vector), game["element"]
        step, code = judged(self.world.steps, words, game["tile"], element, element, proof)
        assert code == ""
        move(CLAIMANT, "prove", self.id, words, game["tile"], element, step, element, proof)
        assert self.last == ["Refuted", "Ended"]
        return costs


def test_a_dispute_of_the_7b_shape(world: World, vector: dict[str, Any]) -> None:
    games = {game["op"]: game for game in vector["games"]}
    for number, op in enumerate(WORST):
        dispute = Dispute(world, vector, number, register=number == 0)
        costs = dispute.play(games[op])
        if number == 0:
            for function, used in costs.items():
                if function != "prove":
                    check_gas(f"Court.{function}", used)
        limit = ELEMENT_4096 if op in OF_4096 else None
        check_gas(f"Court.prove {op}", costs["prove"], limit=limit)
        check_gas(f"dispute {op}", dispute.total, limit=DISPUTE_4096 if op in OF_4096 else DISPUTE)


def test_the_rules_of_the_7b_shape(world: World, vector: dict[str, Any]) -> None:
    for unit in (vector, *vector["other_units"]):
        words = context(unit)
        for game in unit["games"]:
            args = (words, game["tile"], game["element"], game["element"], raw(game["proof"]))
            number, code = judged(world.steps, *args)
            assert code == ""
            step, op = world.steps[number], game["op"]
            used = step.send(OWNER, "check", *args).gas
            # A chunk is eight blocks of a row.
            limit = BLOCK_STEP if op in CHUNKS_OF_BLOCKS else None
            check_gas(f"{step.contract.name}.check {op}", used, limit=limit)


def test_the_tokens_of_the_7b_shape(world: World, vector: dict[str, Any]) -> None:
    """Its last token, and all of them; positions and tokens are as many as in the other games."""
    manifest = decode(
        Manifest, parse_canonical(vector["manifest"].encode(), max_bytes=65_536), where="manifest"
    )
    world.models.send(OWNER, "register", as_arguments(manifest), "")
    assert manifest.graph is not None
    rng, n_prompt, n_out, tail = random.Random(7), 1902, 100, manifest.graph.n_layers + 1
    tokens = [rng.randrange(manifest.graph.n_vocab) for _ in range(n_prompt + n_out)]
    salt = bytes.fromhex(vector["salt"])
    header = StateHeader(
        model_id=manifest.model_id,
        prompt_tokens_hash=prompt_tokens_hash(salt, tokens[:n_prompt]),
        params_hash=bytes(32),
        sampling_seed=2**63,
        n_prompt=n_prompt,
        n_out=n_out,
        finish_reason="stop",
        tokens_hash=tokens_hash(salt, tokens[n_prompt:]),
        response_hash=bytes(32),
        tokens_root=tokens_root(tokens),
        n_positions=n_prompt + n_out - 1,
    )
    last = header.n_positions - 1
    roots = [rng.randbytes(32), rng.randbytes(32), leaf_hash(tokens[-1].to_bytes(4, "little"))]
    units = [[rng.randbytes(32) for _ in range(tail + 1)] for _ in range(last + 1)]
    units[last][tail] = unit_leaf(last, tail, roots)

    def claim(
        number: int, asked: bytes = bytes(32), **members: Any
    ) -> tuple[StateTree, bytes, tuple[Any, ...]]:
        """A tree, its tail opened with what its header says are the tokens, and the claim and its signature."""
        tree = StateTree(replace(header, **members), units)
        core = replace(Network().run().receipt.core, n_out=number, params_hash=asked, state_root=tree.root)
        signed = (CLAIMANT, hash_of(core), manifest.model_id, tree.root, 2**40)
        said = [*tokens[:-1], tokens[-1] ^ 1] if "tokens_root" in members else tokens
        opened = StateOpening(
            tiles=(tokens[-1].to_bytes(4, "little"),),
            tile_paths=((),),
            other_parts=(tuple(roots[:2]),),
            leaves=tree.open_leaves(last, tail),
        )
        proof = prove_tokens(tree, said, last, None, opened)
        return (
            tree,
            proof,
            (signed, sign(world, world.court.read("claimHash", signed)), canonical_json(encode(core))),
        )

    other = tokens_root([*tokens[:-1], tokens[-1] ^ 1])
    _, proof, (signed, signature, _) = claim(1)
    opening = world.court.send(CHALLENGER, "open", signed, signature, last, TOKENS_UNIT, value=BOND)
    game = world.court.read("gameId", world.court.read("claimHash", signed), CHALLENGER)
    answer = world.court.send(CLAIMANT, "answerTokens", game, *signed[2:4], proof)
    assert names(world.court.events(answer)) == ["Refuted", "Ended"]
    check_gas("Court.answerTokens", answer.gas)
    check_gas("dispute token", opening.gas + answer.gas, limit=DISPUTE)
    _, proof, (signed, signature, _) = claim(2, tokens_root=other)
    check_gas(
        "Court.convictToken", world.court.send(CHALLENGER, "convictToken", signed, signature, last, proof).gas
    )
    tree, _, (signed, signature, _) = claim(3, tokens_root=other)
    done = world.court.send(
        CHALLENGER,
        "convictTokens",
        signed,
        signature,
        prove_header(tree),
        salt,
        n_prompt,
        token_bytes(tokens),
    )
    check_gas("Court.convictTokens of 2002", done.gas)
    tree, _, (signed, signature, core) = claim(4)
    found = core.index(b',"n_out":')
    done = world.court.send(
        CHALLENGER, "convictReceipt", signed, signature, prove_header(tree), core, 6, found
    )
    check_gas("Court.convictReceipt", done.gas)
    params = Params(
        temperature=800_000,
        top_p=950_000,
        top_k=40,
        min_p=1_000,
        repeat_penalty=1_100_000,
        max_tokens=256,
        stop=("\n\n",),
        seed=None,
    )
    tree, _, (signed, signature, core) = claim(5, asked=params_hash(salt, params))
    p = params
    numbers = (salt, p.max_tokens, p.min_p, p.repeat_penalty)
    shown = (*numbers, canonical_json(list(p.stop)), p.temperature, p.top_k, p.top_p)
    found = core.index(b',"params_hash":')
    args = (prove_header(tree), core, found, shown, True, 0)
    done = world.court.send(CHALLENGER, "convictParams", signed, signature, *args)
    check_gas("Court.convictParams", done.gas)
