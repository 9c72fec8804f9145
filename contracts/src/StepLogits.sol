// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {F32} from "./F32.sol";
import {Layout} from "./Layout.sol";
import {StepBase} from "./StepBase.sol";

/// @title Logits, what occurred, the adjusted logits and their largest (docs/spec/07-inference.md, rule 9)
contract StepLogits is StepBase {
    uint256 private constant MILLION = 1_000_000;

    function _compute(Proof memory p, uint256 size) internal view override returns (bytes memory) {
        uint256 op = p.op;
        if (p.c.unit <= p.c.nLayers || op < Layout.LOGITS || op > Layout.LARGEST || op == p.ops.length - 1) {
            revert OtherStep();
        }
        if (op == Layout.LOGITS) return _floats(p, Layout.PRODUCT, 0, p.first, p.last);
        if (op == Layout.SEEN) return _seen(p, size);
        if (op == Layout.ADJUSTED) return _adjusted(p);
        if (op == Layout.LARGEST_CHUNKS) return _largestOfChunk(p);
        return _largest(p);
    }

    function _seen(Proof memory p, uint256 size) private view returns (bytes memory bits) {
        unchecked {
            uint256 low = p.group * 8192;
            uint256 high = Layout.least(low + 8192, p.c.nVocab);
            if (p.first != 0) bits = _raw(p, Layout.SEEN, p.group, p.first - 1, p.first);
            else bits = new bytes(size);
            uint256 end = Layout.least(1024 * p.last, p.c.position + 1);
            for (uint256 here = 1024 * p.first; here < end; here += 64) {
                (uint256 offset,) = _tokenTile(p, here / 64);
                uint256 n = Layout.least(64, end - here);
                for (uint256 i = 0; i < n; ++i) {
                    uint256 id = _number(offset + 4 * i);
                    if (id < low || id >= high) continue;
                    id -= low;
                    bits[id / 8] = bits[id / 8] | bytes1(uint8(1 << (id % 8)));
                }
            }
        }
    }

    function _adjusted(Proof memory p) private view returns (bytes memory data) {
        unchecked {
            data = _floats(p, Layout.LOGITS, 0, p.first, p.last);
            if (p.poisoned) return data;
            uint256 x = _at(data, 0);
            uint256 segments = Layout.values(p.ops[Layout.SEEN]);
            bytes memory bits = _raw(p, Layout.SEEN, p.first / 8192, segments - 1, segments);
            uint256 bit = p.first % 8192;
            if (p.c.repeatPenalty != MILLION && uint8(bits[bit / 8]) >> (bit % 8) & 1 != 0) {
                uint256 factor = _millionths(p.c.repeatPenalty);
                x = F32.lt(0, x) ? F32.div(x, factor) : F32.mul(x, factor);
            }
            if (p.c.temperature != 0) x = F32.div(x, _millionths(p.c.temperature));
            return _le(x);
        }
    }

    function _largestOfChunk(Proof memory p) private view returns (bytes memory data) {
        unchecked {
            uint256 from = 256 * p.first;
            data = _floats(p, Layout.ADJUSTED, 0, from, Layout.least(from + 256, p.c.nVocab));
            if (p.poisoned) return data;
            uint256 best;
            for (uint256 i = 1; 4 * i < data.length; ++i) {
                if (F32.lt(_at(data, best), _at(data, i))) best = i;
            }
            return abi.encodePacked(_le(_at(data, best)), _le(from + best));
        }
    }

    function _largest(Proof memory p) private view returns (bytes memory data) {
        unchecked {
            uint256 chunks = Layout.values(p.ops[Layout.LARGEST_CHUNKS]);
            data = _raw(p, Layout.LARGEST_CHUNKS, 0, 0, chunks);
            uint256 best;
            for (uint256 i = 0; i < chunks; ++i) {
                if (!F32.isFinite(_at(data, 2 * i))) {
                    p.poisoned = true;
                    return data;
                }
                if (F32.lt(_at(data, 2 * best), _at(data, 2 * i))) best = i;
            }
            return abi.encodePacked(_le(_at(data, 2 * best)), _le(_at(data, 2 * best + 1)));
        }
    }

    function _millionths(uint256 n) private pure returns (uint256) {
        return F32.div(F32.fromInt(int256(n)), 0x49742400);
    }
}
