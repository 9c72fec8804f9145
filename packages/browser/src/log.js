/**
 * Where acceptance and receipt are in the dispatcher's log (docs/spec/15-log.md): C2SP notes, checkpoints, cosignatures,
 * inclusion. Refused with the codes of `aos.core.log`.
 */
import { sha256 } from "@noble/hashes/sha2.js";
import { big, concat, fromBig, hex, sameBytes, short, tag, taggedHash, utf8 } from "./bytes.js";
import { ed25519Verify, validKey } from "./crypto.js";
import { Skip, refuse } from "./errors.js";
import { canonical } from "./json.js";
import { leafHash, verifyInclusion } from "./merkle.js";

export const MAX_NOTE_BYTES = 16_384;
const MAX_SIGNATURES = 64;
const ED25519 = 1;
const COSIGNATURE = 4;
const KINDS = { acceptance: 1, receipt: 7 };
const MAX_TIME = 2n ** 63n - 1n;
// Python's \s, and no `+`: what a key's name may not hold.
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const NAME = new RegExp(`^[^${SPACE}+\\x00-\\x1f\\x7f]{1,255}$`, "u");
const VKEY = new RegExp(`^([^${SPACE}+]{1,255})\\+([0-9a-f]{8})\\+([A-Za-z0-9+/]{43}[A-Za-z0-9+/=])$`, "u");

/** Standard base64 in its one encoding. */
function unbase64(letters, code) {
  let data = new Uint8Array();
  try {
    data = Uint8Array.from(atob(letters), (letter) => letter.charCodeAt(0));
  } catch {
    // compared below
  }
  if (btoa(String.fromCharCode(...data)) !== letters) throw refuse(code, "not canonical base64");
  return data;
}

const keyId = ({ name, kind, key }) => sha256(concat(utf8(name), Uint8Array.of(10, kind), key)).subarray(0, 4);

/** A verifier key, `<name>+<hex id>+<base64>`. Throws `note.vkey`. */
function readVkey(text) {
  const found = VKEY.exec(text);
  const data = found ? unbase64(found[3], "note.vkey") : new Uint8Array();
  if (!found || data.length !== 33 || ![ED25519, COSIGNATURE].includes(data[0]))
    throw refuse("note.vkey", "not a verifier key of type 1 or 4: NAME+ID+KEY");
  const read = { name: found[1], kind: data[0], key: data.subarray(1) };
  if (hex(keyId(read)) !== found[2])
    throw refuse("note.vkey", "the verifier key's id is not that of its name and key");
  if (!validKey(read.key)) throw refuse("note.vkey", "the verifier key is no point of the prime-order group");
  return read;
}

/** The log's key and the witnesses' of a trust file; sets `log` and `witnessKeys`. Throws `note.vkey`, `trust.log`. */
export function readLogKeys(trust) {
  const log = trust.log_key ? readVkey(trust.log_key) : null;
  const witnesses = trust.witnesses.map(readVkey);
  if (log !== null && log.kind !== ED25519) throw refuse("trust.log", "log_key is a key of type 1");
  if (witnesses.some((one) => one.kind !== COSIGNATURE))
    throw refuse("trust.log", "witnesses are keys of type 4 (cosignature/v1)");
  const keys = [...witnesses, ...(log === null ? [] : [log])].map((one) => hex(one.key));
  if (new Set(keys).size !== keys.length)
    throw refuse("trust.log", "witnesses names a key twice, or the log as its own witness");
  if (trust.witness_quorum > witnesses.length)
    throw refuse("trust.log", "witness_quorum is more than there are witnesses");
  trust.log = log;
  trust.witnessKeys = witnesses;
}

function readNote(data) {
  if (utf8(data).length > MAX_NOTE_BYTES) throw refuse("note.size", `a note has at most ${MAX_NOTE_BYTES} bytes`);
  if (/[\x00-\x09\x0b-\x1f]/.test(data)) throw refuse("note.form", "a note holds no control characters but newlines");
  const at = data.lastIndexOf("\n\n");
  if (at < 1 || !data.slice(at + 2).endsWith("\n"))
    throw refuse("note.form", "a note is a text, an empty line, and signature lines");
  const lines = data.slice(at + 2, -1).split("\n");
  if (lines.length > MAX_SIGNATURES) throw refuse("note.size", `a note has at most ${MAX_SIGNATURES} signatures`);
  return { text: data.slice(0, at) + "\n", signatures: lines.map(readSignatureLine) };
}

function readSignatureLine(line) {
  const bad = () => refuse("note.form", "a signature line is: em dash, name, base64");
  const first = line.indexOf(" ");
  const second = line.indexOf(" ", first + 1);
  const name = line.slice(first + 1, second);
  if (first < 0 || second < 0 || line.slice(0, first) !== "\u2014" || !NAME.test(name)) throw bad();
  const data = unbase64(line.slice(second + 1), "note.base64");
  if (data.length < 5) throw refuse("note.form", "a signature is behind a key id of four bytes");
  return { name, id: data.subarray(0, 4), signature: data.subarray(4) };
}

const isOf = (line, key) => line.name === key.name && sameBytes(line.id, keyId(key));

/** Which of `keys` signed the note. One bad line of a known key refuses the whole note. */
function signers(note, keys) {
  const found = new Set();
  for (const line of note.signatures)
    for (const key of keys)
      if (isOf(line, key)) {
        verifyLine(note.text, line, key);
        found.add(key);
      }
  return found;
}

function verifyLine(text, { signature }, key) {
  let message = utf8(text);
  let signed = signature;
  let time = 0n;
  if (key.kind === COSIGNATURE && signature.length === 72) {
    time = fromBig(signature.subarray(0, 8));
    signed = signature.subarray(8);
    message = utf8(`cosignature/v1\ntime ${time}\n${text}`);
  }
  if (signed.length !== 64 || time > MAX_TIME || !ed25519Verify(key.key, message, signed))
    throw refuse("note.signature", `the signature of ${key.name} does not verify`);
}

function readHead(note) {
  const bad = (message) => refuse("checkpoint.form", message);
  const lines = note.text.slice(0, -1).split("\n");
  if (lines.length !== 3 || !lines[0] || !/^(?:0|[1-9][0-9]{0,15})$/.test(lines[1]))
    throw bad("a checkpoint is origin, size and root, one a line");
  const size = BigInt(lines[1]);
  const root = unbase64(lines[2], "checkpoint.form");
  if (root.length !== 32 || size > 2n ** 53n - 1n) throw bad("a root has 32 bytes, a size is below 2^53");
  if (size === 0n && !sameBytes(root, sha256(new Uint8Array())))
    throw refuse("checkpoint.empty_root", "an empty tree has the hash of nothing as its root");
  return { origin: lines[0], size, root };
}

function verifyCheckpoint(text, key) {
  const note = readNote(text);
  const head = readHead(note);
  if (head.origin !== key.name)
    throw refuse("checkpoint.origin", `the checkpoint is of ${head.origin}, not of ${key.name}`);
  const timed = { ...key, kind: COSIGNATURE };
  const found = signers(note, [key, timed]);
  if (!found.has(key)) throw refuse("checkpoint.unsigned", `the checkpoint is not signed by ${written(key)}`);
  if (!found.has(timed))
    throw refuse("checkpoint.undated", "the log does not say when it signed the checkpoint");
  return { note, head };
}

const written = (key) =>
  `${key.name}+${hex(keyId(key))}+${btoa(String.fromCharCode(key.kind, ...key.key))}`;

function checkpointOf(one) {
  const key = one.trusted().log;
  const { log } = one.answer;
  if (key === null) throw new Skip("the trust file names no log");
  if (log === null) throw new Skip("the file carries no inclusion proof");
  if (key.name !== `aos/${one.core.network}/${one.core.dispatcher}`)
    throw refuse("log.foreign", "the trusted log is of another network or dispatcher than the answer");
  return verifyCheckpoint(log.checkpoint, key);
}

function inTree(leaf, kind, { statement, signature }, { head }) {
  if (head.size === 0n) throw refuse("merkle.index_out_of_range", "the signed tree is empty");
  const fact = canonical(new Map(Object.entries({ statement, signature })));
  const entry = concat(tag("log-entry"), big(KINDS[kind], 1), taggedHash("log-fact", leaf.salt, fact));
  verifyInclusion(leafHash(entry), leaf.index, head.size, leaf.path, head.root);
}

/** Acceptance and receipt are leaves of one tree that the trusted log signed, the first before the second. */
export function log1(one) {
  const checkpoint = checkpointOf(one);
  const { log, acceptance, receipt } = one.answer;
  const raw = (pair, statement, signature) => ({
    statement: pair.raw.get(statement),
    signature: pair.raw.get(signature),
  });
  inTree(log.acceptance, "acceptance", raw(acceptance, "statement", "signature"), checkpoint);
  inTree(log.receipt, "receipt", raw(receipt, "countersign", "countersign_signature"), checkpoint);
  if (log.acceptance.index >= log.receipt.index)
    throw refuse("log.order", "the receipt was logged before the job's acceptance");
  const { size, root } = checkpoint.head;
  return [`leaf ${log.receipt.index} of ${size} in the dispatcher's log`, short(root)];
}

/** A quorum of the trusted witnesses cosigned the checkpoint. */
export function witness1(one) {
  const trust = one.trusted();
  const { note } = checkpointOf(one);
  const found = signers(note, trust.witnessKeys).size;
  const wanted = trust.witness_quorum;
  if (wanted === 0) throw new Skip("the trust file asks for no witnesses; the log may have told others something else");
  if (found < wanted)
    throw new Skip(`${found} of ${wanted} witnesses cosigned; the log may have told others something else`);
  return [`${found} of ${trust.witnessKeys.length} witnesses cosigned the checkpoint`];
}
