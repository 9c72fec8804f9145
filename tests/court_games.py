"""Games on contracts: everything deployed, claims of the tiny models' runs, and parties that move."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from chain_steps import STEPS, context_of, judged
from coincurve import PrivateKey
from dispute_runs import SALT, TinyRun, opened
from evm import ACCOUNTS, ETHER, Deployed, Done, Evm, deploy

from aos.adapters.chain.court import manifest_tuple
from aos.adapters.embedded.anvil import KEYS
from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.onchain import chain_bounds, frontier, halvings
from aos.core.dispute.trace_tree import TreeShape
from aos.core.manifest import Manifest
from aos.core.merkle import tree_root
from aos.core.signing import keccak256
from aos.engine.trace import UnitTrace

OWNER, CLAIMANT, CHALLENGER, OTHER, *_ = ACCOUNTS
BOND, STAKE, SLASH = ETHER // 100, ETHER, ETHER // 2
GRACE, BUDGET = 600, 86_400
HALVINGS = 4


@dataclass(frozen=True, kw_only=True)
class World:
    """The contracts."""

    evm: Evm
    registry: Deployed
    models: Deployed
    bounds: Deployed
    steps: tuple[Deployed, ...]
    court: Deployed

    def total(self) -> int:
        """Wei that the contracts hold."""
        return self.evm.balance(self.registry.address) + self.evm.balance(self.court.address)


def build(evm: Evm, *, slash: int = SLASH) -> World:
    """Deploy everything; the claimant has a stake."""
    registry = deploy(evm, "OperatorRegistry", 10**6, STAKE, 30 * 86_400)
    models = deploy(evm, "ModelRegistry")
    bounds = deploy(evm, "UnitBounds", models.address)
    steps = tuple(deploy(evm, name) for name in STEPS)
    addresses = [step.address for step in steps]
    court = deploy(evm, "Court", registry.address, bounds.address, addresses, BOND, slash, GRACE, BUDGET)
    registry.send(OWNER, "setCourt", court.address)
    registry.send(CLAIMANT, "deposit", b"\x11" * 32, value=4 * STAKE)
    registry.send(OWNER, "registerOperator", CLAIMANT, 0, 1000)
    return World(evm=evm, registry=registry, models=models, bounds=bounds, steps=steps, court=court)


def sign(world: World, struct_hash: bytes, account: str = CLAIMANT) -> bytes:
    """An EIP-712 signature of the court's."""
    digest = world.court.read("digest", struct_hash)
    key = PrivateKey(KEYS[ACCOUNTS.index(account)])
    signature = key.sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([27 + signature[64]])


def words(*values: int | bytes) -> bytes:
    """Values as words of an ABI encoding."""
    return b"".join(value.to_bytes(32, "big") if isinstance(value, int) else value for value in values)


UNIT_ROOT = keccak256(b"UnitRoot(bytes32 claim,uint32 position,uint16 unit,bytes32 unitRoot)")


@dataclass(kw_only=True)
class Match:
    """One game: the claimant's trace (a liar's, maybe) and the challenger's."""

    world: World
    run: TinyRun
    trace: UnitTrace
    position: int
    unit: int
    challenger: str = CHALLENGER
    expires: int = 2**40
    receipt: bytes = b"\x07" * 32
    committed: UnitTrace | None = None
    """The trace of what the state root commits to, where the claimant's is another."""
    gas: dict[str, int] | None = None

    def __post_init__(self) -> None:
        manifest = self.run.known.run.manifest
        self.claim = (CLAIMANT, self.receipt, manifest.model_id, self.trace.context.state_root, self.expires)
        self.claim_id = self.world.court.read("claimHash", self.claim)
        self.signature = sign(self.world, self.claim_id)
        self.id = self.world.court.read("gameId", self.claim_id, self.challenger)
        committed = self.committed or self.trace
        self.opened: Unit = opened(committed)
        self.shape = TreeShape(self.trace.shape.n_tiles)
        self.hashes = list(self.trace.tile_hashes)
        params = {k: v for k, v in asdict(self.run.known.run.params).items() if k != "seed"}  # type: ignore[call-overload]
        stop = json.dumps(list(params["stop"]), separators=(",", ":"), ensure_ascii=False).encode()
        self.params = (
            SALT,
            params["max_tokens"],
            params["min_p"],
            params["repeat_penalty"],
            stop,
            params["temperature"],
            params["top_k"],
            params["top_p"],
        )
        self.bounds = chain_bounds(committed.bounds, self.run.known.run, self.position, self.unit)

    def note(self, name: str, done: Done) -> Done:
        """Remember what a move cost."""
        if self.gas is not None:
            self.gas[name] = max(done.gas, self.gas.get(name, 0))
        return done

    @staticmethod
    def register(world: World, manifest: Manifest) -> None:
        """A model."""
        world.models.send(OWNER, "register", manifest_tuple(manifest), "")

    def register_model(self) -> None:
        """The run's model."""
        self.register(self.world, self.run.known.run.manifest)

    def hash_of(self, node: tuple[int, int, int]) -> bytes:
        """The claimant's hash of a node."""
        level, first, end = node
        return tree_root([self._whole(level, index) for index in range(first, end)])

    def _whole(self, level: int, index: int) -> bytes:
        if level == self.shape.depth:
            return self.hashes[index]
        return tree_root([self._whole(level + 1, child) for child in self.shape.children(level, index)])

    def children(self, node: tuple[int, int, int]) -> list[bytes]:
        """What a reveal of the node shows."""
        return [self.hash_of(each) for each in frontier(self.shape, node, HALVINGS)]

    # --- moves

    def open(self, *, value: int | None = None) -> Done:
        """The challenge."""
        bond = self.world.court.read("requiredBond", self.claim_id) if value is None else value
        done = self.world.court.send(
            self.challenger, "open", self.claim, self.signature, self.position, self.unit, value=bond
        )
        return self.note("open", done)

    def answer(self) -> Done:
        """The first answer."""
        done = self.world.court.send(
            CLAIMANT,
            "answer",
            self.id,
            self.claim[2],
            self.claim[3],
            self.params,
            self.bounds,
            self.hash_of((0, 0, 1)),
            self.children((0, 0, 1)),
        )
        return self.note("answer", done)

    def descend(self, tile: int, element: int, *, at_once: bool = False, reveals: bool = True) -> None:
        """Both go down to a tile, reveal after reveal, or the challenger alone with what it knows. Without ``reveals``
        only to where the claimant must show something.
        """
        way = halvings(self.shape, tile)
        done = 0
        while done < len(way):
            count = len(way) - done if at_once else min(HALVINGS, len(way) - done)
            steps = way[done : done + count]
            path = sum(int(right) << (count - 1 - i) for i, (right, _) in enumerate(steps))
            siblings = [self.hash_of(other) for _, other in reversed(steps)]
            node = self._after(way, done + count)
            self.note(
                "choose",
                self.world.court.send(
                    self.challenger, "choose", self.id, path, count, self.hash_of(node), siblings, element
                ),
            )
            done += count
            if done < len(way) and not reveals:
                return
            if done < len(way):
                self.note("reveal", self.world.court.send(CLAIMANT, "reveal", self.id, self.children(node)))

    def _after(self, way: list[tuple[bool, tuple[int, int, int]]], count: int) -> tuple[int, int, int]:
        """The node after so many halvings."""
        level, first, end = 0, 0, 1
        for right, _ in way[:count]:
            ((level, first, end),) = frontier(self.shape, (level, first, end), 0)
            middle = first + (1 << ((end - first - 1).bit_length() - 1))
            first, end = (middle, end) if right else (first, middle)
        return frontier(self.shape, (level, first, end), 0)[0]

    def context(self) -> tuple[Any, ...]:
        """The contracts' context of the claimant's unit."""
        return context_of(self.opened, self.trace.unit_root)

    def step_of(self, index: int, element: int, shown: int, proof: bytes) -> int:
        """Which contract has the rule of a tile."""
        return judged(self.world.steps, self.context(), index, element, shown, proof)[0]

    def prove(self, tile: int, element: int) -> Done:
        """The last move."""
        shown, proof = self.trace.prove_element(tile, element)
        step = self.step_of(tile, element, shown, proof)
        done = self.world.court.send(
            CLAIMANT, "prove", self.id, self.context(), tile, element, step, shown, proof
        )
        return self.note("prove", done)

    def convict(self, tile: int, element: int, sender: str | None = None) -> Done:
        """The proof of fraud in one transaction, from what the claimant served."""
        root = words(UNIT_ROOT, self.claim_id, self.position, self.unit, self.trace.unit_root)
        signatures = [self.signature, sign(self.world, keccak256(root))]
        shown, proof = self.trace.prove_element(tile, element)
        assert shown == element
        step = self.step_of(tile, element, shown, proof)
        done = self.world.court.send(
            sender or self.challenger,
            "convict",
            self.claim,
            signatures,
            self.context(),
            self.params,
            self.bounds,
            step,
            tile,
            element,
            proof,
        )
        return self.note("convict", done)
