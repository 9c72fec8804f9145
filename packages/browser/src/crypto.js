/**
 * Signatures and VRF proofs (docs/spec/02-signing.md, 03-vrf.md). Curves and hashes are @noble's; the rules around
 * them are those of the Python verifier, libsodium's and libsecp256k1's included.
 */
import { mulAddUnsafe } from "@noble/curves/abstract/curve.js";
import { ed25519 } from "@noble/curves/ed25519.js";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { sha512 } from "@noble/hashes/sha2.js";
import { keccak_256 } from "@noble/hashes/sha3.js";
import { concat, fromBig, fromLittle, hex, sameBytes, utf8 } from "./bytes.js";
import { AosError, refuse } from "./errors.js";
import { canonical } from "./json.js";

const Point = ed25519.Point;
const L = 2n ** 252n + 27742317777372353535851937790883648493n;
const P = 2n ** 255n - 19n;
const SECP256K1_ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
const STATEMENT_PREFIX = utf8("AOS/statement/v1\n");
const SUITE = Uint8Array.of(3);
const ZERO = Uint8Array.of(0);
const MOST_REMEMBERED = 4096;

/** Several checks ask the same of the same bytes, and a curve is slow: an answer is kept by all that it depends on. */
export function remembered(compute) {
  const known = new Map();
  return (...parts) => {
    const key = parts.map(hex).join(".");
    if (!known.has(key)) {
      if (known.size >= MOST_REMEMBERED) known.clear();
      let found;
      try {
        const value = compute(...parts);
        found = () => value;
      } catch (error) {
        if (!(error instanceof AosError)) throw error;
        found = () => {
          throw refuse(error.code, error.message);
        };
      }
      known.set(key, found);
    }
    return known.get(key)();
  };
}

// --- secp256k1, EIP-191

const recover = remembered((digest, signature) => {
  if (signature[64] !== 27 && signature[64] !== 28)
    throw refuse("signature.recovery_id", "the last byte must be 27 or 28");
  const r = fromBig(signature.subarray(0, 32));
  const s = fromBig(signature.subarray(32, 64));
  if (!(r > 0n && r < SECP256K1_ORDER && s > 0n && s < SECP256K1_ORDER))
    throw refuse("signature.scalar_range", "r or s is out of range");
  if (s > SECP256K1_ORDER / 2n) throw refuse("signature.high_s", "s is in the upper half of its range");
  let key;
  try {
    key = new secp256k1.Signature(r, s).addRecoveryBit(signature[64] - 27).recoverPublicKey(digest);
  } catch {
    throw refuse("signature.invalid", "no key can have signed this");
  }
  return "0x" + hex(keccak_256(key.toBytes(false).subarray(1)).subarray(12));
});

/** The key of `address` signed this statement. Throws `signature.*`. */
export function checkSigned(statement, signature, address) {
  const message = concat(STATEMENT_PREFIX, canonical(statement.raw));
  const digest = keccak_256(concat(utf8(`\x19Ethereum Signed Message:\n${message.length}`), message));
  if (recover(digest, signature) !== address)
    throw refuse("signature.wrong_signer", `the signature is not that of ${address}`);
}

// --- Ed25519 as libsodium verifies it: no cofactor, no small-order key or nonce

export const ed25519Verify = remembered((publicKey, message, signature) => {
  const scalar = fromLittle(signature.subarray(32));
  if (scalar >= L) return false;
  let key, nonce;
  try {
    key = Point.fromBytes(publicKey, false);
    nonce = Point.fromBytes(signature.subarray(0, 32), false);
  } catch {
    return false;
  }
  if (key.isSmallOrder() || nonce.isSmallOrder()) return false;
  const challenge = fromLittle(sha512(concat(signature.subarray(0, 32), publicKey, message))) % L;
  const expected = combined(Point.BASE, scalar, key, challenge);
  return sameBytes(expected.toBytes(), signature.subarray(0, 32));
});

/** a·A - b·B. Not in constant time: nothing here is secret. */
const combined = (A, a, B, b) => mulAddUnsafe(Point, [A, B.negate()], [a, b]);

// --- ECVRF-EDWARDS25519-SHA512-TAI (RFC 9381), keys and Gamma in the prime-order subgroup

function canonicalPoint(encoded) {
  const number = fromLittle(encoded);
  const y = number & (2n ** 255n - 1n);
  return y < P && !(number >> 255n && (y === 1n || y === P - 1n));
}

const subgroupPoint = remembered((encoded) => {
  if (!canonicalPoint(encoded)) return null;
  try {
    const point = Point.fromBytes(encoded, false);
    return !point.is0() && point.isTorsionFree() ? point : null;
  } catch {
    return null;
  }
});

/** A canonical point of the prime-order subgroup, not the identity. */
export const validKey = (encoded) => subgroupPoint(encoded) !== null;

function encodeToCurve(salt, alpha) {
  for (let counter = 0; counter < 256; counter++) {
    const candidate = sha512(concat(SUITE, Uint8Array.of(1), salt, alpha, Uint8Array.of(counter), ZERO)).subarray(0, 32);
    if (!canonicalPoint(candidate)) continue;
    let point;
    try {
      point = Point.fromBytes(candidate, false).clearCofactor();
    } catch {
      continue; // not on the curve
    }
    if (!point.is0()) return point;
  }
  throw refuse("vrf.proof_invalid", "no point found for this input");
}

/** beta_string (64 bytes) of a proof that holds. Throws `vrf.*`. */
export const vrfVerify = remembered((publicKey, pi, alpha) => {
  const key = publicKey.length === 32 ? subgroupPoint(publicKey) : null;
  if (key === null) throw refuse("vrf.key_invalid", "the VRF key is no point of the prime-order subgroup");
  if (pi.length !== 80) throw refuse("vrf.proof_length", "a VRF proof has 80 bytes");
  const gamma = subgroupPoint(pi.subarray(0, 32));
  if (gamma === null) throw refuse("vrf.point_invalid", "Gamma is no point of the prime-order subgroup");
  const c = fromLittle(pi.subarray(32, 48));
  const s = fromLittle(pi.subarray(48));
  if (s >= L) throw refuse("vrf.scalar_range", "s is not below the group's order");
  const h = encodeToCurve(publicKey, alpha);
  const u = combined(Point.BASE, s, key, c);
  const v = combined(h, s, gamma, c);
  const points = [key, h, gamma, u, v].map((point) => point.toBytes());
  const challenge = sha512(concat(SUITE, Uint8Array.of(2), ...points, ZERO)).subarray(0, 16);
  if (!sameBytes(challenge, pi.subarray(32, 48)))
    throw refuse("vrf.proof_invalid", "the VRF proof does not fit key and input");
  return sha512(concat(SUITE, Uint8Array.of(3), gamma.clearCofactor().toBytes(), ZERO));
});
