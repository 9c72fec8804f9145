// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Blocks} from "./Blocks.sol";
import {Context, IStep} from "./IStep.sol";
import {Layout} from "./Layout.sol";
import {Sha} from "./Sha.sol";

/// @title What the one-step rules of all operations share: reading a proof, and the verdict about it
/// @notice docs/spec/16-chain-disputes.md. A proof holds bytes and hashes; every place, index and length is the contract's
/// own. Faults inside are reverts, so that nothing is read behind one.
abstract contract StepBase is IStep {
    bytes32 private constant TILE_TAG = "AOS/trace-tile/v1\x00";
    bytes32 private constant CHUNK_TAG = "AOS/weights-chunk/v1\x00";
    bytes32 private constant TENSOR_TAG = "AOS/weights-tensor/v1\x00";
    uint256 private constant MAX_PROOF = 40 * 1024;

    uint256 internal constant LENGTH = 1;
    uint256 internal constant STATE = 2;
    uint256 internal constant TOKENS = 3;
    uint256 internal constant WEIGHTS = 4;
    uint256 internal constant ROPE = 5;
    uint256 internal constant PATH = 6;
    uint256 internal constant VALUE = 7;
    uint256 internal constant COMMITMENT = 8;
    uint256 internal constant CUT = 9;
    uint256 internal constant TRAP = 10;
    /// @dev As VALUE, of a tile that is all ones: maybe another of its elements makes it so.
    uint256 internal constant ONES = 11;

    /// @dev Of the model's tensors: suffixes of "blk.N.", but for the last three.
    enum Tensor {
        AttnNorm,
        AttnQ,
        AttnK,
        AttnV,
        AttnQBias,
        AttnKBias,
        AttnVBias,
        AttnQNorm,
        AttnKNorm,
        AttnOutput,
        FfnNorm,
        FfnGate,
        FfnUp,
        FfnDown,
        TokenEmbd,
        OutputNorm,
        Output
    }

    /// @dev A proof while it is read. `tiles`: number << 128 | hash's index, of the tiles of the trace in the order in which
    /// they were opened; `ops` is Layout's.
    struct Proof {
        Context c;
        uint256[] ops;
        uint256 cursor;
        uint256 end;
        uint256[] tiles;
        bytes32[] hashes;
        uint256 opened;
        uint256 highest;
        bool poisoned;
        uint256 op;
        uint256 tile;
        uint256 group;
        uint256 first;
        uint256 last;
        uint256 part;
    }

    /// @inheritdoc IStep
    function check(Context calldata context, uint256 index, uint256 element, uint256 shown, bytes calldata proof)
        external
        view
        returns (bool holds)
    {
        Proof memory p;
        {
            // All of its members are words: a copy, without a decoder's 33 steps.
            Context memory c = p.c;
            assembly ("memory-safe") {
                calldatacopy(c, context, 1056)
            }
        }
        p.ops = Layout.unitOps(p.c);
        if (proof.length > MAX_PROOF) revert Fault(LENGTH);
        uint256 offset;
        assembly ("memory-safe") {
            offset := proof.offset
        }
        p.cursor = offset;
        p.end = offset + proof.length;
        p.op = Layout.find(p.ops, index);
        uint256 word = p.ops[p.op];
        p.tile = index - Layout.first(word);
        (uint256 group, uint256 first, uint256 last) = Layout.place(word, p.tile);
        uint256 size = Layout.valueSize(word, group);
        uint256 tileSize = (last - first) * size;
        uint256 elementSize = Layout.element(word);
        if (elementSize == 0) elementSize = tileSize;
        if (element >= tileSize / elementSize || shown >= tileSize / elementSize) revert NoSuchElement();
        _capacity(p, Layout.reads(p.c, p.ops, p.op));
        offset = _tile(p, p.op, p.tile);
        p.group = group;
        p.first = first;
        p.last = last;
        p.part = shown * elementSize;
        if (Layout.byValue(word)) {
            p.first += p.part / size;
            p.last = p.first + 1;
            p.part %= size;
        }
        bytes memory value = _compute(p, elementSize);
        bool right;
        if (p.poisoned) {
            right = _allOnes(offset, tileSize);
        } else {
            right = shown == element && value.length == elementSize
                && keccak256(value) == keccak256(_calldata(offset + shown * elementSize, elementSize));
        }
        _finish(p, word, right, offset, tileSize);
        return true;
    }

    /// @dev The element's bytes. p: the op's slot, the tile, its group and values, `part` the element's offset in them.
    function _compute(Proof memory p, uint256 size) internal view virtual returns (bytes memory);

    // --- the trace's tiles

    /// @dev Room for so many tiles and the end behind them. Not cleared: nothing is read that was not written.
    function _capacity(Proof memory p, uint256 tiles) private pure {
        uint256[] memory entries;
        bytes32[] memory hashes;
        assembly ("memory-safe") {
            tiles := add(tiles, 2)
            entries := mload(64)
            hashes := add(entries, shl(5, add(tiles, 1)))
            mstore(entries, tiles)
            mstore(hashes, tiles)
            mstore(64, add(hashes, shl(5, add(tiles, 1))))
        }
        (p.tiles, p.hashes) = (entries, hashes);
    }

    /// @dev The calldata offset of a tile of an op; read where it is asked for first.
    function _tile(Proof memory p, uint256 op, uint256 tile) internal view returns (uint256) {
        unchecked {
            uint256 word = p.ops[op];
            (uint256 group, uint256 first, uint256 last) = Layout.place(word, tile);
            return _opened(p, Layout.first(word) + tile + 1, (last - first) * Layout.valueSize(word, group));
        }
    }

    /// @dev The same of a tile by its number, from 1, and size.
    function _opened(Proof memory p, uint256 number, uint256 size) private view returns (uint256 offset) {
        unchecked {
            uint256 opened = p.opened;
            uint256[] memory tiles = p.tiles;
            if (number <= p.highest) {
                for (uint256 i = opened; i > 1; --i) {
                    uint256 entry = tiles[i - 1];
                    if (entry >> 128 == number) return entry & type(uint128).max;
                }
            } else if (opened != 0) {
                p.highest = number;
            }
            offset = _take(p, size);
            tiles[opened] = number << 128 | offset;
            p.hashes[opened] = Sha.leaf(TILE_TAG, 18, offset, size);
            p.opened = opened + 1;
        }
    }

    /// @dev Values `from` … `to` - 1 of a group of an op, as they are.
    function _raw(Proof memory p, uint256 op, uint256 group, uint256 from, uint256 to)
        internal
        view
        returns (bytes memory data)
    {
        unchecked {
            uint256 word = p.ops[op];
            uint256 size = Layout.valueSize(word, group);
            data = _buffer((to - from) * size);
            uint256 values = Layout.values(word);
            uint256 tile = Layout.tile(word);
            uint256 number = from / tile;
            uint256 start = number * tile;
            number += Layout.first(word) + 1 + group * Layout.tilesAGroup(word);
            uint256 out;
            assembly ("memory-safe") {
                out := add(data, 32)
            }
            while (from < to) {
                uint256 end = start + tile;
                if (end > values) end = values;
                uint256 offset = _opened(p, number, (end - start) * size) + (from - start) * size;
                if (end > to) end = to;
                uint256 n = (end - from) * size;
                assembly ("memory-safe") {
                    calldatacopy(out, offset, n)
                }
                out += n;
                from = end;
                start += tile;
                ++number;
            }
        }
    }

    /// @dev Finite fp32 values of a group; poisons.
    function _floats(Proof memory p, uint256 op, uint256 group, uint256 from, uint256 to)
        internal
        view
        returns (bytes memory data)
    {
        data = _raw(p, op, group, from, to);
        if (!_finite(data)) p.poisoned = true;
    }

    /// @dev The same of an op whose groups are read as one; `from` and `to` count through them.
    function _flat(Proof memory p, uint256 op, uint256 from, uint256 to) internal view returns (bytes memory data) {
        unchecked {
            uint256 values = Layout.values(p.ops[op]);
            uint256 group = from / values;
            from -= group * values;
            to -= group * values;
            if (to <= values) return _floats(p, op, group, from, to);
            data = "";
            while (from < to) {
                uint256 stop = to < values ? to : values;
                bytes memory some = _floats(p, op, group, from, stop);
                if (p.poisoned) return some;
                data = bytes.concat(data, some);
                ++group;
                from = 0;
                to = to > values ? to - values : 0;
            }
        }
    }

    // --- operands from elsewhere

    /// @dev Values of the residual that the unit before left at this position; poisons.
    function _residual(Proof memory p, uint256 from, uint256 to) internal view returns (bytes memory data) {
        unchecked {
            data = _buffer(4 * (to - from));
            uint256 out;
            assembly ("memory-safe") {
                out := add(data, 32)
            }
            uint256[] memory offsets = new uint256[](1);
            while (from < to) {
                uint256 stop = (from / 256 + 1) * 256;
                if (stop > to) stop = to;
                _state(p, p.c.position, p.c.unit - 1, 0, from / 256, 1, offsets);
                uint256 offset = offsets[0] + 4 * (from % 256);
                uint256 n = 4 * (stop - from);
                assembly ("memory-safe") {
                    calldatacopy(out, offset, n)
                }
                out += n;
                from = stop;
            }
            if (!_finite(data)) p.poisoned = true;
        }
    }

    /// @dev Opens a tile of a part of a unit at consecutive positions; gives the calldata offset of each.
    function _state(
        Proof memory p,
        uint256 position,
        uint256 unit,
        uint256 part,
        uint256 tile,
        uint256 count,
        uint256[] memory offsets
    ) internal view {
        unchecked {
            Context memory c = p.c;
            bytes32[] memory leaves = new bytes32[](count);
            for (uint256 i = 0; i < count; ++i) {
                (uint256 size, uint256 tileBytes, uint256 parts) = Layout.partOf(c, position + i, unit, part);
                uint256 tiles = (size + tileBytes - 1) / tileBytes;
                size -= tile * tileBytes;
                if (size > tileBytes) size = tileBytes;
                uint256 here = _take(p, size);
                offsets[i] = here;
                bytes32 root = _path(p, Sha.leaf("", 0, here, size), tile, tiles);
                bytes memory entry = abi.encodePacked("AOS/state-leaf/v2", bytes1(0), uint32(position + i), uint32(unit));
                for (uint256 each = 0; each < parts; ++each) {
                    entry = abi.encodePacked(entry, each == part ? root : _hash(p));
                }
                leaves[i] = Sha.leafOf(entry);
            }
            for (uint256 i = 0; i < count; ++i) {
                uint256 units = Layout.unitsAt(c, position + i);
                leaves[i] = Sha.leafOf(
                    abi.encodePacked(
                        "AOS/state-position/v1",
                        bytes1(0),
                        uint32(position + i),
                        uint32(units),
                        _path(p, leaves[i], unit, units)
                    )
                );
            }
            (bytes32 found, uint256 used) = Sha.range(leaves, count, 1 + position, 1 + c.nPositions, p.cursor);
            _take(p, 32 * used);
            if (found != c.stateRoot) revert Fault(STATE);
        }
    }

    /// @dev The calldata offset of the tile of 64 tokens; its ids are checked to be in the vocabulary.
    function _tokenTile(Proof memory p, uint256 tile) internal view returns (uint256 offset, uint256 count) {
        unchecked {
            uint256 total = p.c.nTokens;
            count = total - 64 * tile;
            if (count > 64) count = 64;
            offset = _take(p, 4 * count);
            if (_path(p, Sha.leaf("", 0, offset, 4 * count), tile, (total + 63) / 64) != p.c.tokensRoot) {
                revert Fault(TOKENS);
            }
            for (uint256 i = 0; i < count; ++i) {
                if (_number(offset + 4 * i) >= p.c.nVocab) revert Fault(TOKENS);
            }
        }
    }

    /// @dev The calldata offset of the position's cos and sin.
    function _ropeRow(Proof memory p) internal view returns (uint256 offset) {
        offset = _take(p, 4 * p.c.nRot);
        bytes32 leaf = Sha.leaf("", 0, offset, 4 * p.c.nRot);
        if (_path(p, leaf, p.c.position, p.c.nCtx) != p.c.ropeTable) revert Fault(ROPE);
    }

    /// @dev Opens a chunk of a row of a tensor of `columns` by `rows` (0: a vector). Gives the tensor's type and the calldata
    /// offset of the chunk.
    function _weights(Proof memory p, Tensor tensor, uint256 columns, uint256 rows, uint256 row, uint256 chunk)
        internal
        view
        returns (uint256 kind, uint256 offset)
    {
        unchecked {
            offset = _take(p, 12);
            kind = Blocks.word(offset) >> 224;
            uint256 number = (Blocks.word(offset) >> 192) & 0xffffffff;
            uint256 tensors = (Blocks.word(offset) >> 160) & 0xffffffff;
            (uint256 weights, uint256 bytes_) = Blocks.format(kind);
            if (weights == 0 || columns % weights != 0 || number >= tensors || !Layout.tensorCount(p.c, tensors)) {
                revert Fault(WEIGHTS);
            }
            uint256 size = Layout.least(columns - 256 * chunk, 256) / weights * bytes_;
            offset = _take(p, size);
            bytes32 root = _path(p, Sha.leaf(CHUNK_TAG, 21, offset, size), chunk, (columns + 255) / 256);
            if (rows != 0) root = _path(p, root, row, rows);
            root = _tensorLeaf(tensor, p.c.unit, kind, columns, rows, root);
            if (_path(p, root, number, tensors) != p.c.weightsRoot) revert Fault(WEIGHTS);
        }
    }

    /// @dev One value of an F32 vector.
    function _vector(Proof memory p, Tensor tensor, uint256 width, uint256 index) internal view returns (uint256) {
        (uint256 kind, uint256 offset) = _weights(p, tensor, width, 0, 0, index / 256);
        if (kind != Blocks.TYPE_F32) revert Fault(WEIGHTS);
        return Blocks.widened(kind, offset, index % 256);
    }

    /// @dev The leaf of a tensor in the tree of weights.
    function _tensorLeaf(Tensor tensor, uint256 unit, uint256 kind, uint256 columns, uint256 rows, bytes32 root)
        private
        view
        returns (bytes32 leaf)
    {
        (bytes32 name, uint256 size) = _name(tensor, unit);
        assembly ("memory-safe") {
            // Each word's end is written over by what comes behind it.
            let here := mload(64)
            mstore(here, shr(8, TENSOR_TAG))
            mstore(add(here, 23), shl(192, size))
            mstore(add(here, 31), name)
            let at := add(add(here, 31), size)
            mstore(at, or(shl(224, kind), or(shl(192, add(1, gt(rows, 0))), or(shl(128, columns), shl(64, rows)))))
            at := add(at, shl(3, add(2, gt(rows, 0))))
            mstore(at, root)
            if iszero(staticcall(gas(), 2, here, sub(add(at, 32), here), 0, 32)) { revert(0, 0) }
            leaf := mload(0)
        }
    }

    /// @dev A tensor's name, from the top of a word, and its bytes: 28 at most, as a unit has five digits.
    function _name(Tensor tensor, uint256 unit) private pure returns (bytes32 name, uint256 size) {
        unchecked {
            if (tensor == Tensor.TokenEmbd) return ("token_embd.weight", 17);
            if (tensor == Tensor.OutputNorm) return ("output_norm.weight", 18);
            if (tensor == Tensor.Output) return ("output.weight", 13);
            (name, size) = (".attn_norm.weight", 17);
            if (tensor == Tensor.AttnQ) (name, size) = (".attn_q.weight", 14);
            else if (tensor == Tensor.AttnK) (name, size) = (".attn_k.weight", 14);
            else if (tensor == Tensor.AttnV) (name, size) = (".attn_v.weight", 14);
            else if (tensor == Tensor.AttnQBias) (name, size) = (".attn_q.bias", 12);
            else if (tensor == Tensor.AttnKBias) (name, size) = (".attn_k.bias", 12);
            else if (tensor == Tensor.AttnVBias) (name, size) = (".attn_v.bias", 12);
            else if (tensor == Tensor.AttnQNorm) (name, size) = (".attn_q_norm.weight", 19);
            else if (tensor == Tensor.AttnKNorm) (name, size) = (".attn_k_norm.weight", 19);
            else if (tensor == Tensor.AttnOutput) (name, size) = (".attn_output.weight", 19);
            else if (tensor == Tensor.FfnNorm) (name, size) = (".ffn_norm.weight", 16);
            else if (tensor == Tensor.FfnGate) (name, size) = (".ffn_gate.weight", 16);
            else if (tensor == Tensor.FfnUp) (name, size) = (".ffn_up.weight", 14);
            else if (tensor == Tensor.FfnDown) (name, size) = (".ffn_down.weight", 16);
            // What stands before it, its end first.
            --unit;
            do {
                name = bytes32((48 + unit % 10) << 248) | (name >> 8);
                ++size;
                unit /= 10;
            } while (unit != 0);
            return (bytes32("blk.") | (name >> 32), size + 4);
        }
    }

    // --- the end of a proof

    /// @dev The tiles' path to the unit root, the element's value, and what the state root commits.
    function _finish(Proof memory p, uint256 word, bool right, uint256 offset, uint256 tileSize) private view {
        uint256 n = Layout.count(p.ops);
        bytes32 root = _fold(p, n);
        bool committed = Layout.part(word) != 0 && p.c.trapOp == 0;
        bytes32 leaf = Sha.leaf("", 0, offset, tileSize);
        bytes32 partRoot = committed ? _path(p, leaf, p.tile, Layout.tiles(word)) : bytes32(0);
        if (p.cursor != p.end) revert Fault(LENGTH);
        root = sha256(
            abi.encodePacked(
                "AOS/unit-root/v1", bytes1(0), p.c.stateRoot, uint32(p.c.position), uint32(p.c.unit), uint32(n), root
            )
        );
        if (root != p.c.unitRoot) revert Fault(PATH);
        if (!right) revert Fault(p.poisoned || !_allOnes(offset, tileSize) ? VALUE : ONES);
        if (committed) {
            uint256 part = Layout.part(word);
            bytes32 wanted = part == 1 ? p.c.partRoot0 : part == 2 ? p.c.partRoot1 : p.c.partRoot2;
            if (partRoot != wanted) revert Fault(COMMITMENT);
        } else if (Layout.demanded(word)) {
            if (p.c.trapOp == 0 && _number(offset) != 1) revert Fault(CUT);
        } else if (p.op == p.ops.length - 1) {
            if (_number(offset) != p.c.trapOp) revert Fault(TRAP);
        }
    }

    /// @dev The root over the trace's tree from the opened tiles and the proof's hashes.
    function _fold(Proof memory p, uint256 n) private view returns (bytes32 root) {
        _sort(p);
        uint256[9] memory tree = Layout.tree(n);
        uint256[] memory tiles = p.tiles;
        bytes32[] memory hashes = p.hashes;
        uint256 cursor = p.cursor;
        assembly ("memory-safe") {
            // Where the next tile's entry is, how much further its hash, where the proof's next hash is; then a node.
            let state := mload(64)
            mstore(state, add(tiles, 32))
            mstore(add(state, 32), sub(hashes, tiles))
            mstore(add(state, 64), cursor)
            mstore(add(state, 96), 1)

            /// The hash of siblings `from` … `to` - 1 of a level.
            function node(s, levels, level, from, to) -> hash {
                for {} 1 {} {
                    let span := mload(add(levels, shl(5, add(4, level))))
                    // No opened tile: numbers count from 1.
                    if gt(shr(128, mload(mload(s))), mul(to, span)) {
                        let here := mload(add(s, 64))
                        mstore(add(s, 64), add(here, 32))
                        hash := calldataload(here)
                        leave
                    }
                    let left := sub(sub(to, from), 1)
                    if left {
                        left := or(left, shr(1, left))
                        left := or(left, shr(2, left))
                        left := add(from, shr(1, add(or(left, shr(4, left)), 1)))
                        hash := node(s, levels, level, from, left)
                        let right := node(s, levels, level, left, to)
                        mstore(add(s, 128), hash)
                        mstore(add(s, 160), right)
                        if iszero(staticcall(gas(), 2, add(s, 127), 65, 0, 32)) { revert(0, 0) }
                        hash := mload(0)
                        leave
                    }
                    if eq(span, 1) {
                        let entry := mload(s)
                        mstore(s, add(entry, 32))
                        hash := mload(add(entry, mload(add(s, 32))))
                        leave
                    }
                    let width := mload(add(levels, shl(5, level)))
                    from := mul(from, width)
                    to := add(from, width)
                    level := add(level, 1)
                    span := mload(add(levels, shl(5, add(4, level))))
                    span := div(add(mload(add(levels, 256)), sub(span, 1)), span)
                    if gt(to, span) { to := span }
                }
            }
            root := node(state, tree, 0, 0, 1)
            cursor := mload(add(state, 64))
        }
        if (cursor > p.end) revert Fault(LENGTH);
        p.cursor = cursor;
    }

    /// @dev The opened tiles by number. All operands are before the tile itself, which was opened first; most are in order.
    function _sort(Proof memory p) private pure {
        uint256[] memory tiles = p.tiles;
        bytes32[] memory hashes = p.hashes;
        uint256 opened = p.opened;
        assembly ("memory-safe") {
            let gap := sub(hashes, tiles)
            let first := add(tiles, 32)
            let own := mload(first)
            let hash := mload(add(first, gap))
            let end := add(tiles, shl(5, opened))
            for { let at := first } lt(at, end) { at := add(at, 32) } {
                let entry := mload(add(at, 32))
                let its := mload(add(add(at, 32), gap))
                let here := at
                for {} gt(here, first) {} {
                    let before := sub(here, 32)
                    if lt(mload(before), entry) { break }
                    mstore(here, mload(before))
                    mstore(add(here, gap), mload(add(before, gap)))
                    here := before
                }
                mstore(here, entry)
                mstore(add(here, gap), its)
            }
            mstore(end, own)
            mstore(add(end, gap), hash)
            mstore(add(end, 32), not(0))
        }
    }

    // --- bytes

    function _take(Proof memory p, uint256 size) internal pure returns (uint256 here) {
        unchecked {
            here = p.cursor;
            if (size > p.end - here) revert Fault(LENGTH);
            p.cursor = here + size;
        }
    }

    function _hash(Proof memory p) private pure returns (bytes32) {
        return bytes32(Blocks.word(_take(p, 32)));
    }

    function _path(Proof memory p, bytes32 leaf, uint256 index, uint256 size) internal view returns (bytes32 root) {
        uint256 used;
        (root, used) = Sha.inclusion(leaf, index, size, p.cursor);
        _take(p, 32 * used);
    }

    function _buffer(uint256 size) internal pure returns (bytes memory data) {
        // Not cleared: all of it is written, but for the word behind it.
        assembly ("memory-safe") {
            data := mload(64)
            mstore(data, size)
            mstore(add(add(data, 32), size), 0)
            mstore(64, and(add(add(data, 95), size), not(31)))
        }
    }

    function _calldata(uint256 offset, uint256 size) internal pure returns (bytes memory data) {
        data = _buffer(size);
        assembly ("memory-safe") {
            calldatacopy(add(data, 32), offset, size)
        }
    }

    function _allOnes(uint256 offset, uint256 size) private pure returns (bool) {
        unchecked {
            for (; size >= 32; size -= 32) {
                if (Blocks.word(offset) != type(uint256).max) return false;
                offset += 32;
            }
            return size == 0 || Blocks.word(offset) >> (256 - 8 * size) == (uint256(1) << (8 * size)) - 1;
        }
    }

    /// @dev Whether all fp32 values, little-endian, are finite.
    function _finite(bytes memory data) internal pure returns (bool good) {
        assembly ("memory-safe") {
            good := 1
            let mask := 0x0000807f0000807f0000807f0000807f0000807f0000807f0000807f0000807f
            let add_ := 0x7fffffff7fffffff7fffffff7fffffff7fffffff7fffffff7fffffff7fffffff
            let top := 0x8000000080000000800000008000000080000000800000008000000080000000
            let here := add(data, 32)
            let end := add(here, and(mload(data), not(31)))
            for {} lt(here, end) { here := add(here, 32) } {
                good := and(good, eq(and(add(xor(and(mload(here), mask), mask), add_), top), top))
            }
            let rest := and(mload(data), 31)
            if rest {
                let w := shl(sub(256, shl(3, rest)), shr(sub(256, shl(3, rest)), mload(here)))
                good := and(good, eq(and(add(xor(and(w, mask), mask), add_), top), top))
            }
        }
    }

    /// @dev The u32 or fp32 at an offset of calldata, little-endian.
    function _number(uint256 offset) internal pure returns (uint256) {
        return _swapped(Blocks.word(offset) >> 224);
    }

    /// @dev fp32 or u32 number `i` of memory, little-endian.
    function _at(bytes memory data, uint256 i) internal pure returns (uint256 w) {
        assembly ("memory-safe") {
            w := shr(224, mload(add(add(data, 32), shl(2, i))))
        }
        return _swapped(w);
    }

    function _swapped(uint256 w) internal pure returns (uint256) {
        unchecked {
            w = ((w & 0xff00ff) << 8) | ((w >> 8) & 0xff00ff);
            return ((w << 16) | (w >> 16)) & 0xffffffff;
        }
    }

    /// @dev A number as its four bytes, little-endian.
    function _le(uint256 w) internal pure returns (bytes memory) {
        return abi.encodePacked(uint32(_swapped(w)));
    }
}
