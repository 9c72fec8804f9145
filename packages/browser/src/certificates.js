/**
 * Certificate chains of attestation documents (docs/spec/12-attestation.md, "Chains"): DER and X.509 as far as these
 * chains use them, P-384 with SHA-384. What is not understood is refused.
 */
import { p384 } from "@noble/curves/nist.js";
import { concat, fromBig, hex, sameBytes } from "./bytes.js";
import { remembered } from "./crypto.js";
import { AosError, refuse } from "./errors.js";

const OID = {
  basicConstraints: "551d13",
  keyUsage: "551d0f",
  subjectKeyIdentifier: "551d0e",
  authorityKeyIdentifier: "551d23",
  ecPublicKey: "2a8648ce3d0201",
  secp384r1: "2b81040022",
  ecdsaWithSha384: "2a8648ce3d040303",
};
const UNDERSTOOD = [OID.basicConstraints, OID.keyUsage, OID.subjectKeyIdentifier, OID.authorityKeyIdentifier];
const P384_ORDER = 0xffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973n;
const MAX_NESTING = 16;

const unreadable = () => refuse("attest.certificate", "a certificate cannot be read");

// --- DER

/** One element: its tag, its content, and all of its bytes. */
function element(data, at = 0) {
  let position = at;
  const next = () => {
    if (position >= data.length) throw unreadable();
    return data[position++];
  };
  const tag = next();
  if ((tag & 31) === 31) throw unreadable();
  let length = next();
  if (length >= 0x80) {
    const size = length & 0x7f;
    if (size < 1 || size > 2) throw unreadable(); // no certificate here is longer than 64 KB
    length = 0;
    for (let i = 0; i < size; i++) length = length * 256 + next();
    if (length < (size === 1 ? 0x80 : 0x100)) throw unreadable();
  }
  if (length > data.length - position) throw unreadable();
  const end = position + length;
  return { tag, content: data.subarray(position, end), whole: data.subarray(at, end), end };
}

/** The elements that fill `data`. */
function elements(data) {
  const found = [];
  for (let at = 0; at < data.length; at = found.at(-1).end) found.push(element(data, at));
  return found;
}

function only(data) {
  const [first, ...more] = elements(data);
  if (!first || more.length) throw unreadable();
  return first;
}

function expect(found, tag) {
  if (!found || found.tag !== tag) throw unreadable();
  return found.content;
}

/** Well-formed throughout; what the values mean is not asked. */
function wellFormed(data, depth = 0) {
  if (depth > MAX_NESTING) throw unreadable();
  for (const found of elements(data)) if (found.tag & 0x20) wellFormed(found.content, depth + 1);
}

function unsigned(content) {
  if (!content.length || content[0] & 0x80) throw unreadable();
  if (content.length > 1 && content[0] === 0 && !(content[1] & 0x80)) throw unreadable();
  return fromBig(content);
}

function bitString(content) {
  const unused = content[0];
  if (unused === undefined || unused > 7 || (content.length === 1 && unused)) throw unreadable();
  const bits = content.subarray(1);
  if (unused && bits.at(-1) & ((1 << unused) - 1)) throw unreadable();
  return { bits, unused };
}

function booleanTrue(content) {
  // DER writes no member that has its default, and true as 0xff.
  if (content.length !== 1 || content[0] !== 0xff) throw unreadable();
  return true;
}

function time({ tag, content }) {
  const digits = String.fromCharCode(...content);
  const long = tag === 0x18;
  const found = (long ? /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/ : /^(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/).exec(digits);
  if (!found || (tag !== 0x17 && !long)) throw unreadable();
  const [year, month, day, hour, minute, second] = found.slice(1).map(Number);
  const full = long ? year : year + (year < 50 ? 2000 : 1900);
  if (long && full < 2050) throw unreadable(); // RFC 5280, 4.1.2.5: through 2049 as UTCTime
  const at = new Date(Date.UTC(full, month - 1, day, hour, minute, second));
  if (at.getUTCMonth() !== month - 1 || at.getUTCDate() !== day || hour > 23 || minute > 59 || second > 59)
    throw unreadable();
  return at.getTime();
}

// --- X.509

function algorithm(content) {
  const [oid, ...parameters] = elements(content);
  return { oid: hex(expect(oid, 0x06)), parameters };
}

function keyOf(content) {
  const [kind, bits, ...more] = elements(content);
  if (more.length) throw unreadable();
  const { oid, parameters } = algorithm(expect(kind, 0x30));
  const key = bitString(expect(bits, 0x03));
  if (oid !== OID.ecPublicKey || parameters.length !== 1 || hex(expect(parameters[0], 0x06)) !== OID.secp384r1)
    return null;
  if (key.unused) throw unreadable();
  try {
    const point = p384.Point.fromBytes(key.bits);
    point.assertValidity();
    return point.toBytes(false);
  } catch {
    throw unreadable();
  }
}

function extensionsOf(content) {
  const found = new Map();
  for (const one of elements(only(content).content)) {
    const parts = elements(expect(one, 0x30));
    const critical = parts.length === 3 ? booleanTrue(expect(parts[1], 0x01)) : false;
    if (parts.length < 2 || parts.length > 3) throw unreadable();
    const oid = hex(expect(parts[0], 0x06));
    if (found.has(oid)) throw unreadable();
    found.set(oid, { critical, value: meaning(oid, expect(parts.at(-1), 0x04)) });
  }
  return found;
}

function meaning(oid, value) {
  if (oid === OID.basicConstraints) {
    const parts = elements(expect(only(value), 0x30));
    const ca = parts[0]?.tag === 0x01 ? booleanTrue(parts.shift().content) : false;
    const pathLength = parts.length ? Number(unsigned(expect(parts.shift(), 0x02))) : null;
    if (parts.length || (pathLength !== null && !ca)) throw unreadable();
    return { ca, pathLength };
  }
  if (oid === OID.keyUsage) {
    const { bits } = bitString(expect(only(value), 0x03));
    return { digitalSignature: !!(bits[0] & 0x80), keyCertSign: !!(bits[0] & 0x04) };
  }
  if (oid === OID.subjectKeyIdentifier) return expect(only(value), 0x04);
  if (oid === OID.authorityKeyIdentifier) {
    const parts = elements(expect(only(value), 0x30));
    return parts.find((part) => part.tag === 0x80)?.content ?? null;
  }
  if (oid.startsWith("551d")) wellFormed(value);
  return value;
}

/** One certificate. Throws `attest.certificate`. */
export function loadCertificate(der) {
  const whole = elements(expect(only(der), 0x30));
  if (whole.length !== 3) throw unreadable();
  const [body, outerAlgorithm, signature] = whole;
  const parts = elements(expect(body, 0x30));
  const version = parts[0]?.tag === 0xa0 ? Number(unsigned(expect(only(parts.shift().content), 0x02))) : 0;
  const [serial, innerAlgorithm, issuer, validity, subject, key, ...more] = parts;
  if (!expect(serial, 0x02).length) throw unreadable();
  const [from, until, ...others] = elements(expect(validity, 0x30));
  expect(issuer, 0x30);
  expect(subject, 0x30);
  wellFormed(issuer.whole);
  wellFormed(subject.whole);
  expect(innerAlgorithm, 0x30);
  expect(outerAlgorithm, 0x30);
  if (!until || others.length || more.length > 1 || !sameBytes(innerAlgorithm.whole, outerAlgorithm.whole))
    throw unreadable();
  const signed = bitString(expect(signature, 0x03));
  if (signed.unused) throw unreadable();
  const { oid, parameters } = algorithm(outerAlgorithm.content);
  return {
    der,
    body: body.whole,
    version,
    issuer: issuer.whole,
    subject: subject.whole,
    validFrom: time(from),
    validUntil: time(until),
    key: keyOf(expect(key, 0x30)),
    extensions: more.length ? extensionsOf(expect(more[0], 0xa3)) : new Map(),
    ecdsaSha384: oid === OID.ecdsaWithSha384 && !parameters.length,
    signature: signed.bits,
  };
}

export function checkTimes(chain, atMs) {
  for (const certificate of chain) {
    if (atMs < certificate.validFrom)
      throw refuse("attest.not_yet_valid", "a certificate was not yet valid at that time");
    if (atMs > certificate.validUntil) throw refuse("attest.expired", "a certificate had expired at that time");
  }
}

/** Root first, leaf last, the root believed already; the leaf's key. Throws `attest.chain_*`. */
export function checkChain(chain) {
  const last = chain.length - 1;
  chain.forEach((certificate, position) => {
    if (certificate.key === null) throw refuse("attest.chain_algorithm", "a certificate's key is not P-384");
    if (!certificate.ecdsaSha384)
      throw refuse("attest.chain_algorithm", "a certificate is not signed by ECDSA with SHA-384");
    if (certificate.version !== 2) throw refuse("attest.chain_constraints", "a certificate is not of version 3");
    checkConstraints(certificate, position < last, last - position - 1);
    if (position) checkIssued(chain[position - 1], certificate);
  });
  return chain[last].key;
}

function checkConstraints({ extensions }, authority, below) {
  for (const [oid, { critical }] of extensions)
    if (critical && !UNDERSTOOD.includes(oid))
      throw refuse("attest.chain_extension", "a certificate has a critical extension that nobody here knows");
  const usage = extensions.get(OID.keyUsage);
  if (!usage) throw refuse("attest.chain_constraints", "a certificate has no key usage");
  const basic = extensions.get(OID.basicConstraints);
  if (!basic) throw refuse("attest.chain_constraints", "a certificate has no basic constraints");
  const { ca, pathLength } = basic.value;
  if (authority) {
    if (!(basic.critical && ca && usage.value.keyCertSign))
      throw refuse("attest.chain_constraints", "a certificate that signs another is no authority");
    if (pathLength !== null && pathLength < below)
      throw refuse("attest.chain_path_length", "the chain is longer than an authority allows");
  } else if (ca || usage.value.keyCertSign || !usage.value.digitalSignature)
    throw refuse("attest.chain_constraints", "the leaf is an authority or may not sign documents");
}

function checkIssued(issuer, certificate) {
  const authority = certificate.extensions.get(OID.authorityKeyIdentifier)?.value ?? null;
  const subject = issuer.extensions.get(OID.subjectKeyIdentifier)?.value ?? null;
  if (authority !== null && subject !== null && !sameBytes(authority, subject))
    throw refuse("attest.chain_order", "a certificate names another issuer's key");
  if (!sameBytes(certificate.issuer, issuer.subject))
    throw refuse("attest.chain_order", "a certificate names another issuer");
  const raw = rawSignature(certificate.signature);
  if (raw === null || !verifyP384(issuer.key, raw, certificate.body))
    throw refuse("attest.chain_signature", "a certificate is not signed by the one above it");
}

/** r ‖ s of a DER signature; null where it is none. */
function rawSignature(der) {
  try {
    const parts = elements(expect(only(der), 0x30));
    if (parts.length !== 2) return null;
    const numbers = parts.map((part) => unsigned(expect(part, 0x02)));
    if (numbers.some((number) => number >= P384_ORDER)) return null;
    return concat(...numbers.map((number) => Uint8Array.from(number.toString(16).padStart(96, "0").match(/../g), (two) => parseInt(two, 16))));
  } catch (error) {
    if (error instanceof AosError) return null;
    throw error;
  }
}

/** ECDSA with SHA-384, the signature being r ‖ s. */
export const verifyP384 = remembered((key, signature, data) => {
  if (signature.length !== 96) return false;
  const numbers = [fromBig(signature.subarray(0, 48)), fromBig(signature.subarray(48))];
  if (numbers.some((number) => number <= 0n || number >= P384_ORDER)) return false;
  return p384.verify(signature, data, key, { lowS: false });
});
