/** The whole verification: one list of checks, levels and verdict, as `aos.core.receipt` and `aos.core.report` give them. */
import defaultPolicy from "../../../src/aos/core/policies/default.json";
import dev from "../../../src/aos/core/policies/dev.json";
import production from "../../../src/aos/core/policies/production.json";
import * as checks from "./checks.js";
import { AosError, Skip, refuse } from "./errors.js";
import { log1, witness1 } from "./log.js";
import { readAnswer } from "./statements.js";

export { readTrust } from "./statements.js";

export const POLICIES = { dev, default: defaultPolicy, production };
export const EXIT_CODES = { VERIFIED: 0, "NOT VERIFIED": 10, PARTIAL: 11, "EVIDENCE MISSING": 12 };

export const CHECKS = [
  ["file-1", checks.file1],
  ["trust-1", checks.trust1],
  ["receipt-1", checks.receipt1],
  ["receipt-2", checks.receipt2],
  ["io-1", checks.io1],
  ["io-2", checks.io2],
  ["params-1", checks.params1],
  ["accept-1", checks.accept1],
  ["beacon-1", checks.beacon1],
  ["registry-1", checks.registry1],
  ["draw-1", checks.draw1],
  ["vrf-1", checks.vrf1],
  ["seed-1", checks.seed1],
  ["commit-1", checks.commit1],
  ["agree-1", checks.agree1],
  ["resolve-1", checks.resolve1],
  ["clock-1", checks.clock1],
  ["log-1", log1],
  ["witness-1", witness1],
  ["tee-1", checks.tee1],
  ["tee-2", checks.tee2],
  ["tee-3", checks.tee3],
  ["local-1", checks.local1],
];

const UNREADABLE = ["encoding.", "field.missing", "statement.version", "statement.type"];
const DUPLICATE_OR_FORM = ["encoding.duplicate_key", "encoding.not_canonical"];
const ABSENT = ["tee.no_evidence", "commit.missing"];

/** A policy that comes with the page. Throws `trust.policy`. */
export function loadPolicy(name) {
  if (!Object.hasOwn(POLICIES, name)) throw refuse("trust.policy", `no policy '${name}'`);
  return POLICIES[name];
}

/** Yields each check as it is made; returns the report. `trust` may be null. */
export function* steps(data, trust, policy) {
  let answer;
  try {
    answer = readAnswer(data);
  } catch (error) {
    if (!(error instanceof AosError)) throw error;
    const check = line("file-1", "FAIL", error.message, "", error.code);
    yield check;
    const unreadable =
      UNREADABLE.some((code) => error.code.startsWith(code)) && !DUPLICATE_OR_FORM.includes(error.code);
    return report([check], unreadable ? "EVIDENCE MISSING" : "NOT VERIFIED", [], policy, []);
  }
  const one = new checks.Case(answer, trust, policy);
  const done = [];
  for (const [id, check] of CHECKS) {
    done.push(run(id, check, one));
    yield done.at(-1);
  }
  const status = Object.fromEntries(done.map((check) => [check.id, check.status]));
  const missing = policy.required.filter((wanted) => wanted.split("|").every((id) => status[id] !== "PASS"));
  const failed = done.filter((check) => check.status === "FAIL").map((check) => check.code);
  let verdict = missing.length ? "PARTIAL" : "VERIFIED";
  if (failed.length) verdict = failed.every((code) => ABSENT.includes(code)) ? "EVIDENCE MISSING" : "NOT VERIFIED";
  return { ...report(done, verdict, failed.length ? [] : levelsOf(one, status), policy, missing), answer };
}

/** The report at once. */
export function verifyAnswer(data, trust, policy) {
  const making = steps(data, trust, policy);
  for (;;) {
    const { done, value } = making.next();
    if (done) return value;
  }
}

function run(id, check, one) {
  try {
    const [text, detail] = check(one);
    return line(id, "PASS", text, detail);
  } catch (error) {
    if (error instanceof Skip) return line(id, "SKIP", error.message);
    if (error instanceof AosError) return line(id, "FAIL", error.message, "", error.code);
    throw error;
  }
}

const line = (id, status, text, detail = "", code = "") => ({ id, status, text, detail, code });

function levelsOf(one, status) {
  const passed = (...ids) => ids.every((id) => status[id] === "PASS");
  if (!passed("receipt-1", "receipt-2", "io-1", "io-2")) return [];
  const levels = ["signed"];
  if (passed("agree-1", "commit-1")) levels.push(`redundant:${one.agreeing}`);
  if (passed("tee-1", "tee-2", "tee-3")) levels.push(one.core.tee === "simulated" ? "simulated" : "attested");
  if (passed("local-1")) levels.push("replayed");
  return levels;
}

function report(checksMade, verdict, levels, policy, missing) {
  return {
    checks: checksMade,
    verdict,
    levels,
    policy: policy.name,
    missing,
    exitCode: EXIT_CODES[verdict],
    headline: headline(checksMade, verdict, levels, policy.name, missing),
  };
}

function headline(made, verdict, levels, policy, missing) {
  const count = (status) => made.filter((check) => check.status === status).length;
  const stronger = levels.filter((level) => level !== "signed");
  const shown = stronger.length ? stronger : levels.length ? levels : ["none"];
  const at = (shown.length === 1 ? "level " : "levels ") + shown.map((level) => `"${level}"`).join(" and ");
  if (verdict === "VERIFIED") {
    const optional = count("SKIP") ? ` (optional under policy "${policy}")` : "";
    return `VERIFIED at ${at}: ${count("PASS")} checks passed, ${count("SKIP")} skipped${optional}`;
  }
  if (verdict === "PARTIAL")
    return (
      `PARTIAL at ${at}: ${count("PASS")} checks passed, but policy "${policy}" requires ` +
      `${missing.join(", ")}, skipped here`
    );
  const failed = made.find((check) => check.status === "FAIL");
  return `${verdict}: ${failed.id} failed: ${failed.text} [${failed.code}]`;
}
