"""An EVM chain: the contracts as they were compiled, a JSON-RPC node, transactions that survive it (docs/chain.md)."""
