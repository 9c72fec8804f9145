"""What a claimant serves, and where a challenger aims (docs/spec/13-dispute.md, "The claim", "How to play")."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from dispute_real import Job, Liar, RealRun, false_trap, first_difference, hidden_trap, honest_run

from aos.core.dispute.coarse import aim, served_tree
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.state_tree import tokens_root
from aos.errors import VerificationError

LAYERS = 2
RUN = honest_run(Job("tiny-q4_0"))
TREE = RUN.known.tree


def served(run: RealRun) -> tuple[bytes, bytes, list[bytes]]:
    tree = run.known.tree
    return tree.root, tree.header.entry(), [b"".join(leaves) for leaves in tree.units]


def test_what_leads_to_the_state_root_is_believed() -> None:
    root, entry, units = served(RUN)
    tree = served_tree(root, entry, units, n_layers=LAYERS)
    assert (tree.root, tree.header, tree.units) == (TREE.root, TREE.header, list(TREE.units))
    assert aim(tree, TREE) is None
    trapped = honest_run(Job("tiny-trap", prompt="is it so? yes"))
    n_layers = trapped.model.engine._model.hyper.n_layers
    assert served_tree(*served(trapped), n_layers=n_layers).root == trapped.root


@pytest.mark.parametrize(
    ("what", "position"),
    [
        ("root", 0),
        ("entry", 0),
        ("short entry", 0),
        ("leaf", 1),
        ("half a leaf", 1),
        ("leaf less", 1),
        ("leaf more", 1),
        ("position less", 0),
        ("position more", 0),
    ],
)
def test_other_data_is_no_data(what: str, position: int) -> None:
    root, entry, units = served(RUN)
    if what == "root":
        root = bytes(32)
    elif what == "entry":
        entry = replace(TREE.header, sampling_seed=9).entry()
    elif what == "short entry":
        entry = entry[:-1]
    elif what == "position less":
        units.pop()
    elif what == "position more":
        units.append(units[-1])
    else:
        leaves = units[position]
        units[position] = {
            "leaf": bytes(32) + leaves[32:],
            "half a leaf": leaves[:-16],
            "leaf less": leaves[:-32],
            "leaf more": leaves + bytes(32),
        }[what]
    with pytest.raises(VerificationError) as caught:
        served_tree(root, entry, units, n_layers=LAYERS)
    assert caught.value.code == "dispute.served"


def test_a_tree_with_too_many_units_is_no_data_though_it_leads_to_the_root() -> None:
    units = [list(leaves) for leaves in TREE.units]
    units[1].append(bytes(32))
    tree = StateTree(TREE.header, units)
    with pytest.raises(VerificationError, match="number of units"):
        served_tree(tree.root, tree.header.entry(), [b"".join(leaves) for leaves in units], n_layers=LAYERS)


def test_the_first_leaf_that_differs_is_challenged() -> None:
    liar = Liar(RUN, 2, 1, RUN.trace(2, 1).shape.named("residual").first)
    found = aim(liar.run.known.tree, TREE)
    assert found is not None
    assert (found.position, found.unit, found.leaf) == first_difference(liar.run, RUN)
    assert (found.kind, found.leaf) == ("unit", TREE.units[2][1])


def test_traps_are_challenged_where_they_are_claimed_or_kept_quiet() -> None:
    false, _ = false_trap(RUN, 1, 2, 10)
    found = aim(false.known.tree, TREE)
    assert found is not None
    assert (found.kind, found.position, found.unit) == ("unit", 1, 2)
    trapped = honest_run(Job("tiny-trap", prompt="is it so? yes"))
    quiet, _ = hidden_trap(trapped)
    found = aim(quiet.known.tree, trapped.known.tree)
    assert found is not None
    assert trapped.known.trap is not None
    assert (found.kind, found.position, found.unit) == (
        "unit",
        trapped.known.tree.header.n_positions - 1,
        trapped.known.trap[0],
    )


HEADERS: list[tuple[str, dict[str, Any]]] = [
    ("header", {"model_id": bytes(32)}),
    ("header", {"params_hash": bytes(32)}),
    ("header", {"sampling_seed": 99}),
    ("prompt", {"prompt_tokens_hash": bytes(32)}),
    ("prompt", {"n_prompt": 2}),
    ("stop", {"finish_reason": "stop"}),
    ("stop", {"finish_reason": "cancelled"}),
    ("trap", {"finish_reason": "numeric_trap"}),
    ("tokens", {"tokens_hash": bytes(32)}),
    ("tokens", {"tokens_root": bytes(32)}),
    ("text", {"response_hash": bytes(32)}),
]


@pytest.mark.parametrize(("kind", "members"), HEADERS)
def test_a_header_that_differs_is_challenged_by_its_kind(kind: str, members: dict[str, Any]) -> None:
    other = StateTree(replace(TREE.header, **members), TREE.units)
    found = aim(other, TREE)
    assert found is not None
    assert (found.kind, found.leaf) == (kind, b"")


def test_a_run_that_ends_early_is_challenged_for_its_end() -> None:
    header = TREE.header
    early = replace(header, n_out=header.n_out - 1, n_positions=header.n_positions - 1)
    found = aim(StateTree(early, TREE.units[:-1]), TREE)
    assert found is not None
    assert found.kind == "stop"


def test_a_token_is_challenged_at_the_tail_that_chose_it() -> None:
    other = StateTree(replace(TREE.header, tokens_root=bytes(32)), TREE.units)
    tokens = list(RUN.known.tokens)
    claimed = [*tokens[:-1], tokens[-1] + 1]
    found = aim(other, TREE, claimed_tokens=claimed, own_tokens=tokens)
    assert found is not None
    assert (found.kind, found.position) == ("tokens", len(tokens) - 2)
    assert found.position == TREE.header.n_positions - 1


def test_tokens_that_the_run_did_not_choose_come_before_the_units_that_read_them() -> None:
    tokens = list(RUN.known.tokens)
    at = TREE.header.n_prompt + 1
    claimed = [*tokens[:at], tokens[at] + 1, *tokens[at + 1 :]]
    units = [list(each) for each in TREE.units]
    units[at][0] = bytes(32)
    header = replace(TREE.header, tokens_root=tokens_root(claimed))
    found = aim(StateTree(header, units), TREE, claimed_tokens=claimed, own_tokens=tokens)
    assert found is not None
    assert (found.kind, found.position) == ("tokens", at - 1)
    # The tail before chose it: then that is what is wrong.
    units[at - 1][-1] = bytes(32)
    found = aim(StateTree(header, units), TREE, claimed_tokens=claimed, own_tokens=tokens)
    assert found is not None
    assert (found.kind, found.position, found.unit) == ("unit", at - 1, LAYERS + 1)
    # It is disclosed otherwise, wherever the leaves differ.
    found = aim(StateTree(header, units), TREE, claimed_tokens=tokens, own_tokens=tokens)
    assert found is not None
    assert found.kind == "tokens"
