// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title SHA-256 over the trees of RFC 9162 and the tagged hashes of docs/spec/01-encoding.md
library Sha {
    /// @return h SHA-256(0x01 ‖ left ‖ right).
    function node(bytes32 left, bytes32 right) internal view returns (bytes32 h) {
        assembly ("memory-safe") {
            let here := mload(64)
            mstore8(here, 1)
            mstore(add(here, 1), left)
            mstore(add(here, 33), right)
            if iszero(staticcall(gas(), 2, here, 65, 0, 32)) { revert(0, 0) }
            h := mload(0)
        }
    }

    /// @return h SHA-256(0x00 ‖ tag ‖ calldata); the tag is left-aligned.
    function leaf(bytes32 tag, uint256 tagSize, uint256 offset, uint256 size) internal view returns (bytes32 h) {
        assembly ("memory-safe") {
            let here := mload(64)
            mstore8(here, 0)
            mstore(add(here, 1), tag)
            calldatacopy(add(add(here, 1), tagSize), offset, size)
            if iszero(staticcall(gas(), 2, here, add(add(size, tagSize), 1), 0, 32)) { revert(0, 0) }
            h := mload(0)
        }
    }

    /// @return h SHA-256(0x00 ‖ entry).
    function leafOf(bytes memory entry) internal pure returns (bytes32 h) {
        return sha256(abi.encodePacked(bytes1(0), entry));
    }

    /// @notice The root that a path leads to from leaf `index` of a tree of `size` leaves; `path` are the hashes of
    /// calldata from `offset` on. @return root The root. @return used The hashes that the path has.
    function inclusion(bytes32 leaf_, uint256 index, uint256 size, uint256 offset)
        internal
        view
        returns (bytes32 root, uint256 used)
    {
        assembly ("memory-safe") {
            root := leaf_
            let here := mload(64)
            mstore8(here, 1)
            let left := add(here, 1)
            let right := add(here, 33)
            let at := offset
            for {} gt(size, 1) {} {
                let odd := and(index, 1)
                if or(odd, lt(add(index, 1), size)) {
                    odd := shl(5, odd)
                    mstore(add(left, odd), root)
                    mstore(sub(right, odd), calldataload(at))
                    at := add(at, 32)
                    if iszero(staticcall(gas(), 2, here, 65, 0, 32)) { revert(0, 0) }
                    root := mload(0)
                }
                index := shr(1, index)
                size := shr(1, add(size, 1))
            }
            used := shr(5, sub(at, offset))
        }
    }

    /// @notice As `inclusion`, for the `count` consecutive leaves from `first` on, which are overwritten.
    function range(bytes32[] memory leaves, uint256 count, uint256 first, uint256 size, uint256 offset)
        internal
        view
        returns (bytes32 root, uint256 used)
    {
        unchecked {
            while (size > 1) {
                uint256 to;
                uint256 i;
                bytes32 sibling;
                if (first & 1 != 0) {
                    assembly ("memory-safe") {
                        sibling := calldataload(add(offset, shl(5, used)))
                    }
                    ++used;
                    leaves[0] = node(sibling, leaves[0]);
                    to = 1;
                    i = 1;
                }
                for (; i + 1 < count; i += 2) leaves[to++] = node(leaves[i], leaves[i + 1]);
                if (i < count) {
                    if (first + count < size) {
                        assembly ("memory-safe") {
                            sibling := calldataload(add(offset, shl(5, used)))
                        }
                        ++used;
                        leaves[to++] = node(leaves[i], sibling);
                    } else {
                        leaves[to++] = leaves[i];
                    }
                }
                count = to;
                first >>= 1;
                size = (size + 1) >> 1;
            }
            root = leaves[0];
        }
    }
}
