/**
 * Strict JSON and its canonical form (docs/spec/01-encoding.md), refused with the codes and in the order of
 * `aos.core.encoding`. Objects come back as Map: no name in a file can reach a prototype.
 */
import { sameBytes, text as decode, utf8 } from "./bytes.js";
import { refuse } from "./errors.js";

const MAX_DEPTH = 16;
const ESCAPES = { '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };
const NUMBER = /(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?/y;
const CONSTANT = /NaN|-?Infinity/y;

/** One JSON value. Throws `encoding.*`. */
export function parseStrict(data, maxBytes) {
  if (data.length > maxBytes) throw refuse("encoding.too_large", `the message is larger than ${maxBytes} bytes`);
  let text;
  try {
    text = decode(data);
  } catch {
    throw refuse("encoding.utf8", "the message is not UTF-8");
  }
  if (text.startsWith("\ufeff")) throw refuse("encoding.bom", "the message begins with a byte order mark");
  checkNesting(data);
  const value = new Reader(text).whole();
  if (text.includes("\\u")) checkTexts(value); // only an escape can bring in a surrogate: the bytes were UTF-8
  return value;
}

/** One JSON value in canonical form. Throws `encoding.*`, also `encoding.not_canonical`. */
export function parseCanonical(data, maxBytes) {
  const value = parseStrict(data, maxBytes);
  if (!sameBytes(canonical(value), data))
    throw refuse("encoding.not_canonical", "the bytes are not the canonical form of their value");
  return value;
}

/** RFC 8785 bytes of a value that `parseStrict` gave. */
export const canonical = (value) => utf8(written(value));

function written(value) {
  if (Array.isArray(value)) return `[${value.map(written).join(",")}]`;
  if (value instanceof Map) {
    const names = [...value.keys()].sort(); // by UTF-16 code units, as RFC 8785 wants
    return `{${names.map((name) => `${JSON.stringify(name)}:${written(value.get(name))}`).join(",")}}`;
  }
  return JSON.stringify(value);
}

function checkNesting(data) {
  let depth = 0;
  for (let i = 0; i < data.length; i++) {
    const byte = data[i];
    if (byte === 0x22) {
      for (i++; i < data.length && data[i] !== 0x22; i++) if (data[i] === 0x5c) i++;
    } else if (byte === 0x5b || byte === 0x7b) {
      if (++depth > MAX_DEPTH) throw refuse("encoding.depth", `the message is nested deeper than ${MAX_DEPTH}`);
    } else if (byte === 0x5d || byte === 0x7d) depth--;
  }
}

function checkTexts(value) {
  if (typeof value === "string") {
    if (!value.isWellFormed()) throw refuse("encoding.surrogate", "text holds a lone surrogate, which is not Unicode");
  } else if (Array.isArray(value)) value.forEach(checkTexts);
  else if (value instanceof Map)
    for (const [name, member] of value) {
      checkTexts(name);
      checkTexts(member);
    }
}

const noJson = () => refuse("encoding.syntax", "the message is not one JSON value");

class Reader {
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  whole() {
    this.space();
    const value = this.value();
    this.space();
    if (this.at !== this.text.length) throw noJson();
    return value;
  }

  space() {
    while (" \t\n\r".includes(this.text[this.at] ?? "x")) this.at++;
  }

  value() {
    const next = this.text[this.at];
    if (next === '"') return this.string();
    if (next === "{") return this.object();
    if (next === "[") return this.array();
    for (const [word, meaning] of [
      ["null", null],
      ["true", true],
      ["false", false],
    ])
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return meaning;
      }
    return this.number();
  }

  number() {
    CONSTANT.lastIndex = NUMBER.lastIndex = this.at;
    const constant = CONSTANT.exec(this.text);
    if (constant) throw refuse("encoding.nan", `${constant[0]} is not JSON`);
    const found = NUMBER.exec(this.text);
    if (!found) throw noJson();
    const [all, integer, fraction, exponent] = found;
    if (fraction || exponent) throw refuse("encoding.float", "decimals are not allowed here");
    if (integer === "-0") throw refuse("encoding.number", "-0 is not an integer");
    if (integer.length > 17 || !Number.isSafeInteger(Number(integer)))
      throw refuse("encoding.integer_range", "integers must lie within ±(2^53-1)");
    this.at += all.length;
    return Number(integer);
  }

  string() {
    let out = "";
    let from = ++this.at;
    for (;;) {
      const letter = this.text[this.at];
      if (letter === undefined || letter < " ") throw noJson();
      if (letter === '"') {
        out += this.text.slice(from, this.at++);
        return out;
      }
      if (letter !== "\\") {
        this.at++;
        continue;
      }
      out += this.text.slice(from, this.at);
      const escape = this.text[this.at + 1];
      if (escape === "u") {
        const digits = this.text.slice(this.at + 2, this.at + 6);
        if (!/^[0-9a-fA-F]{4}$/.test(digits)) throw noJson();
        out += String.fromCharCode(parseInt(digits, 16));
        this.at += 6;
      } else {
        if (escape === undefined || !Object.hasOwn(ESCAPES, escape)) throw noJson();
        out += ESCAPES[escape];
        this.at += 2;
      }
      from = this.at;
    }
  }

  array() {
    const items = [];
    this.at++;
    this.space();
    if (this.text[this.at] === "]") {
      this.at++;
      return items;
    }
    for (;;) {
      items.push(this.value());
      this.space();
      const next = this.text[this.at++];
      if (next === "]") return items;
      if (next !== ",") throw noJson();
      this.space();
    }
  }

  object() {
    const members = new Map();
    let twice = false;
    this.at++;
    this.space();
    if (this.text[this.at] === "}") {
      this.at++;
      return members;
    }
    for (;;) {
      if (this.text[this.at] !== '"') throw noJson();
      const name = this.string();
      this.space();
      if (this.text[this.at++] !== ":") throw noJson();
      this.space();
      const value = this.value();
      twice ||= members.has(name);
      members.set(name, value);
      this.space();
      const next = this.text[this.at++];
      if (next === "}") break;
      if (next !== ",") throw noJson();
      this.space();
    }
    if (twice) throw refuse("encoding.duplicate_key", "an object names a member twice");
    return members;
  }
}
