/** Bytes and the hashes over them (docs/spec/01-encoding.md). */
import { sha256 } from "@noble/hashes/sha2.js";
import { refuse } from "./errors.js";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const DIGIT = new Map([...ALPHABET].map((letter, value) => [letter, value]));

export const utf8 = (text) => encoder.encode(text);

/** The text of UTF-8 bytes, a byte order mark kept; throws where they are none. */
export const text = (bytes) => decoder.decode(bytes);

export function concat(...parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

export function unhex(digits) {
  const bytes = new Uint8Array(digits.length / 2);
  for (let i = 0; i < bytes.length; i++) bytes[i] = parseInt(digits.slice(2 * i, 2 * i + 2), 16);
  return bytes;
}

export function sameBytes(a, b) {
  if (a.length !== b.length) return false;
  let difference = 0;
  for (let i = 0; i < a.length; i++) difference |= a[i] ^ b[i];
  return difference === 0;
}

/** The bytes of base64url without padding. Throws `encoding.base64url`. */
export function unbase64(letters) {
  if (!/^[A-Za-z0-9_-]*$/.test(letters) || letters.length % 4 === 1)
    throw refuse("encoding.base64url", "not unpadded base64url");
  const bytes = new Uint8Array(Math.floor((letters.length * 3) / 4));
  let bits = 0;
  let held = 0;
  let at = 0;
  for (const letter of letters) {
    held = (held << 6) | DIGIT.get(letter);
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      bytes[at++] = (held >> bits) & 0xff;
      held &= (1 << bits) - 1;
    }
  }
  if (held !== 0) throw refuse("encoding.base64url", "base64url with trailing bits that are not zero");
  return bytes;
}

/** An unsigned integer of `size` bytes, big-endian. */
export function big(value, size) {
  let rest = BigInt(value);
  const bytes = new Uint8Array(size);
  for (let i = size - 1; i >= 0; i--) {
    bytes[i] = Number(rest & 0xffn);
    rest >>= 8n;
  }
  if (rest !== 0n) throw new RangeError("the integer does not fit");
  return bytes;
}

export const fromBig = (bytes) => (bytes.length ? BigInt("0x" + hex(bytes)) : 0n);
export const fromLittle = (bytes) => fromBig(bytes.slice().reverse());

/** `bytes` behind their length as 8 bytes. */
export const lp = (bytes) => concat(big(bytes.length, 8), bytes);
export const lpText = (value) => lp(utf8(value));
export const tag = (name) => utf8(`AOS/${name}/v1\0`);
export const taggedHash = (name, ...parts) => sha256(concat(tag(name), ...parts));
export const addressBytes = (address) => unhex(address.slice(2));
export const short = (bytes) => hex(bytes).slice(0, 6) + "…";
