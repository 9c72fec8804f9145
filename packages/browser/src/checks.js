/**
 * The numbered checks of an answer file (docs/spec/08-receipts.md, "Checks, in order"). Each takes a Case and returns what
 * it saw as [text, detail], throws AosError for what is wrong, or Skip for what it cannot check. Codes, texts and order of
 * the refusals are those of `aos.core.checks`.
 */
import { sha256 } from "@noble/hashes/sha2.js";
import {
  addressBytes,
  big,
  hex,
  lp,
  sameBytes,
  short,
  taggedHash,
  utf8,
} from "./bytes.js";
import { checkSigned } from "./crypto.js";
import {
  alphaHash,
  checkSeatOrder,
  checkSeats,
  samplingSeed,
  total,
  verifyDraw,
  verifyDrawCall,
  verifyRecordLink,
  verifySeat,
} from "./draw.js";
import { Skip, refuse } from "./errors.js";
import { canonical } from "./json.js";
import { hashOf, readRequest } from "./statements.js";
import { checkImage, checkReceived, references, verifyAnswerStatement, verifyBoot } from "./tee.js";

const MAX_RECEIPT_BYTES = 2048;
const SIGNATURE_CHARACTERS = 87;
const MAX_SKEW_MS = 60_000;
const MAX_EPOCHS = 1 << 20;
const DISPATCHER = 1;

/** One answer under judgement: what several checks need, worked out once. */
export class Case {
  constructor(answer, trust, policy) {
    this.answer = answer;
    this.trust = trust;
    this.policy = policy;
    this.core = answer.receipt.core;
    this.call = answer.draw.draw_call;
    this.record = answer.draw.draw_record;
    this.firstCall = answer.draw.first_draw ?? this.call;
    this.calls = answer.draw.first_draw === null ? [this.call] : [this.firstCall, this.call];
    this.receipts = [answer.receipt, ...answer.peers];
    this.complete = BigInt(answer.draw.entries.length) === total(this.record.statement.counts);
    this.drawn = new Map(answer.draw.entries.map((entry) => [entry.operator.node_id, entry]));
    const { tag_salt: salt, tag, position } = answer.receipt.countersign;
    this.opened = { salt, tag, position };
    this.vrfKey = trust?.dispatchers.find((one) => one.address === this.core.dispatcher)?.vrf_key ?? null;
    /** Operators in proven seats that signed one result; `agree-1` counts them. */
    this.agreeing = 1;
    /** What the enclave's document says, once `tee-2` has believed it. */
    this.enclave = null;
  }

  /** The saved request. Throws `encoding.*`, `field.*`, each time. */
  get request() {
    return (this.readRequest ??= readRequest(utf8(this.answer.request)));
  }

  trusted() {
    if (this.trust === null) throw new Skip("no trust file (--trust FILE)");
    return this.trust;
  }

  seatOf(operator) {
    const drawn = this.drawn.get(operator);
    if (!drawn) throw refuse("draw.not_seated", `${operator} is not among the draw's entries`);
    return verifySeat({
      call: this.call,
      record: this.record.statement,
      part: this.answer.draw,
      drawn,
      opened: this.opened,
    });
  }
}

function equal(a, b) {
  if (a instanceof Uint8Array && b instanceof Uint8Array) return sameBytes(a, b);
  if (a?.raw && b?.raw) return sameBytes(canonical(a.raw), canonical(b.raw));
  return a === b;
}

/** Refuse with `code` where the two values of a pair differ; the error names it. */
function same(code, message, pairs) {
  for (const [name, [left, right]] of Object.entries(pairs))
    if (!equal(left, right)) throw refuse(code, `${message}: ${name} differs`);
}

/** The named members of both, as pairs for `same`. */
const both = (a, b, ...names) => Object.fromEntries(names.map((name) => [name, [a[name], b[name]]]));
const ascending = (names) => names.every((name, index) => index === 0 || names[index - 1] < name);

// --- form, trust and signatures

export function file1(one) {
  const { entries } = one.answer.draw;
  const indices = entries.map((entry) => entry.index);
  if (!ascending(indices)) throw refuse("file.draw_entries", "the draw's entries are not in their order, each once");
  if (one.complete) {
    if (!indices.every((index, place) => index === place))
      throw refuse("file.draw_entries", "the draw's entries do not have every index");
    if (entries.some((entry) => entry.operator_path.length || entry.entry_path.length))
      throw refuse("file.draw_entries", "a complete draw carries no paths");
  } else {
    const present = new Set(entries.map((entry) => entry.operator.node_id));
    const seats = new Set(one.record.statement.seats);
    if (present.size !== seats.size || ![...present].every((name) => seats.has(name)))
      throw refuse("file.draw_entries", "a shortened draw carries the seated operators, and no other");
  }
  const names = one.answer.commit.openings.map((opening) => opening.commit.statement.node_id);
  if (!ascending(names)) throw refuse("file.openings", "the openings are not ascending by node_id, each once");
  const operators = one.receipts.map((receipt) => receipt.core.operator);
  if (!names.every((name) => operators.includes(name)))
    throw refuse("file.openings", "an opening is of no receipt in the file");
  return ["strict canonical JSON, exact members"];
}

export function trust1(one) {
  const trust = one.trusted();
  if (one.core.network !== trust.network)
    throw refuse("trust.network", `the answer is of network ${one.core.network}, not ${trust.network}`);
  if (one.vrfKey === null)
    throw refuse("trust.dispatcher", `dispatcher ${one.core.dispatcher} is not in the trust file`);
  return ["network and dispatcher are trusted", trust.network];
}

export function receipt1(one) {
  operatorSignature(one.answer.receipt);
  const { operator } = one.core;
  return ["canonical form, operator signature", `${operator.slice(0, 6)}…${operator.slice(-4)}`];
}

function operatorSignature({ core, signature }) {
  // The clock's entries are not counted: how many there are follows from the network's size, not from the answer.
  const bare = new Map(core.raw).set("clock", new Map());
  const size = canonical(bare).length + 2 * SIGNATURE_CHARACTERS;
  if (size > MAX_RECEIPT_BYTES)
    throw refuse("receipt.size", `core and signatures are ${size} bytes, more than ${MAX_RECEIPT_BYTES}`);
  checkSigned(core, signature, core.operator);
}

export function receipt2(one) {
  checkCountersign(one.answer.receipt);
  return ["dispatcher's countersign: this receipt, draw and commit set"];
}

function checkCountersign({ core, signature, countersign: sign, countersign_signature }) {
  same("receipt.countersign", "the countersign is of another receipt", {
    ...both(sign, core, "network", "dispatcher"),
    receipt: [sign.receipt, hashOf(core)],
    receipt_signature: [sign.receipt_signature, sha256(signature)],
    ...both(sign, core, "draw_record", "commit_set"),
  });
  checkSigned(sign, countersign_signature, core.dispatcher);
}

// --- request, answer and acceptance

export function io1(one) {
  const { request, core, answer } = one;
  if (!sameBytes(taggedHash("request", answer.nonce, utf8(answer.request)), core.request_hash))
    throw refuse("io.request_hash", "the request's hash is not that of the saved request bytes");
  same("io.request_network", "the request is of another network", both(request, core, "network", "dispatcher"));
  return ["request hash equals the saved request bytes"];
}

function tokenBytes(tokens) {
  const bytes = new Uint8Array(4 * tokens.length);
  const view = new DataView(bytes.buffer);
  tokens.forEach((token, index) => view.setUint32(4 * index, token, true));
  return bytes;
}

export function io2({ answer, core }) {
  if (!sameBytes(taggedHash("response", answer.nonce, utf8(answer.text)), core.response_hash))
    throw refuse("io.response_hash", "the response hash is not that of the saved text");
  if (!sameBytes(taggedHash("tokens", answer.nonce, tokenBytes(answer.tokens)), core.tokens_hash))
    throw refuse("io.tokens_hash", "the tokens hash is not that of the saved tokens");
  if (answer.tokens.length !== core.n_out)
    throw refuse("io.n_out", "the number of tokens is not that of the saved tokens");
  return [`text and ${core.n_out} tokens equal the signed hashes`];
}

export function params1(one) {
  const { core, answer } = one;
  const { job } = one.request;
  if (!sameBytes(taggedHash("params", answer.nonce, canonical(job.params.raw)), core.params_hash))
    throw refuse("params.hash", "the parameters are not those of the request");
  if (!sameBytes(job.model_id, core.model_id)) throw refuse("params.model", "the model is not the requested one");
  if (core.n_out > job.params.max_tokens || (core.finish_reason === "stop" && core.n_out === 0))
    throw refuse("params.max_tokens", "the number of tokens is not possible under the request");
  if (core.finish_reason === "cancelled") throw refuse("params.finish_reason", "a cancelled run has no receipt");
  if (job.params.stop.some((stop) => stop && answer.text.includes(stop)))
    throw refuse("params.stop", "the text goes on past a stop string");
  const enclave = [core.tee !== "", core.answer_statement.length > 0, core.state_root.length === 0];
  if (enclave.some((sign) => sign !== (job.tag === "tee")))
    throw refuse("params.job_type", "the receipt is not of the requested job type");
  return ["model and parameters are the requested ones", short(core.model_id)];
}

export function accept1(one) {
  const { core, request, answer } = one;
  const accepted = answer.acceptance.statement;
  checkSigned(accepted, answer.acceptance.signature, core.dispatcher);
  same("accept.foreign", "the acceptance is of another job", {
    ...both(accepted, core, "network", "dispatcher", "job_ref", "request_hash"),
    nonce: [accepted.nonce, answer.nonce],
    issued_at: [accepted.issued_at, request.issued_at],
  });
  // A first run has the accepted tag; a re-run or the next job of a flagged user has the flag's.
  const wrong = one.opened.position === "" ? one.opened.tag !== accepted.tag : one.opened.tag === "";
  if (wrong) throw refuse("accept.tag", "the run's tag is not the accepted one");
  if (one.firstCall.statement.epoch < accepted.epoch)
    throw refuse("accept.epoch", "the first draw is of an epoch before the acceptance");
  return [`accepted by the dispatcher in epoch ${accepted.epoch}`];
}

// --- who was drawn, and with which seed

function epochOf(time, trust) {
  if (time < trust.genesis) throw refuse("beacon.before_genesis", "the time is before the network began");
  return (BigInt(time) - BigInt(trust.genesis)) / BigInt(trust.epoch_ms);
}

export function beacon1(one) {
  const trust = one.trusted();
  const accepted = one.answer.acceptance.statement;
  if (BigInt(accepted.epoch) !== epochOf(accepted.issued_at, trust))
    throw refuse("beacon.epoch", "the accepted epoch is not that of the issue time");
  if (BigInt(one.firstCall.statement.epoch) > epochOf(accepted.expires_at, trust))
    throw refuse("beacon.epoch", "the first draw is of an epoch after the job expired");
  for (const { statement } of one.calls) {
    if (statement.beacon_source !== "dispatcher") throw new Skip("the beacon is a chain's; no chain is read here");
    if (statement.epoch >= trust.beacon.length)
      throw refuse("beacon.epoch", "the epoch is beyond the published chain");
    if (statement.epoch >= MAX_EPOCHS) throw refuse("beacon.epoch", `epochs are 0 to ${MAX_EPOCHS - 1}`);
    let value = statement.beacon;
    for (let step = 0; step <= statement.epoch; step++) value = taggedHash("beacon", value);
    if (!sameBytes(value, trust.beacon.anchor))
      throw refuse("beacon.mismatch", "the beacon does not lead to its anchor");
  }
  return ["beacon leads to the published anchor (dispatcher's: it could foresee it)"];
}

export function registry1(one) {
  const trust = one.trusted();
  const named = (root) => trust.registry_roots.some((known) => sameBytes(known, root));
  if (!one.calls.every((call) => named(call.statement.snapshot_root)))
    throw new Skip("the trust file does not name this registry root; it is the dispatcher's word");
  return ["registry root is trusted", short(one.call.statement.snapshot_root)];
}

const whoCalls = (one) => ({ network: one.core.network, dispatcher: one.core.dispatcher, vrfKey: one.vrfKey });
const noVrfKey = () => new Skip("the dispatcher's VRF key is not known without a trust file");

export function draw1(one) {
  const { counts, seats } = one.record.statement;
  // Whatever else the file leaves out, it holds the call and its seed.
  if (one.vrfKey !== null) verifyDrawCall(one.call, whoCalls(one));
  if (!one.complete) {
    for (const operator of seats) one.seatOf(operator);
    throw new Skip("only the seated operators' entries are in the file");
  }
  if (one.vrfKey === null) throw noVrfKey();
  verifyDraw({ call: one.call, record: one.record, part: one.answer.draw, opened: one.opened, ...whoCalls(one) });
  const asked = total(counts) - BigInt(counts.ineligible);
  const answered = asked - BigInt(counts.unanswered);
  return [`draw complete: ${answered} of ${asked} eligible operators answered, ${seats.length} seated`];
}

export function vrf1(one) {
  const { core } = one;
  const call = one.call.statement;
  const record = one.record.statement;
  checkSigned(call, one.call.signature, core.dispatcher);
  verifyRecordLink(one.record, one.call);
  same("vrf.foreign_draw", "the draw is of another run", {
    ...both(call, core, "network", "dispatcher", "job_ref", "attempt", "model_id"),
    job_type: [call.job_type, one.request.job.tag],
    draw_record: [hashOf(record), core.draw_record],
    draw_counts: [record.counts, core.draw_counts],
    min_operators: [record.min_operators, one.request.min_operators],
  });
  const proven = seat(one, one.answer.receipt);
  checkSeatOrder(call, record);
  if (!proven)
    throw new Skip("a filled seat: its rule needs every entry, and the file holds only the seated ones");
  let how = "below threshold";
  if (core.vrf.status === "filled") {
    how = "filled by the public rule";
    const { entries } = one.answer.draw;
    checkSeats(
      call,
      record,
      entries.map((entry) => entry.operator),
      entries.map((entry) => entry.entry),
    );
  }
  return [`operator drawn by VRF, proof valid, ${how}`];
}

/** An operator's place and role in the draw; true where the file proves that the rule gave it the seat. */
function seat(one, { core }) {
  const found = one.seatOf(core.operator);
  same("vrf.receipt", "the receipt's VRF fields are not those of the draw", {
    node: [core.node, found.operator.node],
    key: [core.vrf.key, found.operator.vrf_key],
    pi: [core.vrf.pi, found.claim.statement.pi],
    beta: [core.vrf.beta, found.beta],
    alpha_hash: [core.vrf.alpha_hash, alphaHash(one.call.statement)],
    status: [core.vrf.status, found.entry.status === "selected" ? "selected" : "filled"],
  });
  let expected = "blind";
  if (!one.request.blind) {
    if (found.seat === 0) expected = "executor";
    else if (one.request.job.tag === "opml") expected = "checker";
  }
  if (core.role !== expected)
    throw refuse("vrf.role", `seat ${found.seat} is the ${expected}'s, not a ${core.role}'s`);
  if (core.stream_head.length > 0 !== (core.role === "executor"))
    throw refuse("vrf.stream", "only the executor of a streamed run has a stream head");
  return found.filledChecked || one.complete;
}

export function seed1(one) {
  const { core } = one;
  const own = one.request.job.params.seed;
  const first = one.answer.draw.first_draw;
  if ((core.attempt === 1) !== (first === null))
    throw refuse("seed.first_draw", "attempts above 1 carry the draw call of attempt 1, and no other does");
  if (first !== null) {
    const said = first.statement;
    checkSigned(said, first.signature, core.dispatcher);
    same("seed.first_draw", "the first draw is of another job", {
      ...both(said, core, "network", "dispatcher", "job_ref"),
      attempt: [said.attempt, 1],
      ...both(said, core, "model_id"),
    });
    if (said.epoch > one.call.statement.epoch)
      throw refuse("seed.first_draw", "the first draw is of a later epoch than this one");
  }
  const source = own === null ? "draw" : "request";
  const seed = own ?? samplingSeed(one.firstCall.statement.draw_seed);
  if (core.seed_source !== source || core.sampling_seed !== seed)
    throw refuse("seed.value", `the sampling seed is not what the ${source} gives`);
  if (first !== null || own === null) {
    if (one.vrfKey === null) throw noVrfKey();
    verifyDrawCall(one.firstCall, whoCalls(one));
  }
  return [`sampling seed follows from the ${source}`];
}

// --- what was committed and agreed

export function commit1(one) {
  const { core } = one;
  const set = one.answer.commit.commit_set;
  const said = set.statement;
  checkSigned(said, set.signature, core.dispatcher);
  same("commit.foreign_set", "the commit set is of another run", {
    ...both(said, core, "network", "dispatcher", "job_ref", "attempt", "draw_record"),
    commit_set: [hashOf(said), core.commit_set],
  });
  const committed = said.commits.map((entry) => entry.node_id);
  if (!ascending(committed)) throw refuse("commit.order", "the commit set is not ascending by node_id, each once");
  const { seats } = one.record.statement;
  const accounted = [...committed, ...said.missing].sort();
  const wanted = [...seats].sort();
  if (accounted.length !== wanted.length || !accounted.every((name, index) => name === wanted[index]))
    throw refuse("commit.seats", "the commit set does not account for every seat once");
  checkOpening(one, one.answer.receipt);
  return [`${committed.length} of ${seats.length} seats committed before any reveal; this one opens`];
}

function checkOpening(one, { core }) {
  const { openings, commit_set: set } = one.answer.commit;
  const found = openings.find((opening) => opening.commit.statement.node_id === core.operator);
  if (!found) throw refuse("commit.missing", `there is no opening for ${core.operator}`);
  const { commit, salt } = found;
  checkSigned(commit.statement, commit.signature, core.operator);
  const held = set.statement.commits.findLast((entry) => entry.node_id === core.operator)?.commit;
  if (!held || !sameBytes(held, hashOf(commit.statement)))
    throw refuse("commit.not_in_set", `the commit of ${core.operator} is not in the commit set`);
  const result = core.state_root.length ? core.state_root : core.answer_statement;
  if (result.length !== 32) throw refuse("hash.length", "result must be 32 bytes");
  const expected = taggedHash(
    "commitment",
    core.job_ref,
    big(core.attempt, 4),
    addressBytes(core.operator),
    core.draw_record,
    lp(result),
    core.tokens_hash,
    salt,
  );
  same("commit.opening", "the commitment does not open to this result", {
    ...both(commit.statement, core, "network", "job_ref", "attempt", "draw_record"),
    commitment: [commit.statement.commitment, expected],
  });
}

export function agree1(one) {
  const { core } = one;
  const { peers, receipt } = one.answer;
  const ours = receipt.countersign;
  const { outcome } = ours;
  if (outcome === "disputed" && one.answer.resolution === null)
    throw refuse("agree.disputed", "the dispatcher's countersign says that results differ");
  const committed = one.answer.commit.commit_set.statement.commits.length;
  if (outcome === "agreed" && (core.tee !== "" || committed < 2))
    throw refuse("agree.outcome", "the dispatcher's countersign says agreed, and there was nothing to compare");
  if (!peers.length) throw new Skip("no other operator's receipt is in the file");
  const { seats } = one.record.statement;
  const names = [core.operator, ...peers.map((peer) => peer.core.operator)];
  if (new Set(names).size !== names.length) throw refuse("agree.twice", "one operator appears twice");
  const order = names.map((name) => seats.indexOf(name));
  if (order.some((place, index) => index > 0 && place < order[index - 1]))
    throw refuse("agree.order", "the other receipts are not in seat order");
  let proven = Number(seat(one, receipt));
  for (const peer of peers) {
    operatorSignature(peer);
    checkCountersign(peer);
    const other = peer.core;
    same(
      "agree.foreign",
      `the receipt of ${other.operator} is of another run`,
      both(
        other,
        core,
        "network",
        "dispatcher",
        "job_ref",
        "attempt",
        "request_hash",
        "params_hash",
        "model_id",
        "sampling_seed",
        "draw_record",
        "draw_counts",
        "commit_set",
      ),
    );
    same("agree.countersign", `the countersign of ${other.operator} says otherwise`, {
      ...both(peer.countersign, ours, "tag", "position", "tag_salt"),
      outcome: [peer.countersign.outcome, outcome],
    });
    proven += Number(seat(one, peer));
    checkOpening(one, peer);
    if (core.tee === "" && !sameBytes(other.state_root, core.state_root))
      throw refuse("agree.state_root", `${other.operator} committed another state root`);
  }
  if (core.tee !== "") throw new Skip("enclave answers are not compared bit by bit");
  for (const peer of peers)
    same(
      "agree.result",
      `${peer.core.operator} signed another result under the same state root`,
      both(
        peer.core,
        core,
        "response_hash",
        "tokens_hash",
        "prompt_tokens_hash",
        "n_prompt",
        "n_out",
        "finish_reason",
        "engine",
      ),
    );
  if (!["agreed", "disputed"].includes(outcome))
    throw refuse("agree.outcome", `the dispatcher's countersign says ${outcome}`);
  if (proven < 2)
    throw new Skip("the same result, but filled seats: only a whole draw proves that the rule gave them");
  one.agreeing = proven;
  const who = proven === committed ? `${proven} operators` : `${proven} of ${committed} operators that`;
  return [`${who} committed the same state root`, short(core.state_root)];
}

export function resolve1(one) {
  const { core } = one;
  const signed = one.answer.resolution;
  if (signed === null) throw new Skip("no dispute was resolved about this job");
  const said = signed.statement;
  checkSigned(said, signed.signature, core.dispatcher);
  same("resolve.foreign", "the resolution is of another job, attempt or result", {
    ...both(said, core, "network", "dispatcher", "job_ref", "attempt", "state_root"),
    outcome: [one.answer.receipt.countersign.outcome, "disputed"],
  });
  const named = new Map(said.claims.map((claim) => [hex(claim.claim), claim]));
  for (const receipt of one.receipts) {
    const claim = named.get(hex(hashOf(receipt.core)));
    const { operator, state_root: root } = receipt.core;
    if (!claim || claim.operator !== operator || !sameBytes(claim.state_root, root) || claim.standing !== "stands")
      throw refuse("resolve.claim", `the resolution does not say that ${operator} stands`);
  }
  const committed = one.answer.commit.commit_set.statement.commits.map((entry) => entry.node_id);
  const operators = said.claims.map((claim) => claim.operator);
  if (
    named.size !== said.claims.length ||
    new Set(operators).size !== operators.length ||
    !operators.every((name) => committed.includes(name))
  )
    throw refuse("resolve.claims", "the resolution names claims that were not committed, or one twice");
  const ours = (claim) => sameBytes(claim.state_root, core.state_root);
  const lost = said.claims.filter((claim) => claim.standing !== "stands");
  const convicted = lost.filter((claim) => claim.standing === "convicted");
  if (
    lost.some((claim) => claim.standing === "open" || ours(claim)) ||
    convicted.some((claim) => !claim.evidence.length)
  )
    throw refuse("resolve.standing", "a claim is open, or convicted without a transcript");
  if (said.claims.some((claim) => claim.standing === "stands" && !ours(claim)))
    throw refuse("resolve.standing", "two results stand");
  return [
    `${lost.length} differing result${lost.length === 1 ? "" : "s"} lost, ${convicted.length} convicted; ` +
      "aos referee judges the transcripts again",
    convicted.map((claim) => claim.operator).join(" "),
  ];
}

export function clock1(one) {
  const { answer } = one;
  const commits = new Map(answer.commit.openings.map(({ commit }) => [commit.statement.node_id, commit.statement]));
  for (const { core, countersign } of one.receipts) {
    const commit = commits.get(core.operator);
    if (!commit) throw refuse("commit.missing", `there is no opening for ${core.operator}`);
    const events = [
      ["acceptance", DISPATCHER, answer.acceptance.statement.clock],
      ...one.calls.map((call) => ["draw call", DISPATCHER, call.statement.clock]),
      ["draw record", DISPATCHER, one.record.statement.clock],
      ["commit", core.node, commit.clock],
      ["commit set", DISPATCHER, answer.commit.commit_set.statement.clock],
      ["receipt", core.node, core.clock],
      ["countersign", DISPATCHER, countersign.clock],
    ];
    for (let i = 1; i < events.length; i++) {
      const [before, sender, earlier] = events[i - 1];
      const [after, receiver, later] = events[i];
      const counted = earlier.get(sender) ?? 0;
      if (counted < 1 || (later.get(sender) ?? 0) < counted + (sender === receiver ? 1 : 0))
        throw refuse("clock.order", `the ${after} of ${core.operator} has not counted the ${before}`);
    }
    // Wall clocks prove nothing; two that contradict each other beyond what the link allows were not both read.
    const issued = answer.acceptance.statement.issued_at;
    const received = countersign.received_at;
    if (
      issued - MAX_SKEW_MS > core.started_at ||
      core.started_at > core.finished_at ||
      core.finished_at > received + MAX_SKEW_MS ||
      issued > received + MAX_SKEW_MS
    )
      throw refuse("clock.times", `the times of ${core.operator} do not follow acceptance and precede receipt`);
  }
  return ["acceptance → draw → commit → reveal → receipt are causally ordered"];
}

// --- enclaves

export function tee1(one) {
  const { core } = one;
  const { evidence } = one.answer;
  if (core.tee === "") {
    if (evidence !== null) throw refuse("tee.unexpected", "an opML answer carries no enclave evidence");
    throw new Skip("no enclave: an opML answer");
  }
  if (evidence === null)
    throw refuse("tee.no_evidence", "the receipt names an enclave and the file holds no evidence");
  same("tee.not_bound", "the enclave's answer statement is of another answer", {
    answer_statement: [hashOf(evidence.answer), core.answer_statement],
    ...both(
      evidence.answer,
      core,
      "operator",
      "job_ref",
      "attempt",
      "request_hash",
      "response_hash",
      "tokens_hash",
      "prompt_tokens_hash",
      "model_id",
      "params_hash",
      "sampling_seed",
      "engine",
      "n_prompt",
      "n_out",
      "finish_reason",
    ),
  });
  same("tee.not_bound", "the enclave's boot statement is of another network, kind or draw key", {
    ...both(evidence.boot, core, "network", "tee"),
    vrf_key: [evidence.boot.vrf_key, core.vrf.key],
  });
  verifyAnswerStatement(evidence);
  return [
    `answer statement ${evidence.answer.sequence} of the boot, signed by the enclave's key`,
    short(hashOf(evidence.boot)),
  ];
}

export function tee2(one) {
  const { core } = one;
  const { evidence, receipt } = one.answer;
  if (core.tee === "") throw new Skip("no enclave: an opML answer");
  if (evidence === null) throw new Skip("there is no evidence to judge (tee-1)");
  if (!one.policy.accept_tee.includes(core.tee))
    throw refuse("tee.policy", `policy "${one.policy.name}" does not accept a TEE of kind ${core.tee}`);
  const atMs = receipt.countersign.received_at;
  const claims = verifyBoot(evidence, { anchors: references(one.trusted(), core.tee).anchors, atMs });
  checkReceived(evidence, claims, atMs);
  one.enclave = claims;
  const label = claims.simulated ? "SIMULATED, NO HARDWARE: " : "";
  return [`${label}document, ${claims.chain.length} certificates to a trusted root`, short(claims.anchor)];
}

export function tee3(one) {
  if (one.core.tee === "") throw new Skip("no enclave: an opML answer");
  if (one.enclave === null) throw new Skip("nobody that is believed has measured the image (tee-2)");
  checkImage(one.enclave, references(one.trusted(), one.core.tee).images);
  return ["PCR0, PCR1 and PCR2 are those of a named image", short(one.enclave.pcrs.get(0))];
}

// --- re-execution

export function local1() {
  throw new Skip("not re-executed here (use --replay --model PATH)");
}
