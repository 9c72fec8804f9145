// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {OperatorRegistry} from "../src/OperatorRegistry.sol";

/// An operator or challenger whose account is a contract: it refuses money, or takes it and reaches for more.
contract Payee {
    OperatorRegistry private immutable _registry;
    bool public refuses;
    bool public reenters;
    uint256 public attempts;

    constructor(OperatorRegistry registry) {
        _registry = registry;
    }

    function behave(bool refuses_, bool reenters_) external {
        (refuses, reenters) = (refuses_, reenters_);
    }

    /// Calls the registry in this account's name.
    function act(bytes calldata data) external payable {
        (bool done, bytes memory answer) = address(_registry).call{value: msg.value}(data);
        if (!done) {
            assembly ("memory-safe") {
                revert(add(answer, 32), mload(answer))
            }
        }
    }

    receive() external payable {
        require(!refuses, "refused");
        if (!reenters) return;
        ++attempts;
        (bool withdrawn,) = address(_registry).call(abi.encodeCall(OperatorRegistry.withdraw, (payable(address(this)))));
        (bool left,) = address(_registry).call(abi.encodeCall(OperatorRegistry.exit, ()));
        require(!withdrawn && !left, "paid twice");
    }
}

/// Stands where the court will: forwards what the test says.
contract CourtDouble {
    function act(OperatorRegistry registry, bytes calldata data) external {
        (bool done, bytes memory answer) = address(registry).call(data);
        if (!done) {
            assembly ("memory-safe") {
                revert(add(answer, 32), mload(answer))
            }
        }
    }
}
