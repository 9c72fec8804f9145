// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// What the court uses of the registry: stakes held while a game runs, and slashed when it is lost.
/// Every `lock` is followed by exactly one `unlock` or `slash`.
interface IOperatorRegistry {
    /// Holds the operator's stake while a game runs. Reverts where it has none, or its exit is due.
    function lock(address operatorAddress) external;

    /// Ends a game that the operator won.
    function unlock(address operatorAddress) external;

    /// Ends a game that the operator lost: `amount` (at most what it has) leaves its stake, half of it for `challenger` to
    /// withdraw, the rest burnt; the operator loses its range.
    function slash(address operatorAddress, address challenger, uint256 amount, bytes32 game) external;

    function minStake() external view returns (uint256);
}
