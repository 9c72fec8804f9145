/** AWS Nitro attestation documents (docs/spec/12-attestation.md, "AWS Nitro"), refused as `aos.core.attest.nitro` does. */
import { sha256 } from "@noble/hashes/sha2.js";
import { concat, sameBytes, unhex, utf8 } from "./bytes.js";
import { decodeCbor } from "./cbor.js";
import { checkChain, checkTimes, loadCertificate, verifyP384 } from "./certificates.js";
import { AosError, refuse } from "./errors.js";

export const AWS_NITRO = {
  sha256: unhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"),
  simulated: false,
};

const MAX_DOCUMENT_BYTES = 16_384;
const MAX_CERTIFICATE_BYTES = 1024;
const MAX_BUNDLE = 8;
const MAX_FUTURE_MS = 60_000;
const ES384_HEADER = unhex("a1013822");
const EARLIEST = 1_577_836_800_000;
const LATEST = 4_102_444_800_000;
const MANDATORY = ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"];
const OPTIONAL = { public_key: [1, 1024], user_data: [0, 512], nonce: [0, 512] };

/** What an accepted document says. Throws `attest.*`. `nonce` is the challenge that it must repeat, whole. */
export function verifyNitro(document, { roots, atMs, nonce }) {
  const { header, payload: signed, signature } = envelope(document);
  const payload = members(signed);
  const root = sha256(payload.cabundle[0]);
  const anchor = roots.find((one) => sameBytes(one.sha256, root));
  if (!anchor) throw refuse("attest.root", "the chain begins at a root that is not trusted");
  const chain = [...payload.cabundle, payload.certificate].map(loadCertificate);
  checkTimes(chain, payload.timestamp);
  const key = checkChain(chain);
  if (!verifyP384(key, signature, sigStructure(header, signed)))
    throw refuse("attest.signature", "the leaf's key has not signed this document");
  if ([0, 1, 2].some((index) => payload.pcrs.get(index).every((byte) => byte === 0)))
    throw refuse("attest.debug", "a debug enclave: PCR0, PCR1 or PCR2 is zero");
  if (payload.timestamp > atMs + MAX_FUTURE_MS) throw refuse("attest.future", "the document is from the future");
  if (!nonce.length || payload.nonce === null || !sameBytes(payload.nonce, nonce))
    throw refuse("attest.nonce", "the document does not repeat the nonce");
  return {
    simulated: anchor.simulated,
    anchor: anchor.sha256,
    pcrs: payload.pcrs,
    reportData: payload.user_data,
    publicKey: payload.public_key,
    time: payload.timestamp,
    chain,
  };
}

function sigStructure(header, payload) {
  const size = payload.length;
  const head =
    size < 24
      ? Uint8Array.of(0x40 + size)
      : size < 256
        ? Uint8Array.of(0x58, size)
        : Uint8Array.of(0x59, size >> 8, size & 0xff);
  return concat(unhex("846a"), utf8("Signature1"), Uint8Array.of(0x40 + header.length), header, unhex("40"), head, payload);
}

/** Run `read`; what it refuses is refused with `code` instead. */
function cbor(code, read) {
  try {
    return read();
  } catch (error) {
    if (error instanceof AosError) throw refuse(code, error.message);
    throw error;
  }
}

function envelope(document) {
  const bad = (message) => refuse("attest.envelope", message);
  if (document.length < 1 || document.length > MAX_DOCUMENT_BYTES)
    throw refuse("attest.size", `a document has 1 to ${MAX_DOCUMENT_BYTES} bytes, not ${document.length}`);
  const parts = cbor("attest.envelope", () => decodeCbor(document));
  if (!Array.isArray(parts) || parts.length !== 4) throw bad("the document is no array of four");
  const [header, unprotectedHeader, payload, signature] = parts;
  if (!(header instanceof Uint8Array) || !sameBytes(header, ES384_HEADER))
    throw bad("the protected header is not ES384 alone");
  // No signature covers this map: whatever is in it, the signer has not said it.
  if (!(unprotectedHeader instanceof Map) || unprotectedHeader.size) throw bad("the unprotected header is not an empty map");
  if (!(payload instanceof Uint8Array) || !payload.length) throw bad("the payload is not in the document");
  if (!(signature instanceof Uint8Array) || signature.length !== 96) throw bad("the signature has not 96 bytes");
  return { header, payload, signature };
}

const malformed = (message) => refuse("attest.payload", message);

function bytesOf(name, value, low, high) {
  if (!(value instanceof Uint8Array) || value.length < low || value.length > high)
    throw malformed(`${name} is not a byte string of ${low} to ${high} bytes`);
  return value;
}

function members(data) {
  const found = cbor("attest.payload", () => decodeCbor(data, true));
  if (!(found instanceof Map)) throw malformed("the payload is no map");
  const known = [...MANDATORY, ...Object.keys(OPTIONAL)];
  if (!MANDATORY.every((name) => found.has(name)) || ![...found.keys()].every((name) => known.includes(name)))
    throw malformed("the payload lacks a member or has an unknown one");
  const moduleId = found.get("module_id");
  if (typeof moduleId !== "string" || !/^i-[0-9a-f]{8,17}-enc[0-9a-f]{1,32}$/.test(moduleId))
    throw malformed("module_id is none");
  if (found.get("digest") !== "SHA384") throw malformed("digest is not SHA384");
  const timestamp = found.get("timestamp");
  if (typeof timestamp !== "number" || timestamp <= EARLIEST || timestamp >= LATEST)
    throw malformed("timestamp is no time between 2020 and 2100");
  const bundle = found.get("cabundle");
  if (!Array.isArray(bundle) || !bundle.length || bundle.length > MAX_BUNDLE)
    throw malformed(`cabundle has not 1 to ${MAX_BUNDLE} certificates`);
  const optional = {};
  for (const [name, limits] of Object.entries(OPTIONAL)) {
    const value = found.get(name) ?? null;
    optional[name] = value === null ? null : bytesOf(name, value, ...limits);
  }
  return {
    timestamp,
    pcrs: registers(found.get("pcrs")),
    certificate: bytesOf("certificate", found.get("certificate"), 1, MAX_CERTIFICATE_BYTES),
    cabundle: bundle.map((item) => bytesOf("cabundle", item, 1, MAX_CERTIFICATE_BYTES)),
    ...optional,
  };
}

function registers(value) {
  if (!(value instanceof Map) || value.size < 1 || value.size > 32) throw malformed("pcrs is no map of 1 to 32 registers");
  for (const [index, register] of value) {
    if (typeof index !== "number" || index < 0 || index > 31) throw malformed("a register's number is not 0 to 31");
    bytesOf(`PCR${index}`, register, 48, 48);
  }
  if (![0, 1, 2, 3, 4, 8].every((index) => value.has(index)))
    throw malformed("a register that every document has is missing");
  return value;
}
