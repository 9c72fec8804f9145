// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Graph, IModelRegistry, ModelFacts} from "./IModelRegistry.sol";
import {Context} from "./IStep.sol";
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

/// @title A run's header, opened under `stateRoot` (docs/spec/07-inference.md, "State root")
abstract contract RunHeader {
    /// What does not hold: header, parameters, length, opening.
    error BadHeader();
    error BadParams();
    error BadLength();
    error BadOpening();

    IModelRegistry public immutable models;

    uint256 private constant HEADER = 240;
    bytes20 private constant HEADER_TAG = "AOS/state-header/v2\x00";

    // Where a member of the header stands in its entry.
    uint256 internal constant MODEL_ID = 24;
    uint256 internal constant PROMPT_TOKENS_HASH = 56;
    uint256 internal constant PARAMS_HASH = 88;
    uint256 internal constant SEED = 120;
    uint256 internal constant N_PROMPT = 128;
    uint256 internal constant N_OUT = 132;
    uint256 internal constant FINISH = 136;
    uint256 internal constant TOKENS_HASH = 140;
    uint256 internal constant RESPONSE_HASH = 172;
    uint256 internal constant TOKENS_ROOT = 204;
    uint256 internal constant N_POSITIONS = 236;

    // Why a run ended.
    uint256 internal constant STOP = 1;
    uint256 internal constant LENGTH = 2;
    uint256 internal constant CANCELLED = 3;
    uint256 internal constant TRAPPED = 4;

    /// @dev An opening while it is read.
    struct Reader {
        uint256 here;
        uint256 end;
    }

    constructor(IModelRegistry models_) {
        models = models_;
    }

    function _model(Context memory c, bytes32 modelId) internal view {
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

    /// @dev The entry of the first leaf, whatever its members say. @return entry Its calldata offset.
    function _entry(Reader memory r, bytes32 stateRoot) internal view returns (uint256 entry) {
        entry = _take(r, HEADER);
        require(bytes20(_word(entry)) == HEADER_TAG && _u32(entry + 20) == 1, BadHeader());
        uint256 finish = _u32(entry + FINISH);
        require(finish != 0 && finish <= TRAPPED, BadHeader());
        require(
            _path(r, Sha.leaf("", 0, entry, HEADER), 0, 1 + _u32(entry + N_POSITIONS)) == stateRoot, BadOpening()
        );
    }

    /// @dev The header is the model's and counts a possible run.
    function _counted(Context memory c, uint256 entry, bytes32 modelId) internal pure {
        require(_word(entry + MODEL_ID) == modelId, BadHeader());
        uint256 finish = _u32(entry + FINISH);
        uint256 nOut = _u32(entry + N_OUT);
        uint256 positions = _u32(entry + N_POSITIONS);
        c.nPrompt = _u32(entry + N_PROMPT);
        c.nTokens = c.nPrompt + nOut;
        c.nPositions = positions;
        c.tokensRoot = _word(entry + TOKENS_ROOT);
        require(c.nPrompt != 0 && c.nTokens <= c.nCtx, BadHeader());
        if (finish == TRAPPED) {
            require(positions <= c.nTokens && positions >= (nOut != 0 ? c.nTokens : 1), BadHeader());
        } else {
            require(nOut != 0 ? positions == c.nTokens - 1 : positions == 0 && finish == CANCELLED, BadHeader());
        }
    }

    /// @dev Of a run that trapped, the units of its last position, as its owner says.
    function _trapUnits(Context memory c, Reader memory r, uint256 entry) internal pure returns (bool trapped) {
        trapped = _u32(entry + FINISH) == TRAPPED;
        if (trapped) {
            uint256 unit = _u32(_take(r, 4));
            require(unit <= c.nLayers + 1, BadHeader());
            c.trapUnits = unit + 1;
        }
    }

    /// @dev A position has so many units, with this root over them.
    function _position(Context memory c, Reader memory r, uint256 position, uint256 units, bytes32 root) internal view {
        root = Sha.leafOf(
            abi.encodePacked("AOS/state-position/v1", bytes1(0), uint32(position), uint32(units), root)
        );
        require(_path(r, root, 1 + position, 1 + c.nPositions) == c.stateRoot, BadOpening());
    }

    /// @dev H("run-params", salt, canonical JSON): what a header holds.
    function _runParamsHash(Params calldata params) internal pure returns (bytes32) {
        return sha256(bytes.concat("AOS/run-params/v1\x00", params.salt, _json(params, "")));
    }

    /// @dev Canonical JSON of the parameters; `seed` is the member `seed` with the comma before it, or empty. The numbers
    /// before and behind `stop` are the text's first and last, whatever stands between them.
    function _json(Params calldata params, bytes memory seed) internal pure returns (bytes memory) {
        return bytes.concat(
            bytes.concat(
                "{\"max_tokens\":",
                _decimal(params.maxTokens),
                ",\"min_p\":",
                _decimal(params.minP),
                ",\"repeat_penalty\":",
                _decimal(params.repeatPenalty)
            ),
            seed,
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
        );
    }

    function _decimal(uint256 value) internal pure returns (bytes memory text) {
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

    // --- reading

    function _reader(bytes calldata data) internal pure returns (Reader memory r) {
        assembly ("memory-safe") {
            mstore(r, data.offset)
            mstore(add(r, 32), add(data.offset, data.length))
        }
    }

    function _take(Reader memory r, uint256 size) internal pure returns (uint256 offset) {
        unchecked {
            offset = r.here;
            require(size <= r.end - offset, BadLength());
            r.here = offset + size;
        }
    }

    function _end(Reader memory r) internal pure {
        require(r.here == r.end, BadLength());
    }

    function _path(Reader memory r, bytes32 leaf, uint256 index, uint256 size) internal view returns (bytes32 root) {
        uint256 used;
        (root, used) = Sha.inclusion(leaf, index, size, r.here);
        _take(r, 32 * used);
    }

    function _word(uint256 offset) internal pure returns (bytes32 w) {
        assembly ("memory-safe") {
            w := calldataload(offset)
        }
    }

    function _u32(uint256 offset) internal pure returns (uint256) {
        return uint256(_word(offset)) >> 224;
    }
}
