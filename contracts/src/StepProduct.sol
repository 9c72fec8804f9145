// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Blocks} from "./Blocks.sol";
import {F32} from "./F32.sol";
import {Layout} from "./Layout.sol";
import {StepBase} from "./StepBase.sol";

/// @title Embedding and products (docs/spec/07-inference.md, rules 2 and 8)
contract StepProduct is StepBase {
    function _compute(Proof memory p, uint256) internal view override returns (bytes memory) {
        uint256 op = p.op;
        if (p.c.unit == 0) {
            if (op != 0) revert OtherStep();
            return _embedding(p);
        }
        if (p.c.unit > p.c.nLayers) {
            if (op == p.ops.length - 1) revert OtherStep();
            if (op == Layout.PRODUCT) return _product(p, 0, false);
            if (op != Layout.LOGIT_CHUNKS) revert OtherStep();
            Tensor table = p.c.tied != 0 ? Tensor.TokenEmbd : Tensor.Output;
            return _chunks(p, Layout.OUTPUT_NORM, Layout.OUTPUT_NORM_QUANTISED, table, p.c.width);
        }
        Tensor tensor = Tensor.AttnQ;
        uint256 source = Layout.ATTN_NORM;
        uint256 columns = p.c.width;
        if (op == Layout.K_CHUNKS || op == Layout.K) {
            tensor = Tensor.AttnK;
        } else if (op == Layout.V_CHUNKS || op == Layout.V) {
            tensor = Tensor.AttnV;
        } else if (op == Layout.OUTPUT_CHUNKS || op == Layout.ATTN_OUTPUT) {
            (tensor, source, columns) = (Tensor.AttnOutput, Layout.ATTENTION, p.c.nHeads * p.c.headWidth);
        } else if (op == Layout.GATE_CHUNKS || op == Layout.GATE) {
            (tensor, source) = (Tensor.FfnGate, Layout.FFN_NORM);
        } else if (op == Layout.UP_CHUNKS || op == Layout.UP) {
            (tensor, source) = (Tensor.FfnUp, Layout.FFN_NORM);
        } else if (op == Layout.DOWN_CHUNKS || op == Layout.DOWN) {
            (tensor, source, columns) = (Tensor.FfnDown, Layout.ACTIVATION, p.c.ffWidth);
        } else if (op != Layout.Q_CHUNKS && op != Layout.Q) {
            revert OtherStep();
        }
        // The chunks of a product are right before its sums; what is quantised is right behind its source.
        if (Layout.tile(p.ops[op]) == 4) return _chunks(p, source, source + 1, tensor, columns);
        bool biased = p.c.kind == 1 && tensor <= Tensor.AttnV;
        return _product(p, biased ? uint256(tensor) + 3 : 0, biased);
    }

    function _embedding(Proof memory p) private view returns (bytes memory) {
        unchecked {
            (uint256 offset,) = _tokenTile(p, p.c.position / 64);
            uint256 token = _number(offset + 4 * (p.c.position % 64));
            uint256 kind;
            (kind, offset) = _weights(p, Tensor.TokenEmbd, p.c.width, p.c.nVocab, token, p.first / 256);
            uint256 i = p.part / 4;
            uint256 value = Blocks.dense(kind) ? Blocks.widened(kind, offset, i) : Blocks.weight(kind, offset, i);
            // A NaN of a dense type has one pattern.
            return _le(F32.isFinite(value) ? value : F32.add(value, 0));
        }
    }

    /// @dev One chunk's sum of one row.
    function _chunks(Proof memory p, uint256 source, uint256 quantised, Tensor tensor, uint256 columns)
        private
        view
        returns (bytes memory)
    {
        unchecked {
            uint256 kind;
            uint256 row;
            {
                uint256 rows = Layout.values(p.ops[p.op + 1]);
                (kind, row) = _weights(p, tensor, columns, rows, 4 * p.group + p.part / 4, p.first);
            }
            uint256 from = 256 * p.first;
            uint256 to = Layout.least(from + 256, columns);
            uint256 sum;
            if (Blocks.dense(kind)) {
                bytes memory x = _flat(p, source, from, to);
                if (p.poisoned) return x;
                to -= from;
                for (uint256 i = 0; i < to; ++i) {
                    sum = F32.add(sum, F32.mul(Blocks.widened(kind, row, i), _at(x, i)));
                }
                return _le(sum);
            }
            bytes memory blocks = _raw(p, quantised, 0, from / 32, to / 32);
            to = (to - from) / 32;
            for (uint256 k = 0; k < to; ++k) {
                uint256 scale = _at(blocks, 9 * k);
                if (!F32.isFinite(scale)) {
                    p.poisoned = true;
                    return blocks;
                }
                uint256 q;
                assembly ("memory-safe") {
                    q := mload(add(add(blocks, 36), mul(36, k)))
                }
                sum = F32.add(sum, Blocks.term(kind, row, k, scale, q));
            }
            return _le(sum);
        }
    }

    /// @dev The chunks of a row in order, and the bias.
    function _product(Proof memory p, uint256 bias, bool biased) private view returns (bytes memory) {
        unchecked {
            uint256 group = p.first / 4;
            uint256 chunks = Layout.values(p.ops[p.op - 1]);
            uint256 wide = Layout.valueSize(p.ops[p.op - 1], group) / 4;
            bytes memory data = _raw(p, p.op - 1, group, 0, chunks);
            uint256 sum;
            for (uint256 i = p.first % 4; i < chunks * wide; i += wide) sum = F32.add(sum, _at(data, i));
            if (biased) {
                sum = F32.add(sum, _vector(p, Tensor(bias), Layout.values(p.ops[p.op]), p.first));
            }
            return _le(sum);
        }
    }
}
