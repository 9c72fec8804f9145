// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Context} from "./IStep.sol";

/// @title The operations of a unit and the numbers of their tiles (docs/spec/11-trace.md), and the sizes of a run's tree (07)
/// @dev An operation is a word: first tile, groups, values of a group, values of a tile, bytes of a value, bytes of a value
/// of the last group (32 bits each, from the top), then trap number, part + 1, element bytes (8 each), flags (8).
library Layout {
    error NoSuchTile();

    // Operations of a layer, by their place in its list.
    uint256 internal constant ATTN_NORM_LANES = 0;
    uint256 internal constant ATTN_NORM = 2;
    uint256 internal constant ATTN_NORM_QUANTISED = 3;
    uint256 internal constant Q_CHUNKS = 4;
    uint256 internal constant Q = 5;
    uint256 internal constant K_CHUNKS = 6;
    uint256 internal constant K = 7;
    uint256 internal constant V_CHUNKS = 8;
    uint256 internal constant V = 9;
    uint256 internal constant Q_NORM_LANES = 10;
    uint256 internal constant Q_NORM = 12;
    uint256 internal constant K_NORM_LANES = 13;
    uint256 internal constant K_NORM = 15;
    uint256 internal constant ROPE_Q = 16;
    uint256 internal constant ROPE_K = 17;
    uint256 internal constant KEYS = 18;
    uint256 internal constant VALUES = 19;
    uint256 internal constant SCORES = 20;
    uint256 internal constant MAX_CHUNKS = 21;
    uint256 internal constant MAX = 22;
    uint256 internal constant EXP = 23;
    uint256 internal constant EXP_LANES = 24;
    uint256 internal constant EXP_SUM = 25;
    uint256 internal constant MIX = 26;
    uint256 internal constant MIX_CHUNKS = 27;
    uint256 internal constant ATTENTION = 28;
    uint256 internal constant ATTENTION_QUANTISED = 29;
    uint256 internal constant OUTPUT_CHUNKS = 30;
    uint256 internal constant ATTN_OUTPUT = 31;
    uint256 internal constant ATTN_RESIDUAL = 32;
    uint256 internal constant FFN_NORM_LANES = 33;
    uint256 internal constant FFN_NORM = 35;
    uint256 internal constant FFN_NORM_QUANTISED = 36;
    uint256 internal constant GATE_CHUNKS = 37;
    uint256 internal constant GATE = 38;
    uint256 internal constant UP_CHUNKS = 39;
    uint256 internal constant UP = 40;
    uint256 internal constant ACTIVATION = 41;
    uint256 internal constant ACTIVATION_QUANTISED = 42;
    uint256 internal constant DOWN_CHUNKS = 43;
    uint256 internal constant DOWN = 44;
    uint256 internal constant RESIDUAL = 45;

    // Of a tail.
    uint256 internal constant OUTPUT_NORM = 2;
    uint256 internal constant OUTPUT_NORM_QUANTISED = 3;
    uint256 internal constant LOGIT_CHUNKS = 4;
    uint256 internal constant PRODUCT = 5;
    uint256 internal constant LOGITS = 6;
    uint256 internal constant SEEN = 7;
    uint256 internal constant ADJUSTED = 8;
    uint256 internal constant LARGEST_CHUNKS = 9;
    uint256 internal constant LARGEST = 10;
    uint256 internal constant WEIGHTS = 11; // the token at temperature 0
    uint256 internal constant CUTS = 12;
    uint256 internal constant BEFORE_CHUNKS = 13;
    uint256 internal constant BEFORE = 14;
    uint256 internal constant BEFORE_HOLDS = 15;
    uint256 internal constant AFTER_CHUNKS = 16;
    uint256 internal constant AFTER = 17;
    uint256 internal constant AFTER_HOLDS = 18;
    uint256 internal constant RUNNING = 19;
    uint256 internal constant PICKS = 20;
    uint256 internal constant RECORD = 21;
    uint256 internal constant TOKEN = 22;
    uint256 internal constant GREEDY_OPS = 12;
    uint256 internal constant SAMPLED_OPS = 23;

    uint256 private constant BY_VALUE = 1;
    uint256 private constant DEMANDED = 2;
    /// @dev One group, one value a tile, one byte a value: an element.
    uint256 private constant ONE_BYTE = 0x1000000000000000100000001000000000000000000000100;
    /// @dev One group, one value, four bytes.
    uint256 private constant TRAP = 0x1000000010000000100000004000000000000000000000400;

    /// @dev A list while it is made. `end` and `flags` are where in memory its next operation and its next operation of flags
    /// go, `tiles` and `flagTiles` how many tiles those before have.
    struct List {
        uint256 end;
        uint256 tiles;
        uint256 flags;
        uint256 flagTiles;
    }

    // Nine bytes an operation: groups, values of a group, values of a tile, bytes of a value, bytes of a value of the last
    // group where they are others (each the number of a size that `_sizes` lists), trap number, part + 1, bytes of an
    // element (0: the tile), flags.
    bytes private constant EMBEDDING =
        hex"01022e290001010400"; // embedding
    bytes private constant LAYER =
        hex"010c2b290000000400" // attn_norm.lanes
        hex"010101290002000400" // attn_norm.sum
        hex"01022e290002000401" // attn_norm
        hex"010f2a2c0000002401" // attn_norm.quantised
        hex"1612292b1a00000401" // q.chunks
        hex"01032d290003000401" // q
        hex"1712292b1b00000401" // k.chunks
        hex"01042d290004000401" // k
        hex"1712292b1b00000401" // v.chunks
        hex"01042d290005000401" // v
        hex"0a0d2b290000000400" // q_norm.lanes
        hex"0a0101290016000400" // q_norm.sum
        hex"0a082e290016000401" // q_norm
        hex"0b0d2b290000000400" // k_norm.lanes
        hex"0b0101290017000400" // k_norm.sum
        hex"0b082e290017000401" // k_norm
        hex"060808290006000400" // rope_q
        hex"070808290007000400" // rope_k
        hex"01042e2f0000020201" // keys
        hex"01042e2f0000030201" // values
        hex"06092b290008000401" // scores
        hex"061d01290000000400" // scores.max.chunks
        hex"060101290000000400" // scores.max
        hex"06092e290000000401" // exp
        hex"060e2b290000000400" // exp.lanes
        hex"060101290009000400" // exp.sum
        hex"061e011f0000000400" // mix
        hex"061d011f0000000400" // mix.chunks
        hex"06080829000a000400" // attention
        hex"01102a2c0000002401" // attention.quantised
        hex"1513292b1900000401" // attn_output.chunks
        hex"01022d29000b000401" // attn_output
        hex"01022e29000c000401" // attn_residual
        hex"010c2b290000000400" // ffn_norm.lanes
        hex"01010129000d000400" // ffn_norm.sum
        hex"01022e29000d000401" // ffn_norm
        hex"010f2a2c0000002401" // ffn_norm.quantised
        hex"1812292b1c00000401" // gate.chunks
        hex"01052d29000e000401" // gate
        hex"1812292b1c00000401" // up.chunks
        hex"01052d29000f000401" // up
        hex"01052e290010000401" // activation
        hex"01112a2c0000002401" // activation.quantised
        hex"1514292b1900000401" // down.chunks
        hex"01022d290011000401" // down
        hex"01022e290012010401"; // residual
    bytes private constant TAIL =
        hex"010c2b290000000400" // output_norm.lanes
        hex"010101290013000400" // output_norm.sum
        hex"01022e290013000401" // output_norm
        hex"010f2a2c0000002401" // output_norm.quantised
        hex"2212292b2300000401" // output.chunks
        hex"01202d290014000401" // output
        hex"01202e290000010401" // logits
        hex"242701262500000000" // seen
        hex"01202e290015000401" // adjusted
        hex"0121012a0000000000" // largest.chunks
        hex"0101012a0000000000"; // largest
    bytes private constant GREEDY =
        hex"010101290000030400"; // token
    bytes private constant SAMPLED =
        hex"01202e290000000401" // weights
        hex"0101012a0000000000" // cuts
        hex"012129300000001801" // before.chunks
        hex"010101300000000000" // before
        hex"010101290000000402" // before.holds
        hex"012129310000000c01" // after.chunks
        hex"010101310000000000" // after
        hex"010101290000000402" // after.holds
        hex"01212e290000000400" // running
        hex"0121292a0000000801" // picks
        hex"012832010000020000" // record
        hex"010101290000030400"; // token

    // --- a word's parts

    function first(uint256 word) internal pure returns (uint256) {
        return word >> 224;
    }

    function groups(uint256 word) internal pure returns (uint256) {
        return (word >> 192) & 0xffffffff;
    }

    function values(uint256 word) internal pure returns (uint256) {
        return (word >> 160) & 0xffffffff;
    }

    function tile(uint256 word) internal pure returns (uint256) {
        return (word >> 128) & 0xffffffff;
    }

    function valueSize(uint256 word, uint256 group) internal pure returns (uint256) {
        unchecked {
            uint256 other = (word >> 64) & 0xffffffff;
            return other != 0 && group == groups(word) - 1 ? other : (word >> 96) & 0xffffffff;
        }
    }

    function trap(uint256 word) internal pure returns (uint256) {
        return (word >> 24) & 0xff;
    }

    function part(uint256 word) internal pure returns (uint256) {
        return (word >> 16) & 0xff;
    }

    function element(uint256 word) internal pure returns (uint256) {
        return (word >> 8) & 0xff;
    }

    function byValue(uint256 word) internal pure returns (bool) {
        return word & BY_VALUE != 0;
    }

    function demanded(uint256 word) internal pure returns (bool) {
        return word & DEMANDED != 0;
    }

    function tilesAGroup(uint256 word) internal pure returns (uint256) {
        unchecked {
            return (values(word) + tile(word) - 1) / tile(word);
        }
    }

    function tiles(uint256 word) internal pure returns (uint256) {
        unchecked {
            return groups(word) * tilesAGroup(word);
        }
    }

    /// @return group The tile's group. @return from Its first value. @return to Its end.
    function place(uint256 word, uint256 index) internal pure returns (uint256 group, uint256 from, uint256 to) {
        unchecked {
            uint256 each = tilesAGroup(word);
            group = index / each;
            from = (index % each) * tile(word);
            to = least(from + tile(word), values(word));
        }
    }

    function count(uint256[] memory ops) internal pure returns (uint256) {
        unchecked {
            return first(ops[ops.length - 1]) + 1;
        }
    }

    /// @return op The operation that a tile is of.
    function find(uint256[] memory ops, uint256 index) internal pure returns (uint256 op) {
        unchecked {
            if (index >= count(ops)) revert NoSuchTile();
            uint256 end = ops.length;
            assembly ("memory-safe") {
                // The last one that begins at or before the tile; one without tiles is followed by one that begins there.
                let here := add(ops, 32)
                for {} gt(sub(end, op), 1) {} {
                    let middle := shr(1, add(op, end))
                    switch lt(index, shr(224, mload(add(here, shl(5, middle)))))
                    case 0 { op := middle }
                    default { end := middle }
                }
            }
        }
    }

    /// @return most More tiles than the operation reads.
    function reads(Context memory c, uint256[] memory ops, uint256 op) internal pure returns (uint256 most) {
        unchecked {
            if (op == ops.length - 1) {
                for (most = 1; op != 0 && element(ops[op - 1]) == 1; --op) most += tiles(ops[op - 1]);
                return most;
            }
            most = 160 + c.position / 256 + (c.width + c.ffWidth + c.nHeads * c.headWidth) / 1024;
            if (c.unit > c.nLayers) most += c.nVocab / 256;
        }
    }

    // --- the lists

    /// @notice The operations of the context's unit, in order; those of head norms have no tile where there are none.
    function unitOps(Context memory c) internal pure returns (uint256[] memory ops) {
        unchecked {
            uint256[51] memory sizes = _sizes(c);
            if (c.unit == 0) return _list(sizes, EMBEDDING, "");
            if (c.unit <= c.nLayers) return _list(sizes, LAYER, "");
            if (c.position + 1 < c.nPrompt) return _list(sizes, "", "");
            return _list(sizes, TAIL, c.temperature == 0 ? GREEDY : SAMPLED);
        }
    }

    /// @dev The operations of two tables, a flag for every run of tiles of a checked one, the trap.
    function _list(uint256[51] memory sizes, bytes memory some, bytes memory more)
        private
        pure
        returns (uint256[] memory ops)
    {
        unchecked {
            List memory l;
            uint256 start;
            assembly ("memory-safe") {
                // Not cleared; no list has more than 80.
                ops := mload(64)
                mstore(64, add(ops, 2592))
                start := add(add(ops, 32), shl(5, div(add(mload(some), mload(more)), 9)))
            }
            l.flags = start;
            assembly ("memory-safe") {
                mstore(l, add(ops, 32))
            }
            _append(l, sizes, some);
            _append(l, sizes, more);
            (uint256 all, uint256 end, uint256 flagTiles) = (l.tiles, l.flags, l.flagTiles);
            assembly ("memory-safe") {
                for {} lt(start, end) { start := add(start, 32) } {
                    mstore(start, add(mload(start), shl(224, all)))
                }
                // The trap: one group, value and tile of four bytes.
                mstore(end, or(shl(224, add(all, flagTiles)), TRAP))
                mstore(ops, shr(5, sub(end, ops)))
            }
        }
    }

    /// @return How many tiles of a checked operation a flag is about.
    function flagged(uint256 word) internal pure returns (uint256) {
        unchecked {
            uint256 n = 16384 / (least(tile(word), values(word)) * ((word >> 96) & 0xffffffff));
            return n == 0 ? 1 : least(n, 128);
        }
    }

    /// @dev A list is made in every call.
    function _append(List memory l, uint256[51] memory sizes, bytes memory table) private pure {
        assembly ("memory-safe") {
            let row := add(table, 32)
            let end := add(row, mload(table))
            let out := mload(l)
            let all := mload(add(l, 32))
            let flags := mload(add(l, 64))
            let before := mload(add(l, 96))
            for {} lt(row, end) { row := add(row, 9) } {
                let r := mload(row)
                let groups_ := mload(add(sizes, shl(5, byte(0, r))))
                let values_ := mload(add(sizes, shl(5, byte(1, r))))
                let tile_ := mload(add(sizes, shl(5, byte(2, r))))
                let size := mload(add(sizes, shl(5, byte(3, r))))
                let word := or(shl(224, all), or(shl(192, groups_), or(shl(160, values_), shl(128, tile_))))
                word := or(word, or(shl(96, size), shl(64, mload(add(sizes, shl(5, byte(4, r)))))))
                mstore(out, or(word, and(shr(184, r), 0xffffffff)))
                out := add(out, 32)
                let tiles_ := mul(groups_, div(add(values_, sub(tile_, 1)), tile_))
                all := add(all, tiles_)
                if and(gt(byte(5, r), 0), gt(groups_, 0)) {
                    if lt(values_, tile_) { tile_ := values_ }
                    let every := div(16384, mul(tile_, size))
                    if gt(every, 128) { every := 128 }
                    if iszero(every) { every := 1 }
                    every := div(add(tiles_, sub(every, 1)), every)
                    mstore(flags, or(shl(224, before), or(shl(160, every), ONE_BYTE)))
                    flags := add(flags, 32)
                    before := add(before, every)
                }
            }
            mstore(l, out)
            mstore(add(l, 32), all)
            mstore(add(l, 64), flags)
            mstore(add(l, 96), before)
        }
    }

    /// @dev What the tables speak of.
    function _sizes(Context memory c) private pure returns (uint256[51] memory t) {
        unchecked {
            t[1] = 1;
            t[2] = c.width;
            t[3] = c.nHeads * c.headWidth;
            t[4] = c.nKvHeads * c.headWidth;
            t[5] = c.ffWidth;
            t[6] = c.nHeads;
            t[7] = c.nKvHeads;
            t[8] = c.headWidth;
            t[9] = c.position + 1;
            if (c.kind == 2) (t[10], t[11]) = (t[6], t[7]);
            t[12] = (t[2] + 1023) / 1024 * 16; // lanes of segments
            t[13] = (t[8] + 1023) / 1024 * 16;
            t[14] = (t[9] + 1023) / 1024 * 16;
            t[15] = t[2] / 32; // blocks
            t[16] = t[3] / 32;
            t[17] = t[5] / 32;
            t[18] = (t[2] + 255) / 256; // chunks
            t[19] = (t[3] + 255) / 256;
            t[20] = (t[5] + 255) / 256;
            // Groups of four rows, and the bytes of a chunk of the last ones.
            (t[21], t[22], t[23], t[24]) = ((t[2] + 3) / 4, (t[3] + 3) / 4, (t[4] + 3) / 4, (t[5] + 3) / 4);
            (t[25], t[26], t[27], t[28]) = (t[2] % 4 * 4, t[3] % 4 * 4, t[4] % 4 * 4, t[5] % 4 * 4);
            t[29] = (t[9] + 255) / 256;
            t[30] = (t[9] + 15) / 16;
            t[31] = 4 * c.headWidth;
            t[32] = c.nVocab;
            t[33] = (c.nVocab + 255) / 256;
            t[34] = (c.nVocab + 3) / 4;
            t[35] = c.nVocab % 4 * 4;
            t[36] = (c.nVocab + 8191) / 8192;
            t[37] = (c.nVocab - (t[36] - 1) * 8192 + 7) / 8; // of a bitmap
            t[38] = t[36] > 1 ? 1024 : t[37];
            t[39] = (t[9] + 1023) / 1024;
            t[40] = 16 + 8 * t[33];
            (t[41], t[42], t[43], t[44], t[45]) = (4, 8, 16, 36, 64);
            (t[46], t[47], t[48], t[49], t[50]) = (256, 2, 24, 12, 1024);
        }
    }

    // --- the tree over n tiles

    /// @return t Widths of the levels, [3] their number, [4 …] tiles below a full node of each level, [8] n.
    function tree(uint256 n) internal pure returns (uint256[9] memory t) {
        unchecked {
            uint256 depth = n <= 256 ? 1 : n <= 65536 ? 2 : 3;
            uint256 width = 1;
            for (uint256 high = 256; depth > 1 && width < high;) {
                uint256 middle = (width + high) / 2;
                if ((depth == 2 ? middle * middle : middle * middle * middle) >= n) high = middle;
                else width = middle + 1;
            }
            t[8] = n;
            t[3] = depth;
            t[4 + depth] = 1;
            for (uint256 level = depth - 1; level > 0; --level) {
                t[level] = width;
                t[4 + level] = t[5 + level] * width;
            }
            t[0] = (n + t[5] - 1) / t[5];
            t[4] = t[5] * t[0];
        }
    }

    /// @return from The children of a node, as numbers of the next level.
    function below(uint256[9] memory t, uint256 level, uint256 node)
        internal
        pure
        returns (uint256, uint256 from, uint256 to)
    {
        unchecked {
            from = node * t[level];
            ++level;
            return (level, from, least(from + t[level - 1], nodes(t, level)));
        }
    }

    /// @return left The largest power of two below a number of 2 to 256.
    function split(uint256 n) internal pure returns (uint256 left) {
        assembly ("memory-safe") {
            n := sub(n, 1)
            left := shl(2, lt(0xf, n))
            left := or(left, shl(1, lt(3, shr(left, n))))
            left := or(left, lt(1, shr(left, n)))
            left := shl(left, 1)
        }
    }

    /// @return How many nodes a level has.
    function nodes(uint256[9] memory t, uint256 level) internal pure returns (uint256) {
        unchecked {
            return (t[8] + t[4 + level] - 1) / t[4 + level];
        }
    }

    // --- the run's tree

    function unitsAt(Context memory c, uint256 position) internal pure returns (uint256) {
        unchecked {
            return c.trapUnits != 0 && position == c.nPositions - 1 ? c.trapUnits : c.nLayers + 2;
        }
    }

    /// @return size A part's bytes. @return tileBytes How they are cut. @return parts The unit's parts there.
    function partOf(Context memory c, uint256 position, uint256 unit, uint256 part_)
        internal
        pure
        returns (uint256 size, uint256 tileBytes, uint256 parts)
    {
        unchecked {
            if (unit == 0) return (4 * c.width, 1024, 1);
            if (unit <= c.nLayers) {
                return part_ == 0 ? (4 * c.width, 1024, 3) : (2 * c.nKvHeads * c.headWidth, 512, 3);
            }
            if (position + 1 < c.nPrompt) return (0, 1024, 0);
            if (part_ == 1) return (c.temperature == 0 ? 0 : 16 + 8 * ((c.nVocab + 255) / 256), 1024, 3);
            return (part_ == 0 ? 4 * c.nVocab : 4, 1024, 3);
        }
    }

    /// @return Whether a file of the model may have so many tensors.
    function tensorCount(Context memory c, uint256 tensors) internal pure returns (bool) {
        unchecked {
            uint256 layer = c.kind == 0 ? 9 : c.kind == 1 ? 12 : 11;
            uint256 n = 2 + (c.tied == 0 ? 1 : 0) + c.nLayers * layer;
            return tensors == n || (c.kind == 0 && tensors == n + 1);
        }
    }

    function least(uint256 a, uint256 b) internal pure returns (uint256) {
        return a < b ? a : b;
    }
}
