"""What a contract is given of a unit before a proof (docs/spec/16-chain-disputes.md, "Context"): words of 32 bytes."""

from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.element import part_roots
from aos.core.manifest import GRAPH_KINDS
from aos.core.merkle import HASH_BYTES
from aos.errors import InvalidMessage

KINDS = {name: number for number, name in enumerate(GRAPH_KINDS)}
PARTS = 3

FAULTS = (
    "",
    "tile.length",
    "tile.state",
    "tile.tokens",
    "tile.weights",
    "tile.rope",
    "tile.path",
    "tile.value",
    "tile.commitment",
    "tile.cut",
    "tile.trap",
    "tile.value",
)
"""Codes of ``check_element`` by the contract's number; 0: it holds."""


def context_words(unit: Unit, unit_root: bytes) -> bytes:
    """The contract's ``Context``. Raises InvalidMessage ``trace.tile`` where the run has no such unit."""
    context = unit.context
    if context is None:
        raise InvalidMessage("trace.tile", "the run has no such unit", field="unit")
    graph, header, rules, state = context.graph, context.header, context.rules, context.state
    parts = part_roots(unit)
    roots = (
        context.state_root,
        unit_root,
        context.manifest.weights_root,
        context.manifest.rope_table,
        header.tokens_root,
        *parts,
        *[bytes(HASH_BYTES)] * (PARTS - len(parts)),
    )
    numbers = (
        KINDS[context.manifest.architecture],
        graph.n_ctx,
        graph.n_layers,
        graph.n_vocab,
        graph.width,
        graph.ff_width,
        graph.n_heads,
        graph.n_kv_heads,
        graph.head_width,
        graph.n_rot,
        graph.eps_bits,
        int(graph.tied),
        header.n_prompt,
        header.n_prompt + header.n_out,
        header.n_positions,
        0 if state.trap_unit is None else state.trap_unit + 1,
        rules.seed,
        rules.temperature,
        rules.top_k,
        rules.top_p,
        rules.min_p,
        rules.repeat_penalty,
        context.position,
        context.unit,
        context.trap_op,
    )
    return b"".join((*roots, *(number.to_bytes(32, "big") for number in numbers)))
