/** What is in an answer file and a trust file, member by member (docs/spec/06, 08, 10, 13). */
import { sameBytes, taggedHash } from "./bytes.js";
import {
  address,
  attempt,
  boolean,
  bytes,
  bytes32,
  bytesUpTo,
  clock,
  decimal64,
  integer,
  label,
  list,
  networkId,
  object,
  oneOf,
  optional,
  optionalBytes32,
  pattern,
  signature,
  textOrList,
  textUpTo,
  uint,
  uint32,
} from "./codec.js";
import { AosError, refuse } from "./errors.js";
import { canonical, parseCanonical, parseStrict } from "./json.js";
import { MAX_NOTE_BYTES, readLogKeys } from "./log.js";
import { AWS_NITRO } from "./nitro.js";

const MAX_ANSWER_BYTES = 8 << 20;
const MAX_TRUST_BYTES = 1 << 20;
const MAX_REQUEST_BYTES = 1 << 20;

const jobType = oneOf("opml", "tee");
const jobTag = oneOf("", "suspicion", "malicious");
const position = oneOf("", "before", "after");
const finishReason = oneOf("stop", "length", "cancelled", "numeric_trap");
const nodeNumber = integer(2, 2 ** 31);

const params = object({
  temperature: integer(0, 10_000_000),
  top_p: integer(1, 1_000_000),
  top_k: integer(0, 1_000_000),
  min_p: integer(0, 1_000_000),
  repeat_penalty: integer(1, 10_000_000),
  max_tokens: integer(1, 1_000_000),
  stop: list(textUpTo(256), 16),
  seed: optional(decimal64),
});

const message = object({ role: textUpTo(64), content: textUpTo(1_000_000) });

const request = object(
  {
    network: networkId,
    dispatcher: address,
    project: textUpTo(128),
    user: textUpTo(256),
    job: object({
      tag: jobType,
      prompt: textOrList(textUpTo(1_000_000), list(message, 4096)),
      model: textUpTo(256),
      model_id: bytes32,
      params,
    }),
    min_operators: integer(1, 64),
    blind: boolean,
    nonce_source: oneOf("client", "dispatcher"),
    issued_at: uint,
  },
  "aos.request",
);

const signed = (statement) => object({ statement, signature });

const acceptance = object(
  {
    network: networkId,
    dispatcher: address,
    job_ref: bytes32,
    request_hash: bytes32,
    nonce: bytes32,
    tag: jobTag,
    epoch: uint,
    expires_at: uint,
    issued_at: uint,
    clock,
  },
  "aos.acceptance",
);

const snapshotEntry = object({
  node_id: address,
  node: nodeNumber,
  vrf_key: bytes32,
  start: uint,
  end: uint,
  stake: uint,
  job_types: list(jobType, 2),
  models: list(bytes32, 64),
  since_epoch: uint,
});

const drawCall = object(
  {
    network: networkId,
    dispatcher: address,
    job_ref: bytes32,
    attempt,
    epoch: uint,
    snapshot_root: bytes32,
    beacon: bytes32,
    beacon_source: oneOf("dispatcher", "chain"),
    draw_seed: bytes(64),
    draw_proof: bytes(80),
    job_type: jobType,
    model_id: bytes32,
    tag_commitment: bytes32,
    deadline: uint,
    clock,
  },
  "aos.draw_call",
);

const vrfClaim = object(
  {
    network: networkId,
    node_id: address,
    job_ref: bytes32,
    attempt,
    draw_call: bytes32,
    answer: oneOf("claim", "decline"),
    reason: oneOf("", "draining", "capacity", "model", "job_type", "stale"),
    pi: bytes(0, 80),
  },
  "aos.vrf_claim",
);

const drawEntry = object({
  node_id: address,
  status: oneOf("selected", "not_selected", "declined", "unanswered", "ineligible"),
  claim: optionalBytes32,
});

const drawCounts = object({
  selected: uint,
  not_selected: uint,
  declined: uint,
  unanswered: uint,
  ineligible: uint,
});

const drawRecord = object(
  {
    network: networkId,
    dispatcher: address,
    job_ref: bytes32,
    attempt,
    draw_call: bytes32,
    snapshot_root: bytes32,
    entries_root: bytes32,
    counts: drawCounts,
    seats: list(address, 64),
    filled: uint,
    min_operators: integer(1, 64),
    clock,
  },
  "aos.draw_record",
);

const commit = object(
  {
    network: networkId,
    node_id: address,
    job_ref: bytes32,
    attempt,
    draw_record: bytes32,
    commitment: bytes32,
    clock,
  },
  "aos.commit",
);

const commitSet = object(
  {
    network: networkId,
    dispatcher: address,
    job_ref: bytes32,
    attempt,
    draw_record: bytes32,
    commits: list(object({ node_id: address, commit: bytes32 }), 64),
    missing: list(address, 64),
    clock,
  },
  "aos.commit_set",
);

const core = object(
  {
    network: networkId,
    dispatcher: address,
    operator: address,
    node: nodeNumber,
    job_ref: bytes32,
    attempt,
    role: oneOf("executor", "checker", "blind"),
    request_hash: bytes32,
    response_hash: bytes32,
    tokens_hash: bytes32,
    prompt_tokens_hash: bytes32,
    model_id: bytes32,
    params_hash: bytes32,
    sampling_seed: decimal64,
    seed_source: oneOf("request", "draw"),
    engine: label,
    n_prompt: uint32,
    n_out: uint32,
    finish_reason: finishReason,
    state_root: optionalBytes32,
    tee: oneOf("", "simulated", "nitro", "tdx", "snp"),
    answer_statement: optionalBytes32,
    stream_head: optionalBytes32,
    vrf: object({
      key: bytes32,
      alpha_hash: bytes32,
      pi: bytes(80),
      beta: bytes(64),
      status: oneOf("selected", "filled"),
    }),
    draw_record: bytes32,
    draw_counts: drawCounts,
    commit_set: bytes32,
    clock,
    started_at: uint,
    finished_at: uint,
  },
  "aos.receipt",
);

const countersign = object(
  {
    network: networkId,
    dispatcher: address,
    receipt: bytes32,
    receipt_signature: bytes32,
    draw_record: bytes32,
    commit_set: bytes32,
    tag: jobTag,
    position,
    tag_salt: bytes32,
    outcome: oneOf("agreed", "disputed", "single"),
    received_at: uint,
    clock,
  },
  "aos.countersign",
);

const receipt = object({ core, signature, countersign, countersign_signature: signature });

const path = list(bytes32, 64);

const draw = object({
  draw_call: signed(drawCall),
  draw_record: signed(drawRecord),
  first_draw: optional(signed(drawCall)),
  max_range: uint,
  entries: list(
    object({
      index: uint32,
      operator: snapshotEntry,
      entry: drawEntry,
      claim: optional(signed(vrfClaim)),
      operator_path: path,
      entry_path: path,
    }),
    4096,
  ),
});

const teeBoot = object(
  {
    network: networkId,
    tee: oneOf("simulated", "nitro"),
    operator: address,
    vrf_key: bytes32,
    enclave_key: bytes32,
    engine: label,
    engine_digest: bytes32,
    model_id: bytes32,
    policy: bytes32,
    nonce: bytes32,
    booted_at: uint,
    not_after: uint,
  },
  "aos.tee.boot",
  2,
);

const teeAnswer = object(
  {
    boot: bytes32,
    operator: address,
    sequence: integer(1, Number.MAX_SAFE_INTEGER),
    previous: optionalBytes32,
    job_ref: bytes32,
    attempt: uint32,
    request_hash: bytes32,
    response_hash: bytes32,
    tokens_hash: bytes32,
    prompt_tokens_hash: bytes32,
    model_id: bytes32,
    params_hash: bytes32,
    sampling_seed: decimal64,
    engine: label,
    n_prompt: uint32,
    n_out: uint32,
    finish_reason: finishReason,
    time: uint,
  },
  "aos.tee.answer",
);

const teeEvidence = object({
  boot: teeBoot,
  boot_signature: bytes(64),
  document: bytesUpTo(16_384),
  answer: teeAnswer,
  answer_signature: bytes(64),
});

const resolution = object(
  {
    network: networkId,
    dispatcher: address,
    job_ref: bytes32,
    attempt,
    state_root: bytes32,
    claims: list(
      object({
        claim: bytes32,
        operator: address,
        state_root: bytes32,
        standing: oneOf("stands", "open", "withheld", "convicted"),
        evidence: list(bytes32, 64),
      }),
      64,
    ),
    resolved_at: uint,
    clock,
  },
  "aos.resolution",
);

const loggedLeaf = object({ salt: bytes32, index: uint, path });
const logPart = object({ checkpoint: textUpTo(MAX_NOTE_BYTES), acceptance: loggedLeaf, receipt: loggedLeaf });
const verifierKey = textUpTo(320);

const answer = object(
  {
    receipt,
    peers: list(receipt, 63),
    request: textUpTo(1 << 20),
    nonce: bytes32,
    text: textUpTo(1 << 22),
    tokens: list(uint32, 1_000_000),
    acceptance: signed(acceptance),
    draw,
    commit: object({
      commit_set: signed(commitSet),
      openings: list(object({ commit: signed(commit), salt: bytes32 }), 64),
    }),
    evidence: optional(teeEvidence),
    resolution: optional(signed(resolution)),
    log: optional(logPart),
  },
  "aos.answer",
);

const register = pattern("[0-9a-f]{96}");

const trust = object(
  {
    network: networkId,
    dispatchers: list(object({ address, vrf_key: bytes32 }), 64),
    genesis: uint,
    epoch_ms: integer(1, Number.MAX_SAFE_INTEGER),
    beacon: object({ anchor: bytes32, length: integer(1, 1 << 20) }),
    registry_roots: list(bytes32, 100_000),
    tee_roots: list(object({ tee: oneOf("simulated"), root: bytes32 }), 64),
    tee_measurements: list(
      object({ tee: oneOf("simulated", "nitro"), pcr0: register, pcr1: register, pcr2: register }),
      256,
    ),
    policy: textUpTo(64),
    log_key: verifierKey,
    witnesses: list(verifierKey, 64),
    witness_quorum: integer(0, 64),
  },
  "aos.trust",
);

/** An answer file, decoded strictly. Throws `encoding.*`, `field.*`, `statement.*`. */
export function readAnswer(data) {
  const value = parseCanonical(data, MAX_ANSWER_BYTES);
  if (value instanceof Map)
    for (const name of ["resolution", "log"]) {
      if (value.has(name) && value.get(name) === null)
        throw refuse("field.type", `${name}: is left out where there is none`);
      if (!value.has(name)) value.set(name, null);
    }
  return answer(value, "");
}

/** The request that an answer file saved. Throws `encoding.*`, `field.*`. */
export const readRequest = (data) => request(parseCanonical(data, MAX_REQUEST_BYTES), "request");

/** A trust file. Throws `trust.invalid`. */
export function readTrust(data) {
  let found;
  try {
    const value = parseStrict(data, MAX_TRUST_BYTES);
    if (value instanceof Map)
      // Files of before there was a log name none.
      for (const [name, none] of [
        ["log_key", ""],
        ["witnesses", []],
        ["witness_quorum", 0],
      ])
        if (!value.has(name)) value.set(name, none);
    found = trust(value, "");
    checkTeeReferences(found.tee_roots, found.tee_measurements);
    readLogKeys(found);
  } catch (error) {
    if (error instanceof AosError) throw refuse("trust.invalid", `the trust file: ${error.message}`);
    throw error;
  }
  if (twice(found.dispatchers.map((dispatcher) => dispatcher.address)))
    throw refuse("trust.invalid", "the trust file names a dispatcher twice");
  return found;
}

const twice = (values) => new Set(values).size !== values.length;

function checkTeeReferences(roots, measurements) {
  if ((roots.length > 0) !== measurements.some((one) => one.tee === "simulated"))
    throw refuse("trust.tee", "simulated roots need the measurements of images, and those need a root");
  const zeros = "0".repeat(96);
  if (measurements.some((one) => [one.pcr0, one.pcr1, one.pcr2].includes(zeros)))
    throw refuse("trust.tee", "a register of zeros is a debug enclave's");
  if (roots.some((root) => sameBytes(root.root, AWS_NITRO.sha256)))
    throw refuse("trust.tee", "the root of AWS is not a simulated one");
  for (const [name, listed] of [
    ["tee_roots", roots],
    ["tee_measurements", measurements],
  ])
    if (twice(listed.map((one) => String(canonical(one.raw))))) throw refuse("trust.tee", `${name} names one twice`);
}

/** Hash of a statement: tagged "statement" over its canonical bytes. */
export const hashOf = (statement) => (statement.hash ??= taggedHash("statement", canonical(statement.raw)));
