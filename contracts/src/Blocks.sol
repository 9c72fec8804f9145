// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {F32} from "./F32.sol";

/// @title Block formats of quantised weights (docs/spec/07-inference.md, "Block formats", rules 2 and 8)
/// @dev Integers are dots of bytes: eight lanes of 32 bits a multiplication, no lane carries (8 · 255 · 255 < 2^32).
library Blocks {
    error UnknownType();

    uint256 internal constant TYPE_F32 = 0;
    uint256 internal constant TYPE_F16 = 1;
    uint256 internal constant TYPE_BF16 = 30;
    uint256 private constant NIBBLES = 0x0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f;
    uint256 private constant SIGNS = 0x8080808080808080808080808080808080808080808080808080808080808080;
    uint256 private constant ONES = 0x0101010101010101010101010101010101010101010101010101010101010101;
    uint256 private constant HIGH = type(uint256).max << 128;

    /// @return weights How many weights a block has, 0 for a type that the canonical arithmetic has not.
    /// @return size Bytes of a block.
    function format(uint256 kind) internal pure returns (uint256 weights, uint256 size) {
        if (kind == 0) return (1, 4);
        if (kind == 1 || kind == 30) return (1, 2);
        if (kind == 2) return (32, 18);
        if (kind == 3) return (32, 20);
        if (kind == 6) return (32, 22);
        if (kind == 7) return (32, 24);
        if (kind == 8) return (32, 34);
        if (kind == 12) return (256, 144);
        if (kind == 13) return (256, 176);
        if (kind == 14) return (256, 210);
        return (0, 0);
    }

    function dense(uint256 kind) internal pure returns (bool) {
        return kind == TYPE_F32 || kind == TYPE_F16 || kind == TYPE_BF16;
    }

    /// @return Weight `index` of a dense row at `offset` of calldata, widened.
    function widened(uint256 kind, uint256 offset, uint256 index) internal pure returns (uint256) {
        unchecked {
            if (kind == TYPE_F32) {
                uint256 w = word(offset + 4 * index) >> 224;
                w = ((w & 0xff00ff) << 8) | ((w >> 8) & 0xff00ff);
                return (w << 16 | w >> 16) & 0xffffffff;
            }
            uint256 h = half(offset + 2 * index);
            return kind == TYPE_F16 ? F32.fromHalf(h) : h << 16;
        }
    }

    /// @notice Rule 2's term of block `k` of 32 weights of a row; D and q are the activations' (q: 32 signed bytes).
    function term(uint256 kind, uint256 row, uint256 k, uint256 scale, uint256 q) internal pure returns (uint256 t) {
        unchecked {
            (uint256 w, uint256 bias, uint256 d, uint256 step, uint256 offset, uint256 count) = _block(kind, row, k);
            int256 sum;
            if (kind == 14) {
                sum = int256(int8(uint8(step >> 8))) * _dot(w & HIGH, bias, q & HIGH)
                    + int256(int8(uint8(step))) * _dot(w << 128, bias, q << 128);
            } else {
                sum = int256(step) * _dot(w, bias, q);
            }
            t = F32.mul(F32.mul(d, scale), F32.fromInt(sum));
            if (offset != type(uint256).max) {
                sum = int256(_sum(q ^ SIGNS)) - 4096;
                t = F32.add(t, F32.mul(F32.mul(offset, scale), F32.fromInt(int256(count) * sum)));
            }
        }
    }

    /// @notice Rule 8's weight `i` of a row of blocks.
    function weight(uint256 kind, uint256 row, uint256 i) internal pure returns (uint256 r) {
        unchecked {
            (uint256 w, uint256 bias, uint256 d, uint256 step, uint256 offset, uint256 count) = _block(kind, row, i >> 5);
            i &= 31;
            if (kind == 14) step = uint256(int256(int8(uint8(i < 16 ? step >> 8 : step))));
            if (kind >= 12) d = F32.mul(d, F32.fromInt(int256(step)));
            r = F32.mul(d, F32.fromInt(int256((w >> (248 - 8 * i)) & 0xff) - int256(bias)));
            if (offset != type(uint256).max) r = F32.add(r, F32.mul(offset, F32.fromInt(int256(count))));
        }
    }

    /// @dev w: 32 bytes, each a weight plus `bias`; d; the step s (Q6_K: s0, s1 in two
    /// bytes); the offset (all ones without) and what multiplies it.
    function _block(uint256 kind, uint256 row, uint256 k)
        private
        pure
        returns (uint256 w, uint256 bias, uint256 d, uint256 step, uint256 offset, uint256 count)
    {
        unchecked {
            (uint256 weights, uint256 size) = format(kind);
            row += (k / (weights >> 5)) * size;
            k %= weights >> 5;
            step = 1;
            offset = type(uint256).max;
            if (kind == 8) return (word(row + 2) ^ SIGNS, 128, F32.fromHalf(half(row)), step, offset, 0);
            if (kind == 14) {
                d = F32.fromHalf(half(row + 208));
                uint256 g = k >> 2;
                k &= 3;
                w = word(row + 64 * g + 32 * (k & 1));
                w = (k < 2 ? w : w >> 4) & NIBBLES;
                w |= ((word(row + 128 + 32 * g) >> (2 * k)) & (3 * ONES)) << 4;
                return (w, 32, d, word(row + 192 + 8 * g + 2 * k) >> 240, offset, 0);
            }
            d = F32.fromHalf(half(row));
            if (kind >= 12) {
                (step, count) = _sixBits(word(row + 4), k);
                offset = F32.fromHalf(half(row + 2)) ^ 0x80000000;
                w = word(row + (kind == 12 ? 16 : 48) + 32 * (k >> 1));
                w = (k & 1 == 0 ? w : w >> 4) & NIBBLES;
                if (kind == 13) w |= ((word(row + 16) >> k) & ONES) << 4;
                return (w, 0, d, step, offset, count);
            }
            uint256 here = row + 2;
            if (kind & 1 != 0) {
                offset = F32.fromHalf(half(here));
                count = 1;
                here += 2;
            } else {
                bias = kind == 2 ? 8 : 16;
            }
            if (kind >= 6) {
                w = _fifthBits(word(here) >> 224);
                here += 4;
            }
            uint256 p = word(here) & HIGH;
            w |= (p & NIBBLES) | ((p >> 4 & NIBBLES & HIGH) >> 128);
        }
    }

    /// @dev The scale and the minimum's scale of block `k`, from 12 bytes at the top of z.
    function _sixBits(uint256 z, uint256 k) private pure returns (uint256 s, uint256 n) {
        unchecked {
            if (k < 4) return (_byte(z, k) & 63, _byte(z, k + 4) & 63);
            uint256 both = _byte(z, k + 4);
            s = (both & 15) | (_byte(z, k - 4) >> 6 << 4);
            n = (both >> 4) | (_byte(z, k) >> 6 << 4);
        }
    }

    function _byte(uint256 z, uint256 i) private pure returns (uint256 b) {
        assembly ("memory-safe") {
            b := byte(i, z)
        }
    }

    /// @dev 16 in byte i where bit i of the little-endian word is 1.
    function _fifthBits(uint256 f) private pure returns (uint256 w) {
        unchecked {
            uint256 spread = 0x0101010101010101;
            w = (((f >> 24) * spread) << 192) | ((((f >> 16) & 0xff) * spread) << 128)
                | ((((f >> 8) & 0xff) * spread) << 64) | ((f & 0xff) * spread);
            w &= 0x0102040810204080010204081020408001020408102040800102040810204080;
            w = ((w + 0x7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f) & SIGNS) >> 3;
        }
    }

    /// @dev Sum over 32 bytes of (a - bias) · (signed byte of q).
    function _dot(uint256 a, uint256 bias, uint256 q) private pure returns (int256) {
        unchecked {
            q ^= SIGNS; // plus 128
            uint256 b = q;
            uint256 m = 0x0000000000000000ffffffffffffffff0000000000000000ffffffffffffffff;
            b = (b >> 128) | (b << 128);
            b = ((b >> 64) & m) | ((b & m) << 64);
            m = 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff;
            b = ((b >> 32) & m) | ((b & m) << 32);
            m = 0x000000ff000000ff000000ff000000ff000000ff000000ff000000ff000000ff;
            uint256 s = ((a & m) * (b & m)) >> 224;
            s += (((a >> 8) & m) * ((b >> 8) & m)) >> 224;
            s += (((a >> 16) & m) * ((b >> 16) & m)) >> 224;
            s += (((a >> 24) & m) * ((b >> 24) & m)) >> 224;
            // (a - bias)(b - 128), multiplied out.
            return int256(s) - 128 * int256(_sum(a)) - int256(bias * _sum(q)) + int256(bias << 12);
        }
    }

    /// @dev The sum of 32 unsigned bytes.
    function _sum(uint256 a) private pure returns (uint256) {
        unchecked {
            uint256 m = 0x00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff;
            uint256 lanes = (a & m) + ((a >> 8) & m);
            return (lanes * 0x0001000100010001000100010001000100010001000100010001000100010001) >> 240;
        }
    }

    function half(uint256 offset) internal pure returns (uint256 h) {
        h = word(offset) >> 240;
        h = (h >> 8) | ((h & 0xff) << 8);
    }

    function word(uint256 offset) internal pure returns (uint256 w) {
        assembly ("memory-safe") {
            w := calldataload(offset)
        }
    }
}
