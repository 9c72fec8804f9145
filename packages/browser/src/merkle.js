/** Merkle trees of RFC 9162 over leaf hashes, refused with the codes of `aos.core.merkle`. */
import { sha256 } from "@noble/hashes/sha2.js";
import { concat, sameBytes } from "./bytes.js";
import { refuse } from "./errors.js";

const MAX_TREE_SIZE = 2n ** 53n - 1n;

export const leafHash = (entry) => sha256(concat(Uint8Array.of(0), entry));
const nodeHash = (left, right) => sha256(concat(Uint8Array.of(1), left, right));

/** Root of the leaves; SHA-256 of nothing where there are none. An odd last node moves up. */
export function treeRoot(leaves) {
  if (!leaves.length) return sha256(new Uint8Array());
  let level = leaves;
  while (level.length > 1) {
    const above = [];
    for (let i = 0; i < level.length; i += 2)
      above.push(i + 1 < level.length ? nodeHash(level[i], level[i + 1]) : level[i]);
    level = above;
  }
  return level[0];
}

/** The root that `path` leads to from leaf `index` of `size` (2.1.3.2); `size` is a BigInt. Throws `merkle.*`. */
export function inclusionRoot(leaf, index, size, path) {
  if (size < 1n || size > MAX_TREE_SIZE) throw refuse("merkle.tree_size", "tree_size must be 1 to 2^53-1");
  if (BigInt(index) >= size) throw refuse("merkle.index_out_of_range", "leaf index is beyond the tree");
  let fn = BigInt(index);
  let sn = size - 1n;
  let node = leaf;
  for (const sibling of path) {
    if (sn === 0n) throw refuse("merkle.path_length", "inclusion path is too long");
    if (fn & 1n || fn === sn) {
      node = nodeHash(sibling, node);
      while (!(fn & 1n) && fn) {
        fn >>= 1n;
        sn >>= 1n;
      }
    } else node = nodeHash(node, sibling);
    fn >>= 1n;
    sn >>= 1n;
  }
  if (sn !== 0n) throw refuse("merkle.path_length", "inclusion path is too short");
  return node;
}

/** Leaf `index` is in the tree under `root`. Throws `merkle.*`. */
export function verifyInclusion(leaf, index, size, path, root) {
  if (!sameBytes(inclusionRoot(leaf, index, size, path), root))
    throw refuse("merkle.root_mismatch", "inclusion path does not lead to the root");
}
