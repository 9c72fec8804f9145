// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {F32} from "./F32.sol";
import {Layout} from "./Layout.sol";
import {StepBase} from "./StepBase.sol";

/// @title Norms, the sum of exps, activation quantisation (docs/spec/07-inference.md, rules 1, 3 and 6)
contract StepNorm is StepBase {
    uint256 private constant FROM_RESIDUAL = 255;

    function _compute(Proof memory p, uint256) internal view override returns (bytes memory) {
        uint256 op = p.op;
        bool tail = p.c.unit > p.c.nLayers;
        if (p.c.unit == 0 || (tail && (op > Layout.OUTPUT_NORM_QUANTISED || op == p.ops.length - 1))) revert OtherStep();
        uint256 width = p.c.width;
        uint256 head = p.c.headWidth;
        if (op == 0) return _lanes(p, FROM_RESIDUAL, width, true);
        if (op == Layout.ATTN_NORM) {
            return _norm(p, FROM_RESIDUAL, width, tail ? Tensor.OutputNorm : Tensor.AttnNorm);
        }
        if (op == Layout.Q_NORM_LANES) return _lanes(p, Layout.Q, head, true);
        if (op == Layout.Q_NORM) return _norm(p, Layout.Q, head, Tensor.AttnQNorm);
        if (op == Layout.K_NORM_LANES) return _lanes(p, Layout.K, head, true);
        if (op == Layout.K_NORM) return _norm(p, Layout.K, head, Tensor.AttnKNorm);
        if (op == Layout.EXP_LANES) return _lanes(p, Layout.EXP, p.c.position + 1, false);
        if (op == Layout.FFN_NORM_LANES) return _lanes(p, Layout.ATTN_RESIDUAL, width, true);
        if (op == Layout.FFN_NORM) return _norm(p, Layout.ATTN_RESIDUAL, width, Tensor.FfnNorm);
        if (
            op == Layout.ATTN_NORM - 1 || op == Layout.Q_NORM - 1 || op == Layout.K_NORM - 1 || op == Layout.EXP_SUM
                || op == Layout.FFN_NORM - 1
        ) return _sum(p);
        if (
            op == Layout.ATTN_NORM_QUANTISED || op == Layout.ATTENTION_QUANTISED || op == Layout.FFN_NORM_QUANTISED
                || op == Layout.ACTIVATION_QUANTISED
        ) return _quantised(p, op - 1);
        revert OtherStep();
    }

    /// @dev Values `from` … `to` - 1 of the p's group, of the residual or of an operation; groups of `n` values.
    function _source(Proof memory p, uint256 source, uint256 n, uint256 from, uint256 to)
        private
        view
        returns (bytes memory)
    {
        if (source == FROM_RESIDUAL) return _residual(p, from, to);
        return _flat(p, source, p.group * n + from, p.group * n + to);
    }

    /// @dev A lane's running value after 64 more terms.
    function _lanes(Proof memory p, uint256 source, uint256 n, bool squares) private view returns (bytes memory) {
        unchecked {
            uint256 sum;
            uint256 lane = p.part / 4;
            if (p.first != 0) sum = _at(_raw(p, p.op, p.group, p.first - 16, p.first), lane);
            uint256 from = p.first * 64;
            bytes memory terms = _source(p, source, n, from, Layout.least(from + 1024, n));
            if (p.poisoned) return terms;
            for (uint256 i = lane; 4 * i < terms.length; i += 16) {
                uint256 x = _at(terms, i);
                sum = F32.add(sum, squares ? F32.mul(x, x) : x);
            }
            return _le(F32.add(sum, 0));
        }
    }

    /// @dev The halving tree over the last lanes.
    function _sum(Proof memory p) private view returns (bytes memory) {
        unchecked {
            uint256 last = Layout.values(p.ops[p.op - 1]);
            bytes memory data = _raw(p, p.op - 1, p.group, last - 16, last);
            uint256[16] memory lanes;
            for (uint256 i = 0; i < 16; ++i) lanes[i] = _at(data, i);
            for (uint256 h = 8; h > 0; h >>= 1) {
                for (uint256 i = 0; i < h; ++i) lanes[i] = F32.add(lanes[i], lanes[i + h]);
            }
            return _le(lanes[0]);
        }
    }

    function _norm(Proof memory p, uint256 source, uint256 n, Tensor weights) private view returns (bytes memory) {
        bytes memory data = _floats(p, p.op - 1, p.group, 0, 1);
        if (p.poisoned) return data;
        uint256 r = F32.add(F32.div(_at(data, 0), F32.fromInt(int256(n))), p.c.epsBits);
        r = F32.div(F32.ONE, F32.sqrt(r));
        data = _source(p, source, n, p.first, p.last);
        if (p.poisoned) return data;
        return _le(F32.mul(F32.mul(_at(data, 0), r), _vector(p, weights, n, p.first)));
    }

    function _quantised(Proof memory p, uint256 source) private view returns (bytes memory out) {
        unchecked {
            bytes memory x = _flat(p, source, 32 * p.first, 32 * p.last);
            if (p.poisoned) return x;
            uint256 largest;
            for (uint256 i = 0; i < 32; ++i) {
                uint256 a = _at(x, i) & 0x7fffffff;
                if (a > largest) largest = a;
            }
            uint256 scale;
            uint256 q;
            if (largest >= 0x0d800000) { // 2^-100
                scale = F32.div(largest, 0x42fe0000);
                uint256 inverse = F32.div(0x42fe0000, largest);
                for (uint256 i = 0; i < 32; ++i) {
                    q = q << 8 | (uint256(F32.toInt(F32.mul(_at(x, i), inverse))) & 0xff);
                }
            }
            return abi.encodePacked(_le(scale), q);
        }
    }
}
