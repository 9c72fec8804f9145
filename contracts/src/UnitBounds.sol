// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Architecture, Graph, IModelRegistry, ModelFacts} from "./IModelRegistry.sol";
import {Context} from "./IStep.sol";
import {Layout} from "./Layout.sol";
import {Sha} from "./Sha.sol";

/// The sampling parameters that a run's header hashes; decimals in millionths. `stop` is the canonical JSON of the list.
struct Params {
    bytes32 salt;
    uint64 maxTokens;
    uint64 minP;
    uint64 repeatPenalty;
    bytes stop;
    uint64 temperature;
    uint64 topK;
    uint64 topP;
}

/// @title What a game about a unit begins with: header and unit opened under `stateRoot` (docs/spec/16-chain-disputes.md)
contract UnitBounds {
    /// What does not hold: header, parameters, length, opening.
    error BadHeader();
    error BadParams();
    error BadLength();
    error BadOpening();

    IModelRegistry public immutable models;

    uint256 private constant HEADER = 240;
    bytes20 private constant HEADER_TAG = "AOS/state-header/v2\x00";

    /// @dev Bounds while they are read.
    struct Reader {
        uint256 here;
        uint256 end;
    }

    constructor(IModelRegistry models_) {
        models = models_;
    }

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
        Reader memory r;
        assembly ("memory-safe") {
            mstore(r, bounds.offset)
            mstore(add(r, 32), add(bounds.offset, bounds.length))
        }
        bool trapped = _header(c, r, modelId, params);
        if (trapped) {
            uint256 trapUnit = _u32(_take(r, 4));
            require(trapUnit <= c.nLayers + 1, BadHeader());
            c.trapUnits = trapUnit + 1;
        }
        if (position < c.nPositions && unit < Layout.unitsAt(c, position)) {
            _unit(c, r);
            tiles = Layout.count(Layout.unitOps(c));
        } else if (trapped) {
            // That the run ends before the unit is not the claimant's word: the last position says how many units it has.
            bytes32 root = _word(_take(r, 32));
            _position(c, r, c.nPositions - 1, c.trapUnits, root);
        }
        require(r.here == r.end, BadLength());
    }

    function _model(Context memory c, bytes32 modelId) private view {
        ModelFacts memory facts = models.facts(modelId);
        require(facts.arithmetic == 1, BadHeader());
        c.weightsRoot = facts.weightsRoot;
        c.ropeTable = facts.ropeTable;
        c.kind = uint256(facts.architecture);
        Graph memory graph = facts.graph;
        c.nCtx = graph.nCtx;
        c.nLayers = graph.nLayers;
        c.nVocab = graph.nVocab;
        c.width = graph.width;
        c.ffWidth = graph.ffWidth;
        c.nHeads = graph.nHeads;
        c.nKvHeads = graph.nKvHeads;
        c.headWidth = graph.headWidth;
        c.nRot = graph.nRot;
        c.epsBits = graph.epsBits;
        c.tied = graph.tied ? 1 : 0;
    }

    /// @dev The header is the model's and the parameters', counts a possible run, and is the first leaf.
    function _header(Context memory c, Reader memory r, bytes32 modelId, Params calldata params)
        private
        view
        returns (bool trapped)
    {
        uint256 entry = _take(r, HEADER);
        uint256 finish = _u32(entry + 136);
        trapped = finish == 4;
        require(bytes20(_word(entry)) == HEADER_TAG && _u32(entry + 20) == 1, BadHeader());
        require(_word(entry + 24) == modelId && finish != 0 && finish <= 4, BadHeader());
        require(_word(entry + 88) == paramsHash(params), BadParams());
        uint256 nPrompt = _u32(entry + 128);
        uint256 nOut = _u32(entry + 132);
        uint256 positions = _u32(entry + 236);
        c.seed = uint64(uint256(_word(entry + 120)) >> 192);
        c.tokensRoot = _word(entry + 204);
        c.nPrompt = nPrompt;
        c.nTokens = nPrompt + nOut;
        c.nPositions = positions;
        require(nPrompt != 0 && c.nTokens <= c.nCtx, BadHeader());
        if (trapped) {
            require(positions <= c.nTokens && positions >= (nOut != 0 ? c.nTokens : 1), BadHeader());
        } else {
            require(nOut != 0 ? positions == c.nTokens - 1 : positions == 0 && finish == 3, BadHeader());
        }
        require(_path(r, Sha.leaf("", 0, entry, HEADER), 0, 1 + positions) == c.stateRoot, BadOpening());
        c.temperature = params.temperature;
        c.topK = params.topK;
        c.topP = params.topP;
        c.minP = params.minP;
        c.repeatPenalty = params.repeatPenalty;
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

    /// @dev A position has so many units, with this root over them.
    function _position(Context memory c, Reader memory r, uint256 position, uint256 units, bytes32 root) private view {
        root = Sha.leafOf(
            abi.encodePacked("AOS/state-position/v1", bytes1(0), uint32(position), uint32(units), root)
        );
        require(_path(r, root, 1 + position, 1 + c.nPositions) == c.stateRoot, BadOpening());
    }

    /// H("run-params", salt, canonical JSON). The numbers before and behind `stop` are the text's first and last, whatever
    /// stands between them.
    function paramsHash(Params calldata params) public pure returns (bytes32) {
        return sha256(
            bytes.concat(
                "AOS/run-params/v1\x00",
                params.salt,
                bytes.concat(
                    "{\"max_tokens\":",
                    _decimal(params.maxTokens),
                    ",\"min_p\":",
                    _decimal(params.minP),
                    ",\"repeat_penalty\":",
                    _decimal(params.repeatPenalty)
                ),
                ",\"stop\":",
                params.stop,
                bytes.concat(
                    ",\"temperature\":",
                    _decimal(params.temperature),
                    ",\"top_k\":",
                    _decimal(params.topK),
                    ",\"top_p\":",
                    _decimal(params.topP)
                ),
                "}"
            )
        );
    }

    function _decimal(uint256 value) private pure returns (bytes memory text) {
        unchecked {
            uint256 digits = 1;
            for (uint256 rest = value / 10; rest > 0; rest /= 10) ++digits;
            text = new bytes(digits);
            while (digits > 0) {
                text[--digits] = bytes1(uint8(48 + value % 10));
                value /= 10;
            }
        }
    }

    function _take(Reader memory r, uint256 size) private pure returns (uint256 offset) {
        unchecked {
            offset = r.here;
            require(size <= r.end - offset, BadLength());
            r.here = offset + size;
        }
    }

    function _path(Reader memory r, bytes32 leaf, uint256 index, uint256 size) private view returns (bytes32 root) {
        uint256 used;
        (root, used) = Sha.inclusion(leaf, index, size, r.here);
        _take(r, 32 * used);
    }

    function _word(uint256 offset) private pure returns (bytes32 w) {
        assembly ("memory-safe") {
            w := calldataload(offset)
        }
    }

    function _u32(uint256 offset) private pure returns (uint256) {
        return uint256(_word(offset)) >> 224;
    }
}
