/** The part of CBOR that attestation documents use, read strictly, as `aos.core.attest.cbor` reads it. */
import { fromBig, text } from "./bytes.js";
import { refuse } from "./errors.js";

const MAX_DEPTH = 4;
const MAX_ITEMS = 256;
const SIMPLE = new Map([
  [20, false],
  [21, true],
  [22, null],
]);

/** The one item in `data`: numbers, text, Uint8Array, arrays, Map, booleans, null. Throws `cbor.*`. */
export function decodeCbor(data, indefiniteMaps = false) {
  const reader = new Reader(data, indefiniteMaps);
  const value = reader.item(0);
  if (reader.at !== data.length) throw refuse("cbor.trailing", "bytes follow the CBOR item");
  return value;
}

class Reader {
  constructor(data, indefiniteMaps) {
    this.data = data;
    this.indefiniteMaps = indefiniteMaps;
    this.at = 0;
    this.items = 0;
  }

  take(count) {
    if (count > this.data.length - this.at) throw refuse("cbor.truncated", "the CBOR item ends early");
    this.at += Number(count);
    return this.data.slice(this.at - Number(count), this.at);
  }

  argument(extra) {
    if (extra < 24) return extra;
    if (extra > 27) throw refuse("cbor.indefinite", "an indefinite or reserved length");
    const size = 1 << (extra - 24);
    const value = fromBig(this.take(size));
    if (value < (size === 1 ? 24n : 1n << BigInt(4 * size)))
      throw refuse("cbor.not_shortest", "a CBOR head is not in its shortest form");
    return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
  }

  item(depth) {
    this.items++;
    if (depth > MAX_DEPTH || this.items > MAX_ITEMS)
      throw refuse("cbor.too_complex", "the CBOR is nested too deep or has too many items");
    const head = this.take(1)[0];
    const major = head >> 5;
    const extra = head & 31;
    if (major === 7) {
      if (!SIMPLE.has(extra)) throw refuse("cbor.type", "floats and other simple values have no place here");
      return SIMPLE.get(extra);
    }
    if (major === 5 && extra === 31 && this.indefiniteMaps) return this.map(null, depth);
    const value = this.argument(extra);
    if (major === 0) return value;
    if (major === 1) return typeof value === "bigint" ? -1n - value : -1 - value;
    if (major === 2) return this.take(value);
    if (major === 3) {
      const bytes = this.take(value);
      try {
        return text(bytes);
      } catch {
        throw refuse("cbor.text", "a text string is not UTF-8");
      }
    }
    if (major === 4) {
      if (value > MAX_ITEMS) throw refuse("cbor.too_complex", "an array has too many items");
      return Array.from({ length: value }, () => this.item(depth + 1));
    }
    if (major === 5) return this.map(value, depth);
    throw refuse("cbor.type", "tags have no place here");
  }

  map(count, depth) {
    if (count !== null && count > MAX_ITEMS) throw refuse("cbor.too_complex", "a map has too many members");
    const out = new Map();
    for (let read = 0; read !== count; read++) {
      if (count === null && this.data[this.at] === 0xff) {
        this.at++;
        break;
      }
      const key = this.item(depth + 1);
      if (!["string", "number", "bigint"].includes(typeof key))
        throw refuse("cbor.key", "a map key is neither text nor an integer");
      if (out.has(key)) throw refuse("cbor.duplicate", "a map key is there twice");
      out.set(key, this.item(depth + 1));
    }
    return out;
  }
}
