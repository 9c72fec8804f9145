// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {F32} from "./F32.sol";
import {Layout} from "./Layout.sol";
import {StepBase} from "./StepBase.sol";

/// @title The choice of a token (docs/spec/07-inference.md, rule 9; docs/spec/11-trace.md, "Sampler")
contract StepSampler is StepBase {
    uint256 private constant NONE = 0xffffffff;
    uint256 private constant MILLION = 1_000_000;

    function _compute(Proof memory p, uint256) internal view override returns (bytes memory) {
        uint256 op = p.op;
        uint256 end = p.c.temperature == 0 ? Layout.GREEDY_OPS : Layout.SAMPLED_OPS;
        if (p.c.unit <= p.c.nLayers || op < Layout.WEIGHTS || op >= end) revert OtherStep();
        if (p.c.temperature == 0) {
            (, uint256 id) = _readLargest(p);
            return _le(id);
        }
        if (op == Layout.WEIGHTS) return _weight(p);
        if (op == Layout.CUTS) return _cuts(p);
        if (op == Layout.BEFORE_CHUNKS) return _before(p);
        if (op == Layout.BEFORE) return _beforeAll(p);
        if (op == Layout.BEFORE_HOLDS) return _beforeHolds(p);
        if (op == Layout.AFTER_CHUNKS) return _after(p);
        if (op == Layout.AFTER) return _afterAll(p);
        if (op == Layout.AFTER_HOLDS) return _afterHolds(p);
        if (op == Layout.RUNNING) return _running(p);
        if (op == Layout.PICKS) return _picks(p);
        if (op == Layout.RECORD) return _record(p);
        return _token(p);
    }

    function _readLargest(Proof memory p) private view returns (uint256 value, uint256 id) {
        bytes memory data = _raw(p, Layout.LARGEST, 0, 0, 1);
        value = _at(data, 0);
        id = _at(data, 1);
        if (!F32.isFinite(value)) p.poisoned = true;
    }

    function _weight(Proof memory p) private view returns (bytes memory data) {
        (uint256 m,) = _readLargest(p);
        if (p.poisoned) return "";
        data = _floats(p, Layout.ADJUSTED, 0, p.first, p.last);
        if (!p.poisoned) data = _le(F32.exp(F32.sub(_at(data, 0), m)));
    }

    function _cuts(Proof memory p) private view returns (bytes memory) {
        if (p.c.trapOp != 0) {
            p.poisoned = true;
            return "";
        }
        uint256[] memory offsets = new uint256[](1);
        _state(p, p.c.position, p.c.unit, 1, 0, 1, offsets);
        return _calldata(offsets[0] + 8, 8);
    }

    function _readCuts(Proof memory p) private view returns (uint256 before, uint256 after_) {
        bytes memory data = _raw(p, Layout.CUTS, 0, 0, 1);
        before = _at(data, 0);
        after_ = _at(data, 1);
        if (before >= p.c.nVocab || after_ >= p.c.nVocab) p.poisoned = true;
    }

    /// @dev The finite values of a chunk of 256 ids; poisons.
    function _chunk(Proof memory p, uint256 op, uint256 chunk) private view returns (bytes memory) {
        return _floats(p, op, 0, 256 * chunk, Layout.least(256 * chunk + 256, p.c.nVocab));
    }

    /// @dev What a prefix that ends with id `cut` is compared by, the chunk's l' and e; poisons.
    function _readChunk(Proof memory p, uint256 cut)
        private
        view
        returns (int256 value, bytes memory adjusted, bytes memory weights)
    {
        unchecked {
            adjusted = _chunk(p, Layout.ADJUSTED, cut / 256);
            if (p.poisoned) return (0, adjusted, adjusted);
            value = F32.key(_at(adjusted, cut % 256));
            adjusted = _chunk(p, Layout.ADJUSTED, p.first);
            if (p.poisoned) return (0, adjusted, adjusted);
            weights = _chunk(p, Layout.WEIGHTS, p.first);
        }
    }

    function _member(int256 value, uint256 cut, uint256 adjusted, uint256 id) private pure returns (bool) {
        int256 own = F32.key(adjusted);
        return own > value || (own == value && id <= cut);
    }

    function _before(Proof memory p) private view returns (bytes memory) {
        unchecked {
            (uint256 cut,) = _readCuts(p);
            if (p.poisoned) return "";
            (int256 value, bytes memory adjusted, bytes memory weights) = _readChunk(p, cut);
            if (p.poisoned) return "";
            uint256[6] memory r; // members, mass, least, next id, next l', next e
            r[2] = F32.INF;
            r[3] = NONE;
            for (uint256 i = 0; 4 * i < adjusted.length; ++i) {
                uint256 x = _at(adjusted, i);
                uint256 e = _at(weights, i);
                if (_member(value, cut, x, 256 * p.first + i)) {
                    ++r[0];
                    r[1] = F32.add(r[1], e);
                    if (F32.lt(e, r[2])) r[2] = e;
                } else if (r[3] == NONE || F32.lt(r[4], x)) {
                    r[3] = 256 * p.first + i;
                    r[4] = x;
                    r[5] = e;
                }
            }
            return _packed(r);
        }
    }

    function _packed(uint256[6] memory r) private pure returns (bytes memory) {
        return abi.encodePacked(_le(r[0]), _le(r[1]), _le(r[2]), _le(r[3]), _le(r[4]), _le(r[5]));
    }

    /// @dev Poisons where no operation gives prefix `i` of the data.
    function _checkPrefix(Proof memory p, bytes memory data, uint256 i) private pure {
        unchecked {
            i *= 6;
            if (
                _at(data, i) > p.c.nVocab || !F32.isFinite(_at(data, i + 1)) || !F32.isFinite(_at(data, i + 4))
                    || !F32.isFinite(_at(data, i + 5)) || _at(data, i + 2) & 0x7fffffff > F32.INF
            ) p.poisoned = true;
        }
    }

    /// @dev Poisons where no operation gives cut `i` of the data.
    function _checkCut(Proof memory p, bytes memory data, uint256 i) private pure {
        unchecked {
            i *= 3;
            if (_at(data, i) > p.c.nVocab || !F32.isFinite(_at(data, i + 1)) || !F32.isFinite(_at(data, i + 2))) {
                p.poisoned = true;
            }
        }
    }

    /// @dev The largest value and the cuts, where both are possible.
    function _head(Proof memory p) private view returns (uint256 m, uint256 before, uint256 after_) {
        (m,) = _readLargest(p);
        if (!p.poisoned) (before, after_) = _readCuts(p);
    }

    function _beforeAll(Proof memory p) private view returns (bytes memory) {
        unchecked {
            _head(p);
            if (p.poisoned) return "";
            uint256 chunks = Layout.values(p.ops[Layout.BEFORE_CHUNKS]);
            bytes memory data = _raw(p, Layout.BEFORE_CHUNKS, 0, 0, chunks);
            uint256[6] memory r;
            r[2] = _at(data, 2);
            r[3] = NONE;
            for (uint256 i = 0; i < chunks; ++i) {
                _checkPrefix(p, data, i);
                if (p.poisoned) return "";
                r[0] += _at(data, 6 * i);
                r[1] = F32.add(r[1], _at(data, 6 * i + 1));
                if (F32.lt(_at(data, 6 * i + 2), r[2])) r[2] = _at(data, 6 * i + 2);
                if (_at(data, 6 * i + 3) != NONE && (r[3] == NONE || F32.lt(r[4], _at(data, 6 * i + 4)))) {
                    (r[3], r[4], r[5]) = (_at(data, 6 * i + 3), _at(data, 6 * i + 4), _at(data, 6 * i + 5));
                }
            }
            if (r[0] > p.c.nVocab) p.poisoned = true;
            return _packed(r);
        }
    }

    function _beforeHolds(Proof memory p) private view returns (bytes memory) {
        _head(p);
        if (p.poisoned) return "";
        bytes memory data = _raw(p, Layout.BEFORE, 0, 0, 1);
        _checkPrefix(p, data, 0);
        if (p.poisoned) return "";
        uint256 most = p.c.topK == 0 ? p.c.nVocab : Layout.least(p.c.topK, p.c.nVocab);
        uint256 least = _millionths(p.c.minP);
        uint256 members = _at(data, 0);
        bool ends = members == most || (p.c.minP != 0 && F32.lt(_at(data, 5), least));
        bool all = p.c.minP == 0 || !F32.lt(_at(data, 2), least);
        return _le(members != 0 && members <= most && ends && all ? 1 : 0);
    }

    function _after(Proof memory p) private view returns (bytes memory) {
        unchecked {
            (, uint256 cut) = _readCuts(p);
            if (p.poisoned) return "";
            (int256 value, bytes memory adjusted, bytes memory weights) = _readChunk(p, cut);
            if (p.poisoned) return "";
            uint256 members;
            uint256 mass;
            uint256 without;
            for (uint256 i = 0; 4 * i < adjusted.length; ++i) {
                uint256 id = 256 * p.first + i;
                if (!_member(value, cut, _at(adjusted, i), id)) continue;
                ++members;
                mass = F32.add(mass, _at(weights, i));
                if (id != cut) without = F32.add(without, _at(weights, i));
            }
            return abi.encodePacked(_le(members), _le(mass), _le(without));
        }
    }

    function _afterAll(Proof memory p) private view returns (bytes memory) {
        unchecked {
            _head(p);
            if (p.poisoned) return "";
            uint256 chunks = Layout.values(p.ops[Layout.AFTER_CHUNKS]);
            bytes memory data = _raw(p, Layout.AFTER_CHUNKS, 0, 0, chunks);
            uint256 members;
            uint256 mass;
            uint256 without;
            for (uint256 i = 0; i < chunks; ++i) {
                _checkCut(p, data, i);
                if (p.poisoned) return "";
                members += _at(data, 3 * i);
                mass = F32.add(mass, _at(data, 3 * i + 1));
                without = F32.add(without, _at(data, 3 * i + 2));
            }
            if (members > p.c.nVocab) p.poisoned = true;
            return abi.encodePacked(_le(members), _le(mass), _le(without));
        }
    }

    function _afterHolds(Proof memory p) private view returns (bytes memory) {
        (, uint256 one, uint256 other) = _head(p);
        if (p.poisoned) return "";
        bytes memory before = _raw(p, Layout.BEFORE, 0, 0, 1);
        _checkPrefix(p, before, 0);
        if (p.poisoned) return "";
        bytes memory after_ = _raw(p, Layout.AFTER, 0, 0, 1);
        _checkCut(p, after_, 0);
        if (p.poisoned) return "";
        if (p.c.topP == MILLION) return _le(one == other ? 1 : 0);
        uint256 target = F32.mul(_millionths(p.c.topP), _at(before, 1));
        bool holds = _at(after_, 0) <= _at(before, 0) && !F32.lt(_at(after_, 1), target)
            && (_at(after_, 0) == 1 || F32.lt(_at(after_, 2), target));
        return _le(holds ? 1 : 0);
    }

    function _running(Proof memory p) private view returns (bytes memory data) {
        unchecked {
            _head(p);
            if (p.poisoned) return "";
            uint256 sum;
            uint256 start;
            if (p.first != 0) {
                data = _floats(p, Layout.RUNNING, 0, p.first - 1, p.first);
                if (p.poisoned) return "";
                sum = _at(data, 0);
                start = p.first - 1;
            }
            if (p.last > 1) data = _raw(p, Layout.AFTER_CHUNKS, 0, start, p.last - 1);
            else data = "";
            for (uint256 i = 0; 12 * i < data.length; ++i) {
                _checkCut(p, data, i);
                if (p.poisoned) return "";
            }
            uint256 n = p.first + p.part / 4 - start;
            for (uint256 i = 0; i < n; ++i) sum = F32.add(sum, _at(data, 3 * i + 1));
            return _le(F32.add(sum, 0));
        }
    }

    function _picks(Proof memory p) private view returns (bytes memory) {
        unchecked {
            (, uint256 cut) = _readCuts(p);
            if (p.poisoned) return "";
            bytes memory data = _raw(p, Layout.AFTER, 0, 0, 1);
            _checkCut(p, data, 0);
            if (p.poisoned) return "";
            uint256 threshold = F32.mul(F32.mul(F32.fromInt(int256(_draw(p))), 0x33800000), _at(data, 1));
            data = _floats(p, Layout.RUNNING, 0, p.first, p.last);
            if (p.poisoned) return "";
            uint256 before = _at(data, 0);
            (int256 value, bytes memory adjusted, bytes memory weights) = _readChunk(p, cut);
            if (p.poisoned) return "";
            uint256 lowest = NONE;
            uint256 highest = NONE;
            uint256 sum;
            for (uint256 i = 0; 4 * i < adjusted.length; ++i) {
                uint256 id = 256 * p.first + i;
                if (!_member(value, cut, _at(adjusted, i), id)) continue;
                highest = id;
                sum = F32.add(sum, _at(weights, i));
                if (lowest == NONE && _exceeds(F32.add(before, sum), threshold)) lowest = id;
            }
            return abi.encodePacked(_le(lowest), _le(highest));
        }
    }

    function _exceeds(uint256 a, uint256 b) private pure returns (bool) {
        return a & 0x7fffffff <= F32.INF && b & 0x7fffffff <= F32.INF && F32.lt(b, a);
    }

    function _record(Proof memory p) private view returns (bytes memory out) {
        unchecked {
            (uint256 m, uint256 before, uint256 after_) = _head(p);
            if (p.poisoned) return "";
            out = _buffer(p.last - p.first);
            uint256 here;
            if (p.first == 0) {
                _put(out, 0, _draw(p));
                _put(out, 1, m);
                _put(out, 2, before);
                _put(out, 3, after_);
                here = 4;
            }
            uint256 chunks = Layout.values(p.ops[Layout.BEFORE_CHUNKS]);
            uint256 low = p.first == 0 ? 0 : p.first / 4 - 4;
            uint256 high = p.last / 4 - 4;
            if (low < chunks) {
                uint256 end = Layout.least(high, chunks);
                bytes memory data = _raw(p, Layout.BEFORE_CHUNKS, 0, low, end);
                for (uint256 i = 0; i < end - low; ++i) {
                    _checkPrefix(p, data, i);
                    _put(out, here++, _at(data, 6 * i + 1));
                }
                if (p.poisoned) return "";
            }
            if (high > chunks) {
                low = low > chunks ? low - chunks : 0;
                bytes memory data = _raw(p, Layout.AFTER_CHUNKS, 0, low, high - chunks);
                for (uint256 i = 0; i < high - chunks - low; ++i) {
                    _checkCut(p, data, i);
                    _put(out, here++, _at(data, 3 * i + 1));
                }
            }
        }
    }

    function _token(Proof memory p) private view returns (bytes memory) {
        unchecked {
            _head(p);
            if (p.poisoned) return "";
            uint256 chunks = Layout.values(p.ops[Layout.PICKS]);
            bytes memory data = _raw(p, Layout.PICKS, 0, 0, chunks);
            uint256 token = NONE;
            bool any;
            for (uint256 i = 0; i < chunks; ++i) {
                if (_at(data, 2 * i + 1) != NONE) {
                    any = true;
                    break;
                }
            }
            if (!any) {
                p.poisoned = true;
                return "";
            }
            for (uint256 i = 0; i < chunks && token == NONE; ++i) token = _at(data, 2 * i);
            for (uint256 i = chunks; token == NONE; --i) token = _at(data, 2 * i - 1);
            return _le(token);
        }
    }

    // --- numbers

    function _millionths(uint256 n) private pure returns (uint256) {
        return F32.div(F32.fromInt(int256(n)), 0x49742400);
    }

    /// @dev The 24 bits of the tail's output index: Philox4x32-10 (Salmon et al., 2011).
    function _draw(Proof memory p) private pure returns (uint256) {
        unchecked {
            uint256 k0 = p.c.seed & NONE;
            uint256 k1 = p.c.seed >> 32;
            uint256 c0 = p.c.position + 1 - p.c.nPrompt;
            uint256 c1;
            uint256 c2;
            uint256 c3;
            for (uint256 i = 0; i < 10; ++i) {
                uint256 left = 0xd2511f53 * c0;
                uint256 right = 0xcd9e8d57 * c2;
                (c0, c1, c2, c3) = ((right >> 32) ^ c1 ^ k0, right & NONE, (left >> 32) ^ c3 ^ k1, left & NONE);
                k0 = (k0 + 0x9e3779b9) & NONE;
                k1 = (k1 + 0xbb67ae85) & NONE;
            }
            return c0 >> 8;
        }
    }

    function _put(bytes memory data, uint256 i, uint256 w) private pure {
        w = _swapped(w) << 224;
        assembly ("memory-safe") {
            let here := add(add(data, 32), shl(2, i))
            mstore(here, or(w, shr(32, shl(32, mload(here)))))
        }
    }
}
