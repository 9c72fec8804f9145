/** An enclave's statements, from the answer to the platform's root (docs/spec/10-tee.md), as `aos.core.tee` judges them. */
import { concat, hex, sameBytes, unhex, utf8 } from "./bytes.js";
import { ed25519Verify } from "./crypto.js";
import { refuse } from "./errors.js";
import { canonical } from "./json.js";
import { AWS_NITRO, verifyNitro } from "./nitro.js";
import { hashOf } from "./statements.js";

const PREFIX = utf8("AOS/enclave-statement/v1\n");
const SPKI = unhex("302a300506032b6570032100");
const MAX_LIFETIME_MS = 2 * 60 * 60 * 1000;
const MAX_BOOT_SKEW_MS = 5 * 60 * 1000;
const MAX_LATE_MS = 60 * 60 * 1000;

/** What a trust file believes of enclaves of `kind`: roots, and images as the hex of three registers. */
export function references(trust, kind) {
  const images = trust.tee_measurements
    .filter((one) => one.tee === kind)
    .map((one) => `${one.pcr0} ${one.pcr1} ${one.pcr2}`);
  if (!images.length) return { anchors: [], images };
  const simulated = trust.tee_roots.map((root) => ({ sha256: root.root, simulated: true }));
  return { anchors: kind === "nitro" ? [AWS_NITRO] : simulated, images };
}

function checkEnclave(key, statement, signature, what) {
  if (!ed25519Verify(key, concat(PREFIX, canonical(statement.raw)), signature))
    throw refuse(`tee.${what}_signature`, `the ${what} statement is not signed by the key that it names`);
}

function checkBoot(boot, signature) {
  checkEnclave(boot.enclave_key, boot, signature, "boot");
  const lasts = boot.not_after - boot.booted_at;
  if (lasts <= 0 || lasts > MAX_LIFETIME_MS)
    throw refuse("tee.lifetime", "the boot statement lasts longer than a boot may, or not at all");
}

/** From the answer statement to the boot statement, without any trust. Throws `tee.*`. */
export function verifyAnswerStatement({ boot, boot_signature, answer, answer_signature }) {
  checkBoot(boot, boot_signature);
  if (!sameBytes(answer.boot, hashOf(boot)) || answer.operator !== boot.operator)
    throw refuse("tee.answer_not_bound", "the answer statement belongs to another enclave");
  if (!sameBytes(answer.model_id, boot.model_id) || answer.engine !== boot.engine)
    throw refuse("tee.answer_not_bound", "the answer statement names another model or engine");
  if (answer.time < boot.booted_at || answer.time > boot.not_after)
    throw refuse("tee.boot_expired", "the answer was made outside the boot statement's validity");
  if ((answer.sequence === 1) !== (answer.previous.length === 0))
    throw refuse("tee.sequence", "only the first answer of a boot has no predecessor");
  checkEnclave(boot.enclave_key, answer, answer_signature, "answer");
}

/** From the boot statement to the platform's root; the document's claims. Throws `tee.*`, `attest.*`. */
export function verifyBoot({ boot, boot_signature, document }, { anchors, atMs }) {
  if (!anchors.length) throw refuse("tee.no_trusted_root", `no root is named for a TEE of kind ${boot.tee}`);
  checkBoot(boot, boot_signature);
  const claims = verifyNitro(document, { roots: anchors, atMs, nonce: boot.nonce });
  if (claims.simulated !== (boot.tee === "simulated"))
    throw refuse("tee.kind", "the boot statement names another kind than its document's root");
  const key = concat(SPKI, boot.enclave_key);
  if (
    claims.reportData === null ||
    claims.publicKey === null ||
    !sameBytes(claims.reportData, hashOf(boot)) ||
    !sameBytes(claims.publicKey, key)
  )
    throw refuse("tee.boot_not_bound", "the document vouches for another boot statement");
  if (claims.time < boot.booted_at - MAX_BOOT_SKEW_MS || claims.time > boot.booted_at + MAX_BOOT_SKEW_MS)
    throw refuse("tee.clock", "the document was not made when the boot statement says");
  return claims;
}

export function checkReceived({ answer }, claims, receivedAt) {
  const until = claims.chain.at(-1).validUntil;
  if (answer.time > until || receivedAt > until + MAX_LATE_MS)
    throw refuse("tee.leaf_expired", "the answer is later than the certificate that vouches for its enclave");
}

export function checkImage(claims, images) {
  if (!images.length) throw refuse("tee.no_measurements", "no image is named that an enclave may run");
  if (!images.includes([0, 1, 2].map((index) => hex(claims.pcrs.get(index))).join(" ")))
    throw refuse("tee.measurement", "the enclave runs an image that nobody has named");
}
