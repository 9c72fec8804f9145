// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Around} from "./Around.sol";
import {IModelRegistry} from "./IModelRegistry.sol";
import {Context} from "./IStep.sol";
import {Layout} from "./Layout.sol";
import {Params} from "./RunHeader.sol";
import {Sha} from "./Sha.sol";

/// @title What the court opens under `stateRoot` (docs/spec/16-chain-disputes.md): units here, `Around` what is around the model
contract UnitBounds is Around {
    constructor(IModelRegistry models_) Around(models_) {}

    /// @param bounds header; its path; u32 unit of the trap (of a run that trapped); u32 op (of a unit that did) or the
    /// roots of the unit's parts; the unit leaf's path in its position; the position's path. Where the run has no such
    /// unit, only the header and its path; of a run that trapped also the trap's unit, the root over the last position's
    /// units, and that position's path.
    /// @return c All that a one-step rule must know, but for `unitRoot`. @return tiles Of the unit's trace, 0 where the
    /// header says that there is no such unit.
    function open(
        bytes32 modelId,
        bytes32 stateRoot,
        uint32 position,
        uint32 unit,
        Params calldata params,
        bytes calldata bounds
    ) external view returns (Context memory c, uint256 tiles) {
        _model(c, modelId);
        c.stateRoot = stateRoot;
        c.position = position;
        c.unit = unit;
        Reader memory r = _reader(bounds);
        bool trapped = _header(c, r, modelId, params);
        if (position < c.nPositions && unit < Layout.unitsAt(c, position)) {
            _unit(c, r);
            tiles = Layout.count(Layout.unitOps(c));
        } else if (trapped) {
            // That the run ends before the unit is not the claimant's word: the last position says how many units it has.
            bytes32 root = _word(_take(r, 32));
            _position(c, r, c.nPositions - 1, c.trapUnits, root);
        }
        _end(r);
    }

    /// @dev The header is the model's and the parameters', and counts a run that may have ended as it says.
    function _header(Context memory c, Reader memory r, bytes32 modelId, Params calldata params)
        private
        view
        returns (bool)
    {
        uint256 entry = _entry(r, c.stateRoot);
        _counted(c, entry, modelId);
        require(_word(entry + PARAMS_HASH) == _runParamsHash(params), BadParams());
        uint256 finish = _u32(entry + FINISH);
        uint256 nOut = c.nTokens - c.nPrompt;
        uint256 limit = Layout.least(params.maxTokens, c.nCtx - c.nPrompt);
        require(finish == STOP ? nOut <= limit : finish == LENGTH ? nOut == limit : nOut < limit, BadHeader());
        c.seed = uint64(uint256(_word(entry + SEED)) >> 192);
        c.temperature = params.temperature;
        c.topK = params.topK;
        c.topP = params.topP;
        c.minP = params.minP;
        c.repeatPenalty = params.repeatPenalty;
        return _trapUnits(c, r, entry);
    }

    function _unit(Context memory c, Reader memory r) private view {
        uint256 units = Layout.unitsAt(c, c.position);
        bytes memory entry;
        if (units == c.unit + 1 && c.trapUnits != 0 && c.position == c.nPositions - 1) {
            c.trapOp = _u32(_take(r, 4));
            require(c.trapOp != 0 && c.trapOp <= 23, BadHeader());
            entry = abi.encodePacked(
                "AOS/state-trap/v1", bytes1(0), uint32(c.position), uint32(c.unit), uint32(c.trapOp)
            );
        } else {
            (,, uint256 parts) = Layout.partOf(c, c.position, c.unit, 0);
            entry = abi.encodePacked("AOS/state-leaf/v2", bytes1(0), uint32(c.position), uint32(c.unit));
            if (parts > 0) c.partRoot0 = _word(_take(r, 32));
            if (parts > 1) c.partRoot1 = _word(_take(r, 32));
            if (parts > 2) c.partRoot2 = _word(_take(r, 32));
            if (parts == 1) entry = abi.encodePacked(entry, c.partRoot0);
            if (parts == 3) entry = abi.encodePacked(entry, c.partRoot0, c.partRoot1, c.partRoot2);
        }
        _position(c, r, c.position, units, _path(r, Sha.leafOf(entry), c.unit, units));
    }
}
