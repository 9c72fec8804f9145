// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {F32} from "./F32.sol";
import {Layout} from "./Layout.sol";
import {StepBase} from "./StepBase.sol";

/// @title Rotary embedding, cache and attention (docs/spec/07-inference.md, rules 4 to 7)
contract StepAttention is StepBase {
    function _compute(Proof memory p, uint256) internal view override returns (bytes memory) {
        uint256 op = p.op;
        if (p.c.unit == 0 || p.c.unit > p.c.nLayers) revert OtherStep();
        if (op == Layout.ROPE_Q) return _rope(p, p.c.kind == 2 ? Layout.Q_NORM : Layout.Q);
        if (op == Layout.ROPE_K) return _rope(p, p.c.kind == 2 ? Layout.K_NORM : Layout.K);
        if (op == Layout.KEYS) return _half(p, Layout.ROPE_K);
        if (op == Layout.VALUES) return _half(p, Layout.V);
        if (op == Layout.SCORES) return _score(p);
        if (op == Layout.MAX_CHUNKS) {
            return _largest(p, Layout.SCORES, 256 * p.first, Layout.least(256 * p.last, p.c.position + 1));
        }
        if (op == Layout.MAX) return _largest(p, Layout.MAX_CHUNKS, 0, Layout.values(p.ops[Layout.MAX_CHUNKS]));
        if (op == Layout.EXP) return _exp(p);
        if (op == Layout.MIX) return _mix(p);
        if (op == Layout.MIX_CHUNKS) return _addChunk(p);
        if (op == Layout.ATTENTION) return _attention(p);
        revert OtherStep();
    }

    function _rope(Proof memory p, uint256 source) private view returns (bytes memory) {
        unchecked {
            uint256 width = p.c.headWidth;
            bytes memory x = _flat(p, source, p.group * width, (p.group + 1) * width);
            if (p.poisoned) return x;
            uint256 row = _ropeRow(p);
            uint256 i = p.part / 4;
            if (i >= p.c.nRot) return _le(_at(x, i));
            uint256 half = p.c.nRot / 2;
            uint256 pair = p.c.kind == 0 ? i / 2 : i % half;
            bool second = p.c.kind == 0 ? i & 1 != 0 : i >= half;
            uint256 a = _at(x, p.c.kind == 0 ? 2 * pair : pair);
            uint256 b = _at(x, p.c.kind == 0 ? 2 * pair + 1 : pair + half);
            uint256 c = _number(row + 4 * pair);
            uint256 s = _number(row + 4 * (half + pair));
            return _le(second ? F32.add(F32.mul(a, s), F32.mul(b, c)) : F32.sub(F32.mul(a, c), F32.mul(b, s)));
        }
    }

    function _half(Proof memory p, uint256 source) private view returns (bytes memory) {
        bytes memory x = _flat(p, source, p.first, p.last);
        if (p.poisoned) return x;
        uint256 h = F32.toHalf(_at(x, 0));
        return abi.encodePacked(uint16((h >> 8) | ((h & 0xff) << 8)));
    }

    /// @dev Keys or values of the head's key head, position after position, 2 · head width bytes each; poisons.
    function _cached(Proof memory p, uint256 own, uint256 from, uint256 to) private view returns (bytes memory data) {
        unchecked {
            uint256 width = p.c.headWidth;
            uint256 left = p.group / (p.c.nHeads / p.c.nKvHeads) * width;
            data = _buffer(2 * width * (to - from));
            uint256 earlier = Layout.least(to, p.c.position);
            if (from < earlier) {
                uint256[] memory offsets = new uint256[](earlier - from);
                for (uint256 tile = left / 256; tile <= (left + width - 1) / 256; ++tile) {
                    _state(p, from, p.c.unit, own - Layout.KEYS + 1, tile, earlier - from, offsets);
                    uint256 start = tile * 256 > left ? tile * 256 : left;
                    uint256 bytes_ = 2 * (Layout.least(tile * 256 + 256, left + width) - start);
                    for (uint256 i = 0; i < offsets.length; ++i) {
                        uint256 offset = offsets[i] + 2 * (start - tile * 256);
                        uint256 here = 2 * (width * i + start - left);
                        assembly ("memory-safe") {
                            calldatacopy(add(add(data, 32), here), offset, bytes_)
                        }
                    }
                }
                if (!_finiteHalves(data, 2 * width * (earlier - from))) {
                    p.poisoned = true;
                    return data;
                }
            }
            if (to > earlier) {
                bytes memory own_ = _raw(p, own, 0, left, left + width);
                if (!_finiteHalves(own_, 2 * width)) p.poisoned = true;
                uint256 skipped = 2 * width * (earlier - from);
                assembly ("memory-safe") {
                    mcopy(add(add(data, 32), skipped), add(own_, 32), mload(own_))
                }
            }
        }
    }

    function _score(Proof memory p) private view returns (bytes memory) {
        unchecked {
            uint256 width = p.c.headWidth;
            bytes memory q = _floats(p, Layout.ROPE_Q, p.group, 0, width);
            if (p.poisoned) return q;
            bytes memory k = _cached(p, Layout.KEYS, p.first, p.last);
            if (p.poisoned) return k;
            uint256 scale = F32.div(F32.ONE, F32.sqrt(F32.fromInt(int256(width))));
            uint256 sum;
            for (uint256 i = 0; i < width; ++i) {
                sum = F32.add(sum, F32.mul(F32.mul(_at(q, i), scale), F32.fromHalf(_halfAt(k, i))));
            }
            return _le(sum);
        }
    }

    function _largest(Proof memory p, uint256 source, uint256 from, uint256 to) private view returns (bytes memory) {
        unchecked {
            bytes memory x = _floats(p, source, p.group, from, to);
            if (p.poisoned) return x;
            uint256 best = _at(x, 0);
            for (uint256 i = 1; 4 * i < x.length; ++i) {
                if (F32.lt(best, _at(x, i))) best = _at(x, i);
            }
            return _le(F32.add(best, 0));
        }
    }

    function _exp(Proof memory p) private view returns (bytes memory) {
        bytes memory m = _floats(p, Layout.MAX, p.group, 0, 1);
        if (p.poisoned) return m;
        bytes memory x = _floats(p, Layout.SCORES, p.group, p.first, p.last);
        return p.poisoned ? x : _le(F32.exp(F32.sub(_at(x, 0), _at(m, 0))));
    }

    /// @dev The running sum of one dimension inside a chunk, over 16 more positions.
    function _mix(Proof memory p) private view returns (bytes memory) {
        unchecked {
            uint256 from = 16 * p.first;
            uint256 to = Layout.least(16 * p.last, p.c.position + 1);
            uint256 i = p.part / 4;
            uint256 sum;
            if (from % 256 != 0) {
                bytes memory before = _floats(p, Layout.MIX, p.group, p.first - 1, p.first);
                if (p.poisoned) return before;
                sum = _at(before, i);
            }
            bytes memory e = _floats(p, Layout.EXP, p.group, from, to);
            if (p.poisoned) return e;
            bytes memory v = _cached(p, Layout.VALUES, from, to);
            if (p.poisoned) return v;
            for (uint256 j = 0; j < to - from; ++j) {
                sum = F32.add(sum, F32.mul(_at(e, j), F32.fromHalf(_halfAt(v, j * p.c.headWidth + i))));
            }
            return _le(F32.add(sum, 0));
        }
    }

    function _addChunk(Proof memory p) private view returns (bytes memory) {
        unchecked {
            uint256 i = p.part / 4;
            uint256 last = Layout.least(16 * p.last, Layout.values(p.ops[Layout.MIX]));
            bytes memory x = _floats(p, Layout.MIX, p.group, last - 1, last);
            if (p.poisoned || p.first == 0) return _le(_at(x, i));
            bytes memory before = _floats(p, Layout.MIX_CHUNKS, p.group, p.first - 1, p.first);
            return _le(F32.add(_at(before, i), _at(x, i)));
        }
    }

    function _attention(Proof memory p) private view returns (bytes memory) {
        unchecked {
            uint256 last = Layout.values(p.ops[Layout.MIX_CHUNKS]);
            bytes memory x = _floats(p, Layout.MIX_CHUNKS, p.group, last - 1, last);
            if (p.poisoned) return x;
            bytes memory sum = _floats(p, Layout.EXP_SUM, p.group, 0, 1);
            if (p.poisoned) return sum;
            return _le(F32.mul(_at(x, p.part / 4), F32.div(F32.ONE, _at(sum, 0))));
        }
    }

    /// @dev Whether the binary16 values of the first `size` bytes are finite.
    function _finiteHalves(bytes memory data, uint256 size) private pure returns (bool good) {
        assembly ("memory-safe") {
            good := 1
            let mask := 0x007c007c007c007c007c007c007c007c007c007c007c007c007c007c007c007c
            let more := 0x7fff7fff7fff7fff7fff7fff7fff7fff7fff7fff7fff7fff7fff7fff7fff7fff
            let top := 0x8000800080008000800080008000800080008000800080008000800080008000
            let here := add(data, 32)
            for { let end := add(here, size) } lt(here, end) { here := add(here, 32) } {
                let w := mload(here)
                let rest := sub(end, here)
                if lt(rest, 32) { w := shl(sub(256, shl(3, rest)), shr(sub(256, shl(3, rest)), w)) }
                good := and(good, eq(and(add(xor(and(w, mask), mask), more), top), top))
            }
        }
    }

    function _halfAt(bytes memory data, uint256 i) private pure returns (uint256 h) {
        assembly ("memory-safe") {
            h := shr(240, mload(add(add(data, 32), shl(1, i))))
        }
        h = (h >> 8) | ((h & 0xff) << 8);
    }
}
