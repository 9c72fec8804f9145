"""The tree under state_root: an independent construction of its root, every opening, and every way to bend one
(docs/spec/07-inference.md, "State root", "Openings").
"""

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.core.dispute.state_opening import (
    LeafOpening,
    Place,
    StateOpening,
    StateTree,
    open_tokens,
    verify_header,
    verify_leaves,
    verify_tiles,
    verify_tokens,
    verify_trap,
)
from aos.core.dispute.state_tree import (
    KEYS,
    LOGITS,
    RECORD,
    RESIDUAL,
    TOKEN,
    VALUES,
    StateHeader,
    StateShape,
    part_root,
    record_size,
    shape_of,
    tokens_root,
    trap_leaf,
    unit_leaf,
)
from aos.errors import AOSError, InvalidMessage, VerificationError

SIZES = {"n_layers": 3, "width": 600, "kv_width": 300, "n_vocab": 700}
Payloads = dict[tuple[int, int], list[bytes]]


class Claim:
    """A run of random values, committed."""

    def __init__(self, n_prompt: int, n_out: int, *, sampled: bool = True, trap: int | None = None) -> None:
        rng = random.Random(f"{n_prompt}/{n_out}/{sampled}/{trap}")
        self.tokens = [rng.randrange(700) for _ in range(n_prompt + n_out)]
        n_positions = n_prompt + n_out - (trap is None)
        self.header = StateHeader(
            model_id=rng.randbytes(32),
            prompt_tokens_hash=rng.randbytes(32),
            params_hash=rng.randbytes(32),
            sampling_seed=rng.getrandbits(64),
            n_prompt=n_prompt,
            n_out=n_out,
            finish_reason="length" if trap is None else "numeric_trap",
            tokens_hash=rng.randbytes(32),
            response_hash=rng.randbytes(32),
            tokens_root=tokens_root(self.tokens),
            n_positions=n_positions,
        )
        self.shape = shape_of(self.header, **SIZES, sampled=sampled, trap_unit=trap)
        self.payloads: Payloads = {}
        units = []
        for position in range(n_positions):
            leaves = []
            for unit in range(self.shape.units(position)):
                if self.shape.is_trap(position, unit):
                    leaves.append(trap_leaf(position, unit, 7))
                    continue
                parts = self.shape.parts(position, unit)
                payload = [rng.randbytes(part.size) for part in parts]
                self.payloads[position, unit] = payload
                roots = [part_root(data, part.tile_bytes) for data, part in zip(payload, parts, strict=True)]
                leaves.append(unit_leaf(position, unit, roots))
            units.append(leaves)
        self.tree = StateTree(self.header, units)
        self.root = self.tree.root

    def open(self, place: Place) -> StateOpening:
        payloads = [self.payloads[position, place.unit] for position in place.positions]
        return self.tree.open_tiles(self.shape, place, payloads)


@pytest.fixture(scope="module")
def claim() -> Claim:
    return Claim(5, 4)


def mth(entries: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, over hashes of leaves."""
    if len(entries) < 2:
        return entries[0] if entries else sha256(b"").digest()
    split = 1
    while split * 2 < len(entries):
        split *= 2
    return sha256(b"\1" + mth(entries[:split]) + mth(entries[split:])).digest()


def leaf(data: bytes) -> bytes:
    return sha256(b"\0" + data).digest()


@pytest.mark.parametrize("trap", [None, 0, 2, 4])
@pytest.mark.parametrize("sampled", [True, False])
def test_the_root_is_the_one_that_the_specification_spells_out(trap: int | None, sampled: bool) -> None:
    claim = Claim(4, 3, trap=trap, sampled=sampled)
    h = claim.header
    leaves = [
        leaf(
            b"AOS/state-header/v2\0"
            + struct.pack(">I", 1)
            + h.model_id
            + h.prompt_tokens_hash
            + h.params_hash
            + struct.pack(">QIII", h.sampling_seed, 4, 3, 2 if trap is None else 4)
            + h.tokens_hash
            + h.response_hash
            + leaf(struct.pack("<7I", *claim.tokens))
            + struct.pack(">I", 6 if trap is None else 7)
        )
    ]
    for position in range(6 if trap is None else 7):
        units = []
        for unit in range(5):
            place = struct.pack(">II", position, unit)
            if trap == unit and position == 6:
                units.append(leaf(b"AOS/state-trap/v1\0" + place + struct.pack(">I", 7)))
                break
            entry = b"AOS/state-leaf/v2\0" + place
            for index, data in enumerate(claim.payloads[position, unit]):
                size = 512 if index > 0 and 0 < unit < 4 else 1024
                entry += mth([leaf(data[at : at + size]) for at in range(0, len(data), size)])
            units.append(leaf(entry))
        leaves.append(
            leaf(b"AOS/state-position/v1\0" + struct.pack(">II", position, len(units)) + mth(units))
        )
    assert claim.root == mth(leaves)


def test_tokens_beyond_one_tile_are_a_tree() -> None:
    tokens = list(range(1000, 1130))
    tiles = [leaf(struct.pack(f"<{len(t)}I", *t)) for t in (tokens[:64], tokens[64:128], tokens[128:])]
    assert tokens_root(tokens) == mth(tiles)


# --- what can be opened


def test_every_tile_of_every_unit_opens_and_survives_its_encoding() -> None:
    claim, opened = Claim(3, 2), 0
    for (position, unit), payload in claim.payloads.items():
        for index, part in enumerate(claim.shape.parts(position, unit)):
            for tile in range(part.tiles):
                place = Place(position=position, unit=unit, part=index, tile=tile)
                encoded = claim.open(place).encode()
                assert len(encoded) == StateOpening.size(claim.shape, place)
                opening = StateOpening.decode(encoded, claim.shape, place)
                at = tile * part.tile_bytes
                assert verify_tiles(claim.root, claim.shape, place, opening) == (
                    payload[index][at : at + part.tile_bytes],
                )
                opened += 1
    assert opened == 4 * (3 + 3 * (3 + 2 + 2)) + 2 * (3 + 1 + 1)


def test_a_greedy_tail_has_no_record_to_open() -> None:
    claim = Claim(2, 2, sampled=False)
    for part in (LOGITS, TOKEN):
        place = Place(position=1, unit=4, part=part, tile=0)
        verify_tiles(claim.root, claim.shape, place, claim.open(place))
    with pytest.raises(InvalidMessage, match="no such tile"):
        claim.open(Place(position=1, unit=4, part=RECORD, tile=0))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_run_of_positions_opens_at_once(data: st.DataObject) -> None:
    claim = long_claim()
    first = data.draw(st.integers(0, claim.shape.n_positions - 1))
    count = data.draw(st.integers(1, claim.shape.n_positions - first))
    unit = data.draw(st.integers(1, 3))
    part = data.draw(st.sampled_from((RESIDUAL, KEYS, VALUES)))
    tile = data.draw(st.integers(0, 1))
    place = Place(position=first, unit=unit, part=part, tile=tile, count=count)
    opening = StateOpening.decode(claim.open(place).encode(), claim.shape, place)
    tiles = verify_tiles(claim.root, claim.shape, place, opening)
    size = 1024 if part == RESIDUAL else 512
    for position, opened in zip(place.positions, tiles, strict=True):
        assert opened == claim.payloads[position, unit][part][tile * size : (tile + 1) * size]
    bent = bytearray(opening.encode())
    at = data.draw(st.integers(0, len(bent) - 1))
    bent[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(VerificationError):
        verify_tiles(claim.root, claim.shape, place, StateOpening.decode(bytes(bent), claim.shape, place))


_kept: list[Claim] = []


def long_claim() -> Claim:
    if not _kept:
        _kept.append(Claim(20, 17))
    return _kept[0]


def test_a_unit_leaf_opens_without_its_payload(claim: Claim) -> None:
    for unit in range(5):
        opening = claim.tree.open_leaves(2, unit, 4)
        encoded = opening.encode()
        assert len(encoded) == LeafOpening.size(claim.shape, 2, unit, 4)
        opening = LeafOpening.decode(encoded, claim.shape, 2, unit, 4)
        leaves = [claim.tree.units[position][unit] for position in range(2, 6)]
        verify_leaves(claim.root, claim.shape, 2, unit, leaves, opening)
        with pytest.raises(VerificationError):
            verify_leaves(claim.root, claim.shape, 2, unit, leaves[::-1], opening)


@pytest.mark.parametrize("trap", range(5))
def test_a_trap_opens_as_itself_and_as_nothing_else(trap: int) -> None:
    claim = Claim(3, 2, trap=trap)
    position = claim.shape.n_positions - 1
    opening = claim.tree.open_leaves(position, trap)
    verify_trap(claim.root, claim.shape, 7, opening)
    with pytest.raises(VerificationError):
        verify_trap(claim.root, claim.shape, 8, opening)
    for other in range(5):
        if other != trap:
            shape = replace(claim.shape, trap_unit=other)
            with pytest.raises(VerificationError):
                verify_trap(claim.root, shape, 7, opening)
    with pytest.raises(InvalidMessage):
        verify_trap(claim.root, replace(claim.shape, trap_unit=None), 7, opening)
    with pytest.raises(InvalidMessage, match="trapped"):
        claim.shape.parts(position, trap)
    if trap > 0:  # what the position computed before it opens as everywhere
        place = Place(position=position, unit=trap - 1, part=0, tile=0)
        verify_tiles(claim.root, claim.shape, place, claim.open(place))


def test_the_header_opens_and_is_read_back(claim: Claim) -> None:
    path = claim.tree.open_header()
    assert verify_header(claim.root, claim.header.entry(), path) == claim.header
    for name, value in (
        ("n_out", 5),
        ("n_prompt", 4),
        ("n_positions", 9),
        ("sampling_seed", 0),
        ("tokens_root", bytes(32)),
        ("finish_reason", "stop"),
    ):
        with pytest.raises(VerificationError):
            verify_header(claim.root, replace(claim.header, **{name: value}).entry(), path)
    with pytest.raises(VerificationError):
        verify_header(claim.root, claim.header.entry(), path[:-1])
    with pytest.raises(VerificationError):
        verify_header(claim.root, claim.header.entry(), (*path, bytes(32)))


@pytest.mark.parametrize(
    "bend",
    [
        lambda e: e[:-1],
        lambda e: e + b"\0",
        lambda e: b"AOS/state-header/v1\0" + e[20:],
        lambda e: e[:23] + b"\2" + e[24:],  # arithmetic version
        lambda e: e[:139] + b"\5" + e[140:],  # finish reason
        lambda e: b"",
    ],
)
def test_bytes_that_are_no_header_are_refused(claim: Claim, bend: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InvalidMessage) as refused:
        StateHeader.read(bend(claim.header.entry()))
    assert refused.value.code == "state.header"


@pytest.mark.parametrize(
    ("n_prompt", "n_out", "finish", "positions", "good"),
    [
        (5, 4, "length", 8, True),
        (5, 4, "stop", 8, True),
        (5, 4, "cancelled", 8, True),
        (5, 0, "cancelled", 0, True),
        (1, 1, "stop", 1, True),
        (5, 4, "numeric_trap", 9, True),
        (5, 0, "numeric_trap", 1, True),
        (5, 0, "numeric_trap", 5, True),
        (5, 4, "length", 7, False),
        (5, 4, "stop", 9, False),
        (5, 0, "cancelled", 4, False),
        (5, 0, "length", 0, False),
        (5, 0, "stop", 4, False),
        (0, 1, "stop", 0, False),
        (5, 4, "numeric_trap", 8, False),
        (5, 0, "numeric_trap", 0, False),
        (5, 0, "numeric_trap", 6, False),
    ],
)
def test_a_header_whose_numbers_no_run_has_is_refused(
    claim: Claim, n_prompt: int, n_out: int, finish: str, positions: int, good: bool
) -> None:
    header = replace(
        claim.header,
        n_prompt=n_prompt,
        n_out=n_out,
        finish_reason=finish,  # type: ignore[arg-type]
        n_positions=positions,
    )
    if good:
        assert header.check() is header
        return
    with pytest.raises(VerificationError) as refused:
        header.check()
    assert refused.value.code == "state.positions"


@pytest.mark.parametrize(("finish", "unit"), [("stop", 0), ("numeric_trap", None), ("numeric_trap", 5)])
def test_a_shape_has_a_trap_exactly_where_the_run_trapped(
    claim: Claim, finish: str, unit: int | None
) -> None:
    positions = 9 if finish == "numeric_trap" else 8
    header = replace(claim.header, finish_reason=finish, n_positions=positions)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage) as refused:
        shape_of(header, **SIZES, sampled=True, trap_unit=unit)
    assert refused.value.code == "state.trap"


def test_token_ids_open_under_the_header() -> None:
    claim = Claim(100, 60, trap=0)
    for tile in range(3):
        data, path = open_tokens(claim.tokens, tile)
        assert list(verify_tokens(claim.header, tile, data, path)) == claim.tokens[64 * tile : 64 * tile + 64]
        for bad_data, bad_path in (
            (bytes(len(data)), path),
            (data[:-4], path),
            (data, path[:-1]),
            (data, [*path, bytes(32)]),
            (data, [bytes(31), *path[1:]]),
        ):
            with pytest.raises(VerificationError):
                verify_tokens(claim.header, tile, bad_data, bad_path)
        with pytest.raises(AOSError):
            verify_tokens(claim.header, (tile + 1) % 3, data, path)
    with pytest.raises(InvalidMessage):
        verify_tokens(claim.header, 3, b"", ())


# --- what must not go through


@pytest.mark.parametrize(
    "other",
    [
        Place(position=3, unit=2, part=KEYS, tile=1),
        Place(position=2, unit=3, part=KEYS, tile=1),
        Place(position=2, unit=2, part=VALUES, tile=1),
        Place(position=2, unit=2, part=RESIDUAL, tile=1),
        Place(position=2, unit=2, part=KEYS, tile=0),
        Place(position=2, unit=2, part=KEYS, tile=1, count=2),
    ],
)
def test_an_opening_is_good_for_its_own_place_alone(claim: Claim, other: Place) -> None:
    place = Place(position=2, unit=2, part=KEYS, tile=1)
    opening = claim.open(place)
    with pytest.raises(VerificationError) as refused:
        verify_tiles(claim.root, claim.shape, other, opening)
    assert refused.value.code == "state.opening"


@pytest.mark.parametrize(
    "shape",
    [
        {"n_layers": 2},
        {"n_layers": 4},
        {"width": 601},
        {"width": 500},
        {"kv_width": 256},
        {"kv_width": 600},
        {"n_positions": 7},
        {"n_positions": 16},
    ],
)
def test_a_verifier_with_another_shape_is_not_persuaded(claim: Claim, shape: dict[str, int]) -> None:
    part, tile = (RESIDUAL, 2) if "width" in shape else (KEYS, 1)
    place = Place(position=2, unit=2, part=part, tile=tile)
    opening = claim.open(place)
    verify_tiles(claim.root, claim.shape, place, opening)
    with pytest.raises(AOSError) as refused:
        verify_tiles(claim.root, replace(claim.shape, **shape), place, opening)
    assert refused.value.code in ("state.opening", "state.place")


@pytest.mark.parametrize(
    "place",
    [
        Place(position=8, unit=0, part=0, tile=0),
        Place(position=-1, unit=0, part=0, tile=0),
        Place(position=0, unit=5, part=0, tile=0),
        Place(position=0, unit=-1, part=0, tile=0),
        Place(position=0, unit=0, part=1, tile=0),
        Place(position=0, unit=1, part=3, tile=0),
        Place(position=0, unit=1, part=-1, tile=0),
        Place(position=0, unit=1, part=0, tile=3),
        Place(position=0, unit=1, part=0, tile=-1),
        Place(position=0, unit=4, part=0, tile=0),  # a tail before the prompt's last position
        Place(position=3, unit=4, part=0, tile=0, count=2),
        Place(position=0, unit=1, part=0, tile=0, count=0),
        Place(position=0, unit=1, part=0, tile=0, count=9),
        Place(position=7, unit=1, part=0, tile=0, count=2),
        Place(position=0, unit=1, part=0, tile=0, count=10**12),
    ],
)
def test_a_place_that_the_run_does_not_have_is_refused(claim: Claim, place: Place) -> None:
    opening = claim.open(Place(position=2, unit=2, part=KEYS, tile=1))
    for refuse in (
        lambda: verify_tiles(claim.root, claim.shape, place, opening),
        lambda: StateOpening.decode(b"", claim.shape, place),
        lambda: StateOpening.size(claim.shape, place),
    ):
        with pytest.raises(InvalidMessage) as refused:
            refuse()
        assert refused.value.code == "state.place"


def test_an_opening_of_another_length_is_refused(claim: Claim) -> None:
    place = Place(position=2, unit=2, part=KEYS, tile=1)
    encoded = claim.open(place).encode()
    for bent in (b"", encoded[:-1], encoded + b"\0", encoded[32:]):
        with pytest.raises(InvalidMessage) as refused:
            StateOpening.decode(bent, claim.shape, place)
        assert refused.value.code == "state.opening_length"
    leaves = claim.tree.open_leaves(2, 2).encode()
    with pytest.raises(InvalidMessage):
        LeafOpening.decode(leaves[:-32], claim.shape, 2, 2)


@pytest.mark.parametrize(
    "bend",
    [
        lambda o: replace(o, tiles=(o.tiles[0][:-1],)),
        lambda o: replace(o, tiles=(o.tiles[0] + b"\0",)),
        lambda o: replace(o, tiles=()),
        lambda o: replace(o, tiles=o.tiles * 2),
        lambda o: replace(o, tile_paths=((),)),
        lambda o: replace(o, tile_paths=((*o.tile_paths[0], bytes(32)),)),
        lambda o: replace(o, tile_paths=((bytes(33),),)),
        lambda o: replace(o, other_parts=((),)),
        lambda o: replace(o, other_parts=(o.other_parts[0][::-1],)),
        lambda o: replace(o, other_parts=((o.other_parts[0][0] + o.other_parts[0][1], b""),)),
        lambda o: replace(o, leaves=replace(o.leaves, path=o.leaves.path[1:])),
        lambda o: replace(o, leaves=replace(o.leaves, path=(*o.leaves.path, bytes(32)))),
        lambda o: replace(o, leaves=replace(o.leaves, path=(b"", *o.leaves.path[1:]))),
        lambda o: replace(o, leaves=replace(o.leaves, unit_paths=())),
        lambda o: replace(o, leaves=replace(o.leaves, unit_paths=((),))),
    ],
)
def test_an_opening_with_a_piece_changed_is_refused(
    claim: Claim, bend: Callable[[StateOpening], StateOpening]
) -> None:
    place = Place(position=2, unit=2, part=KEYS, tile=1)
    with pytest.raises(VerificationError) as refused:
        verify_tiles(claim.root, claim.shape, place, bend(claim.open(place)))
    assert refused.value.code == "state.opening"


def test_an_inner_hash_never_passes_for_a_tile() -> None:
    """A node's 64 bytes as a short tile, one level up: the RFC's prefixes and the dictated size keep them apart."""
    sizes = {**SIZES, "width": 32, "kv_width": 512}
    header = replace(Claim(1, 1).header, n_prompt=1, n_out=1, n_positions=1)
    shape = StateShape(**sizes, sampled=False, n_prompt=1, n_positions=1)
    honest = [bytes(128), random.Random(1).randbytes(1024), bytes(1024)]
    leaves = [unit_leaf(0, unit, [bytes(32)]) for unit in range(5)]
    leaves[1] = unit_leaf(0, 1, [part_root(data, 512) for data in honest])
    tree = StateTree(header, [leaves])
    place = Place(position=0, unit=1, part=KEYS, tile=0)
    opening = tree.open_tiles(shape, place, [honest])
    verify_tiles(tree.root, shape, place, opening)
    node = leaf(honest[1][:512]) + leaf(honest[1][512:])
    for kv_width, tile in ((32, node), (32, b"\1" + node[:-1])):
        smaller = replace(shape, kv_width=kv_width)
        forged = replace(opening, tiles=(tile,), tile_paths=((),))
        with pytest.raises(VerificationError):
            verify_tiles(tree.root, smaller, place, forged)


def test_a_tree_of_other_positions_than_its_header_counts_is_not_made(claim: Claim) -> None:
    with pytest.raises(InvalidMessage):
        StateTree(claim.header, claim.tree.units[:-1])
    place = Place(position=2, unit=2, part=KEYS, tile=1)
    with pytest.raises(InvalidMessage) as refused:
        claim.tree.open_tiles(claim.shape, place, [[b"", b"", b""]])
    assert refused.value.code == "state.payload"
    with pytest.raises(InvalidMessage):
        claim.tree.open_leaves(7, 0, 2)


def test_a_cancelled_run_without_positions_is_its_header(claim: Claim) -> None:
    header = replace(claim.header, n_out=0, finish_reason="cancelled", n_positions=0)
    tree = StateTree(header, [])
    assert tree.root == leaf(header.entry())
    assert verify_header(tree.root, header.entry(), ()).check() == header
    shape = shape_of(header, **SIZES, sampled=True)
    with pytest.raises(InvalidMessage):
        shape.parts(0, 0)


def test_the_record_is_as_long_as_rule_9_makes_it() -> None:
    assert [record_size(n) for n in (1, 256, 257, 32_000)] == [24, 24, 32, 16 + 8 * 125]
