/**
 * Strict readers for the members of a statement, refused with the codes and texts of `aos.core.codec`.
 * A reader takes a parsed value and its path and returns what it means; what was read is valid by construction.
 */
import { unbase64 } from "./bytes.js";
import { refuse } from "./errors.js";

const MAX = Number.MAX_SAFE_INTEGER;

const fail = (code, where, message) => refuse(code, `${where || "value"}: ${message}`);
/** Python counts characters, JavaScript counts UTF-16 units. */
const characters = (text) => {
  let count = 0;
  for (const _ of text) count++;
  return count;
};

/** As Python's ascii(), without its quotes and cut to 64 characters: a sender's name may not write on a screen. */
export function ascii(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  let out = "";
  for (const letter of text) {
    const point = letter.codePointAt(0);
    if (letter === "\\" || letter === quote) out += "\\" + letter;
    else if (letter === "\n") out += "\\n";
    else if (letter === "\r") out += "\\r";
    else if (letter === "\t") out += "\\t";
    else if (point >= 32 && point < 127) out += letter;
    else if (point < 256) out += "\\x" + point.toString(16).padStart(2, "0");
    else if (point < 65536) out += "\\u" + point.toString(16).padStart(4, "0");
    else out += "\\U" + point.toString(16).padStart(8, "0");
  }
  return out.slice(0, 64);
}

/** An object with exactly these members; `raw` keeps the value that was hashed and signed. */
export function object(members, type = null, version = 1) {
  const names = Object.keys(members);
  const expected = new Set(type === null ? names : [...names, "type", "v"]);
  return (value, where) => {
    if (!(value instanceof Map)) throw fail("field.type", where, "must be an object");
    const prefix = where ? where + "." : "";
    for (const name of [...expected].sort())
      if (!value.has(name)) throw fail("field.missing", prefix + name, "is missing");
    const unknown = [...value.keys()].filter((name) => !expected.has(name)).sort();
    if (unknown.length) throw fail("field.unknown", prefix + ascii(unknown[0]), "is not a member of this object");
    if (type !== null) {
      if (value.get("type") !== type) throw fail("statement.type", prefix + "type", `must be '${type}'`);
      if (value.get("v") !== version) throw fail("statement.version", prefix + "v", `must be ${version}`);
    }
    const out = { raw: value };
    for (const name of names) out[name] = members[name](value.get(name), prefix + name);
    return out;
  };
}

export function list(item, limit = 65536) {
  return (value, where) => {
    if (!Array.isArray(value)) throw fail("field.type", where, "must be a list");
    if (value.length > limit) throw fail("field.range", where, `has more than ${limit} items`);
    return value.map((entry, index) => item(entry, `${where}[${index}]`));
  };
}

export const optional = (reader) => (value, where) => (value === null ? null : reader(value, where));
export const any = (value) => value;

function bytesOf(fits, allowed) {
  return (value, where) => {
    if (typeof value !== "string") throw fail("field.type", where, "must be a base64url string");
    let data;
    try {
      data = unbase64(value);
    } catch (error) {
      throw fail("field.type", where, error.message);
    }
    if (!fits(data.length)) throw fail("field.range", where, `must hold ${allowed} bytes`);
    return data;
  };
}

export const bytes = (...sizes) => bytesOf((size) => sizes.includes(size), sizes.join(" or "));
export const bytesUpTo = (limit) => bytesOf((size) => size <= limit, `at most ${limit}`);

export function pattern(expression) {
  const whole = new RegExp(`^(?:${expression})$`);
  return (value, where) => {
    if (typeof value !== "string") throw fail("field.type", where, "must be a string");
    if (value.length > 256 || !whole.test(value)) throw fail("field.range", where, `must match ${expression}`);
    return value;
  };
}

export function textUpTo(limit) {
  return (value, where) => {
    if (typeof value !== "string") throw fail("field.type", where, "must be a string");
    if (characters(value) > limit) throw fail("field.range", where, `has more than ${limit} characters`);
    return value;
  };
}

export function integer(low, high) {
  return (value, where) => {
    if (typeof value !== "number") throw fail("field.type", where, "must be an integer");
    if (value < low || value > high) throw fail("field.range", where, `must be in ${low}..${high}`);
    return value;
  };
}

export function oneOf(...allowed) {
  const shown = allowed.map((word) => (typeof word === "string" ? `'${word}'` : String(word))).join(", ");
  return (value, where) => {
    if (!allowed.includes(value)) throw fail("field.range", where, `must be one of ${shown}`);
    return value;
  };
}

export function boolean(value, where) {
  if (typeof value !== "boolean") throw fail("field.type", where, "must be true or false");
  return value;
}

export function decimal64(value, where) {
  if (typeof value !== "string") throw fail("field.type", where, "must be a decimal string");
  if (value.length > 20 || !/^(?:0|[1-9][0-9]*)$/.test(value) || BigInt(value) > 2n ** 64n - 1n)
    throw fail("field.range", where, "must be a decimal string in 0..18446744073709551615");
  return value;
}

/** A vector clock: Map of node number to count. */
export function clock(value, where) {
  if (!(value instanceof Map) || value.size > 4096) throw fail("field.type", where, "must be a vector clock");
  const positive = /^[1-9][0-9]{0,15}$/;
  const counts = new Map();
  for (const [node, count] of value) {
    if (!positive.test(node) || typeof count !== "string" || !positive.test(count))
      throw fail("field.range", where, "maps decimal node numbers to decimal counts");
    if (Number(node) > 2 ** 31 || Number(count) > MAX)
      throw fail("field.range", where, "holds a number that is too large");
    counts.set(Number(node), Number(count));
  }
  return counts;
}

/** Text or a list: the JSON type says which. */
export const textOrList = (ofText, ofList) => (value, where) => {
  if (typeof value === "string") return ofText(value, where);
  if (Array.isArray(value)) return ofList(value, where);
  throw fail("field.type", where, "must be a string or a list");
};

export const bytes32 = bytes(32);
export const signature = bytes(65);
export const optionalBytes32 = bytes(0, 32);
export const address = pattern("0x[0-9a-f]{40}");
export const networkId = pattern("[a-z0-9][a-z0-9-]{0,62}");
export const label = pattern("[A-Za-z0-9][A-Za-z0-9._/+:-]{0,127}");
export const uint = integer(0, MAX);
export const uint32 = integer(0, 2 ** 32 - 1);
export const attempt = integer(1, 1_000_000);
