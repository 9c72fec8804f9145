/** One draw, recomputed (docs/spec/04-sortition.md), refused with the codes of `aos.core.draw_check`. */
import { sha256 } from "@noble/hashes/sha2.js";
import { addressBytes, big, concat, fromBig, hex, lpText, sameBytes, tag, taggedHash } from "./bytes.js";
import { checkSigned, vrfVerify } from "./crypto.js";
import { AosError, refuse } from "./errors.js";
import { canonical } from "./json.js";
import { inclusionRoot, leafHash, treeRoot, verifyInclusion } from "./merkle.js";
import { hashOf } from "./statements.js";

const KEY_AGE_EPOCHS = 2;
const MAX_FILL_TRIES = 65_536;
const STATUSES = ["selected", "not_selected", "declined", "unanswered", "ineligible"];

export const total = (counts) => STATUSES.reduce((sum, status) => sum + BigInt(counts[status]), 0n);
export const snapshotLeaf = (entry) => leafHash(canonical(entry.raw));
export const entryLeaf = (entry) => leafHash(canonical(entry.raw));

/** Run `step`; what it refuses is refused with `code` instead, behind `what`. */
function wrapped(code, what, step) {
  try {
    return step();
  } catch (error) {
    if (error instanceof AosError) throw refuse(code, `${what}: ${error.message}`);
    throw error;
  }
}

const signedBy = (pair, address, code, what) =>
  wrapped(code, what, () => checkSigned(pair.statement, pair.signature, address));

export const samplingSeed = (drawSeed) => String(fromBig(taggedHash("sampling", drawSeed).subarray(0, 8)));

const claimAlpha = (call) =>
  concat(
    tag("draw"),
    lpText(call.network),
    call.snapshot_root,
    call.job_ref,
    big(call.attempt, 4),
    call.draw_seed,
  );

export const alphaHash = (call) => sha256(claimAlpha(call));

export const tagCommitment = (opened) => taggedHash("job-tag", opened.salt, lpText(opened.tag), lpText(opened.position));

const snapshotRootOfTree = (network, maxRange, count, tree) =>
  taggedHash("snapshot", lpText(network), big(maxRange, 8), big(count, 8), tree);

/** Steps 1 and 2: D called this draw, and its seed is its VRF's only output for it. */
export function verifyDrawCall(call, { network, dispatcher, vrfKey }) {
  const of = call.statement;
  if (of.network !== network || of.dispatcher !== dispatcher)
    throw refuse("draw.foreign_call", "the draw call is of another network or dispatcher");
  signedBy(call, dispatcher, "draw.call_signature", "the draw call");
  const alpha = concat(
    tag("draw-seed"),
    lpText(of.network),
    of.job_ref,
    big(of.attempt, 4),
    of.beacon,
    of.snapshot_root,
  );
  const beta = wrapped("draw.seed_proof", "draw seed", () => vrfVerify(vrfKey, of.draw_proof, alpha));
  if (!sameBytes(beta, of.draw_seed))
    throw refuse("draw.seed_proof", "the draw seed is not the output of its proof");
}

export function verifyRecordLink(record, call) {
  const stated = record.statement;
  const of = call.statement;
  if (
    stated.network !== of.network ||
    stated.dispatcher !== of.dispatcher ||
    !sameBytes(stated.job_ref, of.job_ref) ||
    stated.attempt !== of.attempt ||
    !sameBytes(stated.draw_call, hashOf(of)) ||
    !sameBytes(stated.snapshot_root, of.snapshot_root)
  )
    throw refuse("draw.foreign_record", "the draw record is of another draw call");
  signedBy(record, of.dispatcher, "draw.record_signature", "the draw record");
}

/** A claim that answers this call and is the operator's; `beta` is empty for a decline. */
function verifyClaim(claim, call, operator) {
  const said = claim.statement;
  const of = call.statement;
  if (
    said.network !== of.network ||
    !sameBytes(said.job_ref, of.job_ref) ||
    said.attempt !== of.attempt ||
    !sameBytes(said.draw_call, hashOf(of))
  )
    throw refuse("draw.foreign_claim", "the claim answers another draw call");
  if (said.node_id !== operator.node_id) throw refuse("draw.foreign_claim", "the claim is another operator's");
  const declines = said.answer === "decline";
  if (declines !== (said.reason !== "") || declines === said.pi.length > 0)
    throw refuse("draw.claim_form", "a claim has a proof, a decline has a reason");
  signedBy(claim, operator.node_id, "draw.claim_signature", "the claim");
  if (declines) return { claim, beta: new Uint8Array() };
  const beta = wrapped("draw.claim_proof", operator.node_id, () =>
    vrfVerify(operator.vrf_key, said.pi, claimAlpha(of)),
  );
  return { claim, beta };
}

// --- thresholds and seats

function checkMaxRange(maxRange) {
  if (maxRange < 1) throw refuse("sortition.max_range", "max_range lies within 1 and 2^53-1");
}

const wideningPercent = ({ tag: name, position }) => {
  if (name === "suspicion") return 3;
  if (name === "malicious") return { "": 0, before: 10, after: 3 }[position];
  return 0;
};

function threshold(width, maxRange, percent) {
  checkMaxRange(maxRange);
  if (width < 0 || width > maxRange) throw refuse("sortition.width", "a width lies within 0 and max_range");
  const range = BigInt(maxRange);
  const wide = BigInt(width);
  const extra = 2n * ((range * BigInt(percent)) / 100n);
  const found = wide + (extra < wide ? extra : wide);
  return found < range ? found : range;
}

function statusOf(call, operator, claim, maxRange, percent) {
  const oldEnough = operator.since_epoch === 0 || operator.since_epoch + KEY_AGE_EPOCHS <= call.epoch;
  const offered = operator.models.some((model) => sameBytes(model, call.model_id));
  if (!(oldEnough && operator.job_types.includes(call.job_type) && offered)) return "ineligible";
  if (claim === null) return "unanswered";
  if (!claim.beta.length) return "declined";
  const limit = threshold(operator.end - operator.start, maxRange, percent);
  return fromBig(claim.beta) * BigInt(maxRange) < limit << 512n ? "selected" : "not_selected";
}

/** Candidates are [node_id, width] of all eligible operators in snapshot order. */
function fillSeats(drawSeed, attempt, candidates, excluded, wanted) {
  const names = candidates.map(([name]) => name);
  if (new Set(names).size !== names.length)
    throw refuse("sortition.duplicate_operator", "an operator is a candidate twice");
  if (candidates.some(([, width]) => width < 0)) throw refuse("sortition.width", "a width cannot be negative");
  const remaining = new Map(candidates.filter(([name]) => !excluded.has(name)));
  let sum = 0n;
  const bounds = candidates.map(([, width]) => (sum += BigInt(width)));
  const chosen = [];
  for (let n = 0; sum > 0n && n < MAX_FILL_TRIES; n++) {
    if (chosen.length >= wanted || ![...remaining.values()].some((width) => width > 0)) break;
    const hit = fromBig(taggedHash("seat", drawSeed, big(attempt, 4), big(n, 4))) % sum;
    const name = names[bounds.findIndex((bound) => hit < bound)];
    if (remaining.delete(name)) chosen.push(name);
  }
  return [...chosen, ...[...remaining.keys()].slice(0, Math.max(0, wanted - chosen.length))];
}

function seatOrder(drawSeed, attempt, names) {
  if (new Set(names).size !== names.length) throw refuse("sortition.duplicate_operator", "an operator sits twice");
  const keyed = names.map((name) => [
    hex(taggedHash("seat-order", drawSeed, big(attempt, 4), addressBytes(name))),
    name,
  ]);
  return keyed.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)).map(([, name]) => name);
}

const sameList = (a, b) => a.length === b.length && a.every((item, index) => item === b[index]);

export function checkSeats(call, record, operators, entries) {
  const selected = entries.filter((entry) => entry.status === "selected").map((entry) => entry.node_id);
  const open = new Set(entries.filter((entry) => entry.status === "not_selected").map((entry) => entry.node_id));
  const spans = operators
    .map((operator, index) => [operator.node_id, operator.end - operator.start, entries[index].status])
    .filter(([, , status]) => status !== "ineligible");
  const excluded = new Set(spans.map(([name]) => name).filter((name) => !open.has(name)));
  const filled = fillSeats(
    call.draw_seed,
    call.attempt,
    spans.map(([name, width]) => [name, width]),
    excluded,
    Math.max(0, record.min_operators - selected.length),
  );
  const seats = seatOrder(call.draw_seed, call.attempt, [...selected, ...filled]);
  if (!sameList(record.seats, seats)) throw refuse("draw.seats", "the seats are not those that the rule gives");
  if (record.filled !== filled.length)
    throw refuse("draw.filled", "the number of filled seats is not what the rule gives");
}

export function checkSeatOrder(call, record) {
  const counts = record.counts;
  const filled = Math.min(Math.max(0, record.min_operators - counts.selected), counts.not_selected);
  if (record.filled !== filled || record.seats.length !== counts.selected + filled)
    throw refuse("draw.seats", "the number of seats is not what the record's counts give");
  if (
    new Set(record.seats).size !== record.seats.length ||
    !sameList(record.seats, seatOrder(call.draw_seed, call.attempt, record.seats))
  )
    throw refuse("draw.seats", "the seats are not in the order that the rule gives");
}

function checkOpening(call, opened) {
  if (!sameBytes(tagCommitment(opened), call.tag_commitment))
    throw refuse("draw.tag", "the opened tag is not the one that the draw call hides");
}

/** One operator's status against its claim; the claim, or null where there is none. */
function verifyEntry(operator, entry, claim, { call, maxRange, opened }) {
  if (claim === null) {
    if (entry.claim.length) throw refuse("draw.claim_missing", `${entry.node_id}: its claim is not there`);
  } else if (!sameBytes(hashOf(claim.statement), entry.claim))
    throw refuse("draw.claim_unexpected", `${entry.node_id}: the entry names another claim`);
  const verified = claim === null ? null : verifyClaim(claim, call, operator);
  const status = statusOf(call.statement, operator, verified, maxRange, wideningPercent(opened));
  if (entry.status !== status)
    throw refuse("draw.status", `${entry.node_id} is ${entry.status}, not ${status}`);
  if (entry.status === "ineligible" && claim !== null)
    throw refuse("draw.claim_unexpected", `${entry.node_id}: ineligible, and has a claim`);
  return verified;
}

function checkSnapshot(maxRange, operators) {
  for (let i = 1; i < operators.length; i++)
    if (operators[i - 1].node_id >= operators[i].node_id)
      throw refuse("draw.snapshot_order", "snapshot entries are not in ascending node_id order");
  if (new Set(operators.map((operator) => operator.node)).size !== operators.length)
    throw refuse("draw.snapshot_order", "two snapshot entries share a node number");
  if (new Set(operators.map((operator) => hex(operator.vrf_key))).size !== operators.length)
    throw refuse("draw.snapshot_key", "two snapshot entries share a VRF key");
  const bad = (message) => refuse("draw.snapshot_range", message);
  if (maxRange < 1) throw bad("max_range lies within 1 and 2^53-1");
  for (const { node_id: name, start, end } of operators) {
    if (start >= end) throw bad(`${name} has an empty range`);
    if (end > maxRange) throw bad(`${name} reaches beyond 0 … ${maxRange}`);
  }
  const ordered = [...operators].sort((a, b) => a.start - b.start);
  for (let i = 1; i < ordered.length; i++)
    if (ordered[i].start < ordered[i - 1].end)
      throw bad(`${ordered[i - 1].node_id} and ${ordered[i].node_id} overlap`);
}

/** A whole draw, everything in it recomputed. */
export function verifyDraw({ call, record, part, opened, network, dispatcher, vrfKey }) {
  const of = call.statement;
  const stated = record.statement;
  const maxRange = part.max_range;
  const operators = part.entries.map((drawn) => drawn.operator);
  const entries = part.entries.map((drawn) => drawn.entry);
  // 1. Call and seed.
  verifyDrawCall(call, { network, dispatcher, vrfKey });
  // 2. Record belongs to call.
  verifyRecordLink(record, call);
  // 3. The snapshot is the one that the call names.
  checkSnapshot(maxRange, operators);
  const root = snapshotRootOfTree(network, maxRange, operators.length, treeRoot(operators.map(snapshotLeaf)));
  if (!sameBytes(root, of.snapshot_root))
    throw refuse("draw.snapshot_root", "the operators are not those of the snapshot root");
  // 4. Every operator of the snapshot once, in its order.
  operators.forEach((operator, index) => {
    if (entries[index].node_id !== operator.node_id)
      throw refuse("draw.entry_order", `${operator.node_id} is not where the snapshot has it`);
  });
  if (!sameBytes(treeRoot(entries.map(entryLeaf)), stated.entries_root))
    throw refuse("draw.entries_root", "the entries are not those of the draw record");
  for (const status of STATUSES)
    if (entries.filter((entry) => entry.status === status).length !== stated.counts[status])
      throw refuse("draw.counts", "the record's counts are not those of its entries");
  // 5. The opened tag is the one that was hidden in the call.
  checkOpening(of, opened);
  // 6. Every claim, and the status that follows from it.
  for (const { operator, entry, claim } of part.entries) verifyEntry(operator, entry, claim, { call, maxRange, opened });
  // 7. The seats that follow from the statuses.
  checkSeats(of, stated, operators, entries);
}

/** The leaves of a whole draw with this operator's where it says that it is: the same root as a path of the others gives. */
function wholeTree(part, { index, operator, entry }) {
  if (index >= part.entries.length) throw refuse("merkle.index_out_of_range", "leaf index is beyond the tree");
  const operators = part.entries.map((one) => snapshotLeaf(one.operator));
  const entries = part.entries.map((one) => entryLeaf(one.entry));
  operators[index] = snapshotLeaf(operator);
  entries[index] = entryLeaf(entry);
  return { operators, entries };
}

/** One seated operator, from its own entry and the paths to both roots. */
export function verifySeat({ call, record, part, drawn, opened }) {
  const of = call.statement;
  const count = total(record.counts);
  const { operator, entry, claim, index } = drawn;
  const name = operator.node_id;
  const paths = BigInt(part.entries.length) === count ? wholeTree(part, drawn) : null;
  // 1. It has a seat.
  if (!record.seats.includes(name)) throw refuse("draw.not_seated", `${name} has no seat in the draw record`);
  // 2. Its registration is in the snapshot, its entry in the record.
  if (entry.node_id !== name) throw refuse("draw.entry_order", `${name} has another operator's entry`);
  const tree = wrapped("draw.snapshot_root", name, () =>
    paths === null
      ? inclusionRoot(snapshotLeaf(operator), index, count, drawn.operator_path)
      : treeRoot(paths.operators),
  );
  if (!sameBytes(snapshotRootOfTree(of.network, part.max_range, count, tree), of.snapshot_root))
    throw refuse("draw.snapshot_root", `${name} is not in the snapshot`);
  wrapped("draw.entries_root", name, () => {
    if (paths === null) return verifyInclusion(entryLeaf(entry), index, count, drawn.entry_path, record.entries_root);
    if (!sameBytes(treeRoot(paths.entries), record.entries_root))
      throw refuse("merkle.root_mismatch", "inclusion path does not lead to the root");
  });
  // 3. Its claim and status.
  checkOpening(of, opened);
  const verified = verifyEntry(operator, entry, claim, { call, maxRange: part.max_range, opened });
  if (verified === null || !["selected", "not_selected"].includes(entry.status))
    throw refuse("draw.status", `${name} sits, and is ${entry.status}`);
  if (entry.status === "not_selected" && !record.filled)
    throw refuse("draw.status", `${name} sits, and no seat was filled`);
  return {
    operator,
    entry,
    claim: verified.claim,
    beta: verified.beta,
    seat: record.seats.indexOf(name),
    filledChecked: entry.status === "selected",
  };
}
