// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// Hyper-parameters of a graph; `epsBits` and `ropeBaseBits` are binary32 bit patterns.
struct Graph {
    uint32 nCtx;
    uint32 nLayers;
    uint32 nVocab;
    uint32 width;
    uint32 ffWidth;
    uint32 nHeads;
    uint32 nKvHeads;
    uint32 headWidth;
    uint32 nRot;
    uint32 epsBits;
    uint32 ropeBaseBits;
    bool tied;
}

/// Kinds of graph, by the manifest's `architecture`.
enum Architecture {
    Llama,
    Qwen2,
    Qwen3
}

/// What of a model a game is judged by.
struct ModelFacts {
    bytes32 weightsRoot;
    bytes32 ropeTable;
    Graph graph;
    Architecture architecture;
    uint32 arithmetic; // never 0 where a model is registered
}

interface IModelRegistry {
    /// Reverts where nobody registered the model.
    function facts(bytes32 modelId) external view returns (ModelFacts memory);
}
