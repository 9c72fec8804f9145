// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Court} from "../src/Court.sol";

/// A challenger whose account is a contract: it calls the court, and reaches for more when it is paid.
contract CourtThief {
    Court private immutable _court;
    uint256 public attempts;

    constructor(Court court) {
        _court = court;
    }

    function act(bytes calldata data) external payable {
        (bool done, bytes memory answer) = address(_court).call{value: msg.value}(data);
        if (!done) {
            assembly ("memory-safe") {
                revert(add(answer, 32), mload(answer))
            }
        }
    }

    receive() external payable {
        ++attempts;
        (bool paid,) = address(_court).call(abi.encodeCall(Court.withdraw, (payable(address(this)))));
        require(!paid, "paid twice");
    }
}
