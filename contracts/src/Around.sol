// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IModelRegistry} from "./IModelRegistry.sol";
import {Context} from "./IStep.sol";
import {Params, RunHeader} from "./RunHeader.sol";
import {Sha} from "./Sha.sol";

/// @title What can be wrong around the model (docs/spec/16-chain-disputes.md, "Tokens, receipt and parameters")
/// @notice Each function answers whether what the opening shows is right, and reverts where the opening itself does not
/// hold.
abstract contract Around is RunHeader {
    /// The bytes are not those that a hash is of; the receipt has no such member there.
    error NotTheBytes();
    error NoSuchMember();

    uint256 private constant TOKENS_A_TILE = 64;
    bytes32 private constant DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef";
    bytes32 private constant MORE_DIGITS = "ghijklmnopqrstuvwxyz0123456789-_";

    constructor(IModelRegistry models_) RunHeader(models_) {}

    /// @notice Whether the token behind a position is the one that the tail there chose.
    /// @param proof header; its path; u32 unit of the trap (of a run that trapped); where the tail chose a token: it, the roots
    /// of the tail's other parts, the tail's path in its position, the position's path; the tile of tokens with
    /// `position` + 1, its path.
    /// @return True, too, where the run has no tail at the position that chose a token.
    function tokenIsChosen(bytes32 modelId, bytes32 stateRoot, uint32 position, bytes calldata proof)
        external
        view
        returns (bool)
    {
        Context memory c;
        _model(c, modelId);
        c.stateRoot = stateRoot;
        Reader memory r = _reader(proof);
        uint256 entry = _entry(r, stateRoot);
        _counted(c, entry, modelId);
        _trapUnits(c, r, entry);
        uint256 index = uint256(position) + 1;
        // Of a run that trapped no tail of the last position chose one, and it has no token behind that position.
        if (index < c.nPrompt || index >= c.nTokens) {
            _end(r);
            return true;
        }
        uint256 chosen = _u32(r.here);
        bytes32 root = Sha.leaf("", 0, _take(r, 4), 4);
        uint256 others = _take(r, 64);
        uint256 units = c.nLayers + 2;
        root = Sha.leafOf(
            abi.encodePacked(
                "AOS/state-leaf/v2", bytes1(0), position, uint32(units - 1), _word(others), _word(others + 32), root
            )
        );
        _position(c, r, position, units, _path(r, root, units - 1, units));
        uint256 tile = index / TOKENS_A_TILE;
        uint256 size = 4 * _ids(c.nTokens, tile);
        uint256 ids = _take(r, size);
        root = _path(r, Sha.leaf("", 0, ids, size), tile, (c.nTokens + TOKENS_A_TILE - 1) / TOKENS_A_TILE);
        require(root == c.tokensRoot, BadOpening());
        _end(r);
        return _u32(ids + 4 * (index % TOKENS_A_TILE)) == chosen;
    }

    /// @notice Whether `tokensRoot` is the root of the tokens that the header hashes.
    /// @param header The header and its path. @param nonce The request's, with which tokens are hashed.
    /// @param nPrompt How many of the ids are the prompt's. @param ids All of the run's, four bytes each.
    function tokensAreHashed(
        bytes32 stateRoot,
        bytes calldata header,
        bytes32 nonce,
        uint256 nPrompt,
        bytes calldata ids
    ) external view returns (bool) {
        uint256 entry = _opened(stateRoot, header);
        require(ids.length % 4 == 0 && nPrompt <= ids.length / 4, NotTheBytes());
        require(
            sha256(bytes.concat("AOS/prompt-tokens/v1\x00", nonce, ids[:4 * nPrompt]))
                == _word(entry + PROMPT_TOKENS_HASH)
                && sha256(bytes.concat("AOS/tokens/v1\x00", nonce, ids[4 * nPrompt:])) == _word(entry + TOKENS_HASH),
            NotTheBytes()
        );
        uint256 count = ids.length / 4;
        if (_u32(entry + N_PROMPT) != nPrompt || _u32(entry + N_OUT) != count - nPrompt || count == 0) return false;
        uint256 offset;
        assembly ("memory-safe") {
            offset := ids.offset
        }
        bytes32[] memory leaves = new bytes32[]((count + TOKENS_A_TILE - 1) / TOKENS_A_TILE);
        for (uint256 tile = 0; tile < leaves.length; ++tile) {
            leaves[tile] = Sha.leaf("", 0, offset + 4 * TOKENS_A_TILE * tile, 4 * _ids(count, tile));
        }
        (bytes32 root,) = Sha.range(leaves, leaves.length, 0, leaves.length, 0);
        return root == _word(entry + TOKENS_ROOT);
    }

    /// @notice Whether the receipt states of the run what the header says.
    /// @param header The header and its path. @param receipt Its hash. @param core The receipt's canonical JSON.
    /// @param member 0 model_id, 1 prompt_tokens_hash, 2 tokens_hash, 3 response_hash, 4 state_root, 5 n_prompt, 6 n_out,
    /// 7 sampling_seed, 8 finish_reason. @param begin The byte of `core` at which it begins, with the comma before it.
    function receiptStates(
        bytes32 stateRoot,
        bytes calldata header,
        bytes32 receipt,
        bytes calldata core,
        uint256 member,
        uint256 begin
    ) external view returns (bool) {
        uint256 entry = _opened(stateRoot, header);
        (bytes memory name, bytes memory value) = _member(entry, stateRoot, member);
        return _states(receipt, core, begin, name, value);
    }

    /// @notice Whether the run was computed with the parameters that its receipt hashes. They are shown.
    /// @param header The header and its path. @param receipt Its hash. @param core The receipt's canonical JSON.
    /// @param begin The byte of `core` at which `params_hash` begins, with the comma before it.
    /// @param drawn Whether the request left the seed to the draw. @param seed The request's, else.
    function paramsAreAsked(
        bytes32 stateRoot,
        bytes calldata header,
        bytes32 receipt,
        bytes calldata core,
        uint256 begin,
        Params calldata params,
        bool drawn,
        uint64 seed
    ) external view returns (bool) {
        uint256 entry = _opened(stateRoot, header);
        bytes memory json =
            _json(params, drawn ? bytes(",\"seed\":null") : bytes.concat(",\"seed\":\"", _decimal(seed), "\""));
        bytes32 hash = sha256(bytes.concat("AOS/params/v1\x00", params.salt, json));
        require(_states(receipt, core, begin, "params_hash", _base64(hash)), NotTheBytes());
        return _runParamsHash(params) == _word(entry + PARAMS_HASH);
    }

    /// @dev The header, opened alone. @return entry Its calldata offset.
    function _opened(bytes32 stateRoot, bytes calldata header) private view returns (uint256 entry) {
        Reader memory r = _reader(header);
        entry = _entry(r, stateRoot);
        _end(r);
    }

    /// @dev Whether a member of a receipt has this value.
    function _states(
        bytes32 receipt,
        bytes calldata core,
        uint256 begin,
        bytes memory name,
        bytes memory value
    ) private pure returns (bool) {
        require(sha256(bytes.concat("AOS/statement/v1\x00", core)) == receipt, NotTheBytes());
        // No text of canonical JSON has these bytes within it, and no object in a receipt has such a member.
        name = bytes.concat(",\"", name, "\":");
        require(begin <= core.length && core.length - begin >= name.length, NoSuchMember());
        core = core[begin:];
        require(keccak256(core[:name.length]) == keccak256(name), NoSuchMember());
        core = core[name.length:];
        value = bytes.concat(value, ",");
        return core.length >= value.length && keccak256(core[:value.length]) == keccak256(value);
    }

    /// @dev A member of the header by its name in a receipt, as its JSON.
    function _member(uint256 entry, bytes32 stateRoot, uint256 member)
        private
        pure
        returns (bytes memory name, bytes memory value)
    {
        if (member == 0) return ("model_id", _base64(_word(entry + MODEL_ID)));
        if (member == 1) return ("prompt_tokens_hash", _base64(_word(entry + PROMPT_TOKENS_HASH)));
        if (member == 2) return ("tokens_hash", _base64(_word(entry + TOKENS_HASH)));
        if (member == 3) return ("response_hash", _base64(_word(entry + RESPONSE_HASH)));
        if (member == 4) return ("state_root", _base64(stateRoot));
        if (member == 5) return ("n_prompt", _decimal(_u32(entry + N_PROMPT)));
        if (member == 6) return ("n_out", _decimal(_u32(entry + N_OUT)));
        if (member == 7) {
            return ("sampling_seed", bytes.concat("\"", _decimal(uint256(_word(entry + SEED)) >> 192), "\""));
        }
        require(member == 8, NoSuchMember());
        uint256 finish = _u32(entry + FINISH);
        name = "finish_reason";
        if (finish == STOP) value = "\"stop\"";
        else if (finish == LENGTH) value = "\"length\"";
        else if (finish == CANCELLED) value = "\"cancelled\"";
        else value = "\"numeric_trap\"";
    }

    /// @dev 32 bytes as base64url between quotes: 43 digits of six bits, the last of two more that are 0.
    function _base64(bytes32 data) private pure returns (bytes memory text) {
        unchecked {
            text = new bytes(45);
            text[0] = "\"";
            text[44] = "\"";
            for (uint256 i = 0; i < 43; ++i) {
                uint256 digit = (i < 42 ? uint256(data) >> (250 - 6 * i) : uint256(data) << 2) & 63;
                text[i + 1] = digit < 32 ? DIGITS[digit] : MORE_DIGITS[digit - 32];
            }
        }
    }

    /// @dev The ids in a tile of so many.
    function _ids(uint256 count, uint256 tile) private pure returns (uint256 n) {
        n = count - TOKENS_A_TILE * tile;
        if (n > TOKENS_A_TILE) n = TOKENS_A_TILE;
    }
}
