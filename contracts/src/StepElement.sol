// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {F32} from "./F32.sol";
import {Layout} from "./Layout.sol";
import {StepBase} from "./StepBase.sol";

/// @title Activation and residuals (docs/spec/07-inference.md, rules 7 and 8), flags and traps of every unit (rule 10)
contract StepElement is StepBase {
    function _compute(Proof memory p, uint256 size) internal view override returns (bytes memory) {
        uint256 op = p.op;
        if (op == p.ops.length - 1) return _trap(p);
        if (size == 1) return _flag(p);
        if (p.c.unit == 0 || p.c.unit > p.c.nLayers) revert OtherStep();
        if (op == Layout.ATTN_RESIDUAL) return _residualSum(p);
        if (op == Layout.ACTIVATION) return _activation(p);
        if (op != Layout.RESIDUAL) revert OtherStep();
        bytes memory a = _flat(p, Layout.ATTN_RESIDUAL, p.first, p.last);
        if (p.poisoned) return a;
        bytes memory b = _flat(p, Layout.DOWN, p.first, p.last);
        return p.poisoned ? b : _le(F32.add(_at(a, 0), _at(b, 0)));
    }

    function _residualSum(Proof memory p) private view returns (bytes memory) {
        bytes memory a = _residual(p, p.first, p.last);
        if (p.poisoned) return a;
        bytes memory b = _flat(p, Layout.ATTN_OUTPUT, p.first, p.last);
        return p.poisoned ? b : _le(F32.add(_at(a, 0), _at(b, 0)));
    }

    /// @dev (g / (1 + exp(-g))) · u.
    function _activation(Proof memory p) private view returns (bytes memory) {
        bytes memory g = _flat(p, Layout.GATE, p.first, p.last);
        if (p.poisoned) return g;
        bytes memory u = _flat(p, Layout.UP, p.first, p.last);
        if (p.poisoned) return u;
        uint256 x = _at(g, 0);
        return _le(F32.mul(F32.div(x, F32.add(F32.ONE, F32.exp(x ^ 0x80000000))), _at(u, 0)));
    }

    /// @dev Whether any value of a run of tiles of a checked operation is not finite.
    function _flag(Proof memory p) private view returns (bytes memory) {
        unchecked {
            // The flags come in the order of the operations that they are about.
            uint256 op = p.ops.length - 1;
            while (Layout.element(p.ops[op - 1]) == 1) --op;
            uint256 nth = p.op - op;
            for (op = 0;; ++op) {
                if (Layout.trap(p.ops[op]) == 0 || Layout.groups(p.ops[op]) == 0) continue;
                if (nth-- == 0) break;
            }
            uint256 word = p.ops[op];
            uint256 tile = p.first * Layout.flagged(word);
            uint256 end = Layout.least(tile + Layout.flagged(word), Layout.tiles(word));
            bool bad;
            for (; tile < end; ++tile) {
                uint256 offset = _tile(p, op, tile);
                (uint256 group, uint256 from, uint256 to) = Layout.place(word, tile);
                if (!_finite(_calldata(offset, (to - from) * Layout.valueSize(word, group)))) bad = true;
            }
            return abi.encodePacked(bad);
        }
    }

    function _trap(Proof memory p) private view returns (bytes memory) {
        unchecked {
            uint256 end = p.ops.length - 1;
            uint256 op = end;
            while (op != 0 && Layout.element(p.ops[op - 1]) == 1) --op;
            for (uint256 checked = 0; op < end; ++op) {
                while (Layout.trap(p.ops[checked]) == 0 || Layout.groups(p.ops[checked]) == 0) ++checked;
                bytes memory flags = _raw(p, op, 0, 0, Layout.values(p.ops[op]));
                for (uint256 i = 0; i < flags.length; ++i) {
                    if (flags[i] != 0) return _le(Layout.trap(p.ops[checked]));
                }
                ++checked;
            }
            return _le(0);
        }
    }
}
