"""ModelRegistry computes the same id as ``aos.core.manifest``, from typed members."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from evm import ACCOUNTS, Deployed, Reverted, Revm, deploy

from aos.core.manifest import GraphSizes, Manifest
from aos.engine import read_manifest

KINDS = ("llama", "qwen2", "qwen3")
MEMBERS = [
    "n_ctx",
    "n_layers",
    "n_vocab",
    "width",
    "ff_width",
    "n_heads",
    "n_kv_heads",
    "head_width",
    "n_rot",
    "eps_bits",
    "rope_base_bits",
]


def as_arguments(manifest: Manifest) -> tuple[object, ...]:
    """A manifest in the order of the contract's struct."""
    graph = manifest.graph
    assert graph is not None
    assert manifest.rope_table
    return (
        manifest.file_sha256,
        manifest.file_size,
        manifest.weights_root,
        manifest.tokenizer,
        manifest.chat_template or bytes(32),
        manifest.rope_table,
        (*(getattr(graph, name) for name in MEMBERS), graph.tied),
        KINDS.index(manifest.architecture),
        manifest.arithmetic,
    )


def random_manifest(rng: random.Random) -> Manifest:
    edges = [0, 1, 9, 10, 99, 100, 2**31, 2**32 - 1]
    graph = {name: rng.choice([*edges, rng.getrandbits(32)]) for name in MEMBERS}
    return Manifest(
        file_sha256=rng.randbytes(32),
        file_size=rng.choice([0, 1, 2**53 - 1, rng.getrandbits(53)]),
        weights_root=rng.randbytes(32),
        architecture=rng.choice(KINDS),
        graph=GraphSizes(**graph, tied=rng.random() < 0.5),
        tokenizer=rng.choice([bytes(32), b"\xff" * 32, rng.randbytes(32)]),
        chat_template=rng.choice([b"", rng.randbytes(32)]),
        rope_table=rng.randbytes(32),
        arithmetic=rng.choice([1, 2, 2**32 - 1]),
    )


@pytest.fixture
def models(revm: Revm) -> Deployed:
    return deploy(revm, "ModelRegistry")


def test_the_demo_model_has_its_id(models: Deployed, repository: Path) -> None:
    manifest = read_manifest(repository / "models/aos-demo.Q8_0.gguf")
    assert models.read("idOf", as_arguments(manifest)) == manifest.model_id
    with pytest.raises(Reverted) as refusal:
        models.read("facts", manifest.model_id)
    assert models.contract.error(refusal.value.data) == f"UnknownModel({manifest.model_id!r})"
    done = models.send(ACCOUNTS[1], "register", as_arguments(manifest), "ipfs://somewhere")
    assert [dict(event.args) for event in models.events(done)] == [
        {
            "modelId": manifest.model_id,
            "weightsRoot": manifest.weights_root,
            "by": ACCOUNTS[1],
            "uri": "ipfs://somewhere",
        }
    ]
    root, table, graph, kind, arithmetic = models.read("facts", manifest.model_id)
    assert (root, table, KINDS[kind], arithmetic) == (
        manifest.weights_root,
        manifest.rope_table,
        manifest.architecture,
        manifest.arithmetic,
    )
    assert graph == as_arguments(manifest)[6]
    before = models.read("facts", manifest.model_id)
    models.send(ACCOUNTS[2], "register", as_arguments(manifest), "")  # changes nothing
    assert models.read("facts", manifest.model_id) == before


def test_any_manifest_has_the_id_that_python_computes(models: Deployed) -> None:
    rng = random.Random(17)
    for _ in range(300):
        manifest = random_manifest(rng)
        assert models.read("idOf", as_arguments(manifest)) == manifest.model_id


def test_every_member_counts(models: Deployed) -> None:
    rng = random.Random(18)
    manifest = random_manifest(rng)
    base = list(as_arguments(manifest))
    ids = {models.read("idOf", tuple(base))}
    for index in range(len(base)):
        changed = list(base)
        if index == 6:
            graph = list(base[6])  # type: ignore[call-overload]
            for member in range(len(graph)):
                other = list(graph)
                other[member] = not other[member] if member == 11 else other[member] ^ 1
                changed[6] = tuple(other)
                ids.add(models.read("idOf", tuple(changed)))
            continue
        value = changed[index]
        if isinstance(value, bytes):
            changed[index] = bytes([value[0] ^ 1]) + value[1:]
        elif index == 7:
            changed[index] = (int(str(value)) + 1) % 3
        else:
            changed[index] = int(str(value)) ^ 2
        ids.add(models.read("idOf", tuple(changed)))
    assert len(ids) == 1 + 8 + 12


@pytest.mark.parametrize(
    ("index", "value"),
    [(8, 0), (5, bytes(32)), (2, bytes(32)), (1, 2**53)],
    ids=["arithmetic", "rope", "weights", "size"],
)
def test_a_manifest_that_no_game_could_be_judged_by_is_refused(
    models: Deployed, index: int, value: object
) -> None:
    wrong = list(as_arguments(random_manifest(random.Random(19))))
    wrong[index] = value
    with pytest.raises(Reverted) as refusal:
        models.send(ACCOUNTS[1], "register", tuple(wrong), "")
    assert models.contract.error(refusal.value.data) == "BadManifest"
