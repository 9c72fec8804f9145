// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice What a one-step rule knows before it sees a proof. Model, run, place, and what the claimant signed.
/// @param partRoot0 Root of the unit's first part as `stateRoot` commits it, then those of the others; zero where it
/// trapped.
/// @param kind 0 llama, 1 qwen2, 2 qwen3.
/// @param nTokens Prompt and output.
/// @param trapUnits Units of the last position of a run that trapped, 0 of another.
/// @param temperature In millionths, as topP, minP and repeatPenalty.
/// @param trapOp The op that the unit's trap leaf names, 0 where it has values.
struct Context {
    bytes32 stateRoot;
    bytes32 unitRoot;
    bytes32 weightsRoot;
    bytes32 ropeTable;
    bytes32 tokensRoot;
    bytes32 partRoot0;
    bytes32 partRoot1;
    bytes32 partRoot2;
    uint256 kind;
    uint256 nCtx;
    uint256 nLayers;
    uint256 nVocab;
    uint256 width;
    uint256 ffWidth;
    uint256 nHeads;
    uint256 nKvHeads;
    uint256 headWidth;
    uint256 nRot;
    uint256 epsBits;
    uint256 tied;
    uint256 nPrompt;
    uint256 nTokens;
    uint256 nPositions;
    uint256 trapUnits;
    uint256 seed;
    uint256 temperature;
    uint256 topK;
    uint256 topP;
    uint256 minP;
    uint256 repeatPenalty;
    uint256 position;
    uint256 unit;
    uint256 trapOp;
}

/// @title The one-step rules of some operations
interface IStep {
    /// @notice The proof does not hold; codes are those of docs/spec/16-chain-disputes.md.
    error Fault(uint256 code);
    /// @notice Another contract has the rule of this operation.
    error OtherStep();
    error NoSuchElement();

    /// @notice Judge a proof of one element of a tile. Reverts with `Fault` where it does not hold.
    /// @param index The tile. @param element The element that is asked for. @param shown The one that is proven.
    /// @return holds True.
    function check(Context calldata context, uint256 index, uint256 element, uint256 shown, bytes calldata proof)
        external
        view
        returns (bool holds);
}
