// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Architecture, Graph, IModelRegistry, ModelFacts} from "./IModelRegistry.sol";

/// Models by their `model_id`, which is computed here from the whole manifest (docs/spec/07-inference.md, "Models"): no
/// entry can say anything but what its id stands for, so anybody may make one and nobody can change one.
contract ModelRegistry is IModelRegistry {
    /// A manifest. `chatTemplate` 0 stands for none. Only models that the canonical arithmetic covers have one here.
    struct Manifest {
        bytes32 fileSha256;
        uint64 fileSize;
        bytes32 weightsRoot;
        bytes32 tokenizer;
        bytes32 chatTemplate;
        bytes32 ropeTable;
        Graph graph;
        Architecture architecture;
        uint32 arithmetic;
    }

    error UnknownModel(bytes32 modelId);
    error BadManifest();

    /// `uri` is a hint where the file may be; anybody can write one, the file is checked by its hash.
    event ModelRegistered(bytes32 indexed modelId, bytes32 indexed weightsRoot, address indexed by, string uri);

    bytes private constant ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    mapping(bytes32 modelId => ModelFacts) private _facts;

    function register(Manifest calldata manifest, string calldata uri) external returns (bytes32 modelId) {
        modelId = idOf(manifest);
        ModelFacts storage known = _facts[modelId];
        if (known.arithmetic == 0) {
            known.weightsRoot = manifest.weightsRoot;
            known.ropeTable = manifest.ropeTable;
            known.graph = manifest.graph;
            known.architecture = manifest.architecture;
            known.arithmetic = manifest.arithmetic;
        }
        emit ModelRegistered(modelId, manifest.weightsRoot, msg.sender, uri);
    }

    /// @inheritdoc IModelRegistry
    function facts(bytes32 modelId) external view returns (ModelFacts memory found) {
        found = _facts[modelId];
        require(found.arithmetic != 0, UnknownModel(modelId));
    }

    /// SHA-256("AOS/model/v1\0" || canonical JSON of the manifest).
    function idOf(Manifest calldata manifest) public pure returns (bytes32) {
        require(manifest.arithmetic != 0 && manifest.ropeTable != 0, BadManifest());
        require(manifest.weightsRoot != 0 && manifest.fileSize < 1 << 53, BadManifest());
        return sha256(
            bytes.concat(
                bytes.concat(
                    "AOS/model/v1\x00{\"architecture\":\"",
                    _name(manifest.architecture),
                    "\",\"arithmetic\":",
                    _decimal(manifest.arithmetic),
                    ",\"chat_template\":",
                    manifest.chatTemplate == 0 ? bytes("\"\"") : _text(manifest.chatTemplate),
                    ",\"file_sha256\":",
                    _text(manifest.fileSha256),
                    ",\"file_size\":",
                    _decimal(manifest.fileSize)
                ),
                _graph(manifest.graph),
                ",\"rope_table\":",
                _text(manifest.ropeTable),
                ",\"tokenizer\":",
                _text(manifest.tokenizer),
                ",\"type\":\"aos.model\",\"v\":2,\"weights_root\":",
                _text(manifest.weightsRoot),
                "}"
            )
        );
    }

    function _graph(Graph calldata graph) private pure returns (bytes memory) {
        return bytes.concat(
            bytes.concat(
                ",\"graph\":{\"eps_bits\":",
                _decimal(graph.epsBits),
                ",\"ff_width\":",
                _decimal(graph.ffWidth),
                ",\"head_width\":",
                _decimal(graph.headWidth),
                ",\"n_ctx\":",
                _decimal(graph.nCtx),
                ",\"n_heads\":",
                _decimal(graph.nHeads),
                ",\"n_kv_heads\":",
                _decimal(graph.nKvHeads)
            ),
            bytes.concat(
                ",\"n_layers\":",
                _decimal(graph.nLayers),
                ",\"n_rot\":",
                _decimal(graph.nRot),
                ",\"n_vocab\":",
                _decimal(graph.nVocab),
                ",\"rope_base_bits\":",
                _decimal(graph.ropeBaseBits),
                graph.tied ? bytes(",\"tied\":true,\"width\":") : bytes(",\"tied\":false,\"width\":"),
                _decimal(graph.width),
                "}"
            )
        );
    }

    function _name(Architecture architecture) private pure returns (bytes memory) {
        if (architecture == Architecture.Llama) return "llama";
        return architecture == Architecture.Qwen2 ? bytes("qwen2") : bytes("qwen3");
    }

    function _decimal(uint256 value) private pure returns (bytes memory text) {
        uint256 digits = 1;
        for (uint256 rest = value / 10; rest > 0; rest /= 10) ++digits;
        text = new bytes(digits);
        while (digits > 0) {
            text[--digits] = bytes1(uint8(48 + value % 10));
            value /= 10;
        }
    }

    /// The quoted base64url text of 32 bytes, without padding.
    function _text(bytes32 value) private pure returns (bytes memory text) {
        bytes memory alphabet = ALPHABET;
        text = new bytes(45);
        text[0] = "\"";
        for (uint256 i = 0; i < 42; ++i) {
            text[i + 1] = alphabet[(uint256(value) >> (250 - 6 * i)) & 63];
        }
        text[43] = alphabet[(uint256(value) & 15) << 2];
        text[44] = "\"";
    }
}
