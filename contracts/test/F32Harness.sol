// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {F32} from "../src/F32.sol";

/// @title Many operations of F32 at once, for the comparison with the reference arithmetic
contract F32Harness {
    /// @param operands Pairs of big-endian 32-bit patterns. @return results One pattern a pair.
    function batch(uint256 op, bytes calldata operands) external pure returns (bytes memory results) {
        uint256 n = operands.length / 8;
        results = new bytes(4 * n);
        for (uint256 i = 0; i < n; ++i) {
            uint256 a = uint32(bytes4(operands[8 * i:]));
            uint256 b = uint32(bytes4(operands[8 * i + 4:]));
            uint256 r = apply_(op, a, b);
            assembly ("memory-safe") {
                let here := add(add(results, 32), mul(4, i))
                mstore(here, or(shl(224, r), shr(32, shl(32, mload(here)))))
            }
        }
    }

    function apply_(uint256 op, uint256 a, uint256 b) internal pure returns (uint256) {
        if (op == 0) return F32.add(a, b);
        if (op == 1) return F32.sub(a, b);
        if (op == 2) return F32.mul(a, b);
        if (op == 3) return F32.div(a, b);
        if (op == 4) return F32.sqrt(a);
        if (op == 5) return F32.fromHalf(a & 0xffff);
        if (op == 6) return F32.toHalf(a);
        if (op == 7) return uint256(F32.toInt(a)) & 0xffffffff;
        if (op == 8) return F32.fromInt(int256(int32(uint32(a))));
        if (op == 9) return F32.lt(a, b) ? 1 : 0;
        if (op == 10) return F32.exp(a);
        revert("no such operation");
    }
}
