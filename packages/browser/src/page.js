/** The page: two files in, the checks out. Everything shown is set as text; nothing is sent or kept anywhere. */
import { ABOUT, HINTS } from "./about.js";
import { hex } from "./bytes.js";
import { AosError } from "./errors.js";
import { loadPolicy, readTrust, steps, verifyAnswer } from "./verify.js";

const $ = (id) => document.getElementById(id);
const MAX_FILE_BYTES = (8 << 20) + 1; // one byte more than the reader takes is enough for it to refuse
const SIGNS = { VERIFIED: ["good", "✓"], PARTIAL: ["part", "–"], "NOT VERIFIED": ["bad", "✕"], "EVIDENCE MISSING": ["bad", "?"] };

const files = { answer: null, trust: null };
let run = 0;
let report = null;

/** For the console and for tests: the same verification without the page around it. */
globalThis.aosVerifier = { verifyAnswer, readTrust, loadPolicy };

function make(name, className, content = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = content;
  return element;
}

async function take(kind, file) {
  const data = new Uint8Array(await file.slice(0, MAX_FILE_BYTES).arrayBuffer());
  files[kind] = { name: file.name, size: file.size, data };
  show(kind, `${file.name}, ${file.size.toLocaleString("en")} bytes`);
}

function show(kind, words, broken = false) {
  const card = document.querySelector(`[data-drop=${kind}]`);
  card.classList.toggle("there", !broken);
  card.classList.toggle("broken", broken);
  $(`${kind}-state`).textContent = words;
}

/** What a dropped file is: a trust file says so itself, everything else is judged as an answer. */
async function kindOf(file) {
  if (file.size > 1 << 20) return "answer";
  try {
    return JSON.parse(await file.text())?.type === "aos.trust" ? "trust" : "answer";
  } catch {
    return "answer";
  }
}

async function verify() {
  const mine = ++run;
  $("problem").hidden = true;
  let trust = null;
  if (files.trust !== null)
    try {
      trust = readTrust(files.trust.data);
      show("trust", `${files.trust.name}: network ${trust.network}, policy ${trust.policy}`);
    } catch (error) {
      return refuse(error, "trust");
    }
  let policy;
  try {
    policy = loadPolicy($("policy").value || (trust?.policy ?? "default"));
  } catch (error) {
    return refuse(error);
  }
  $("policy-note").textContent = `${policy.name} is used: ${policy.required.length} required checks`;
  if (files.answer === null) return;
  const started = performance.now();
  $("result").hidden = false;
  $("checks").replaceChildren();
  $("verdict").textContent = "Checking…";
  $("headline").textContent = "";
  $("verdict-card").className = "verdict card";
  $("sign").textContent = "";
  const making = steps(files.answer.data, trust, policy);
  for (;;) {
    // A frame between checks: a phone shows each line as it is made.
    await new Promise((resolve) => setTimeout(resolve));
    if (mine !== run) return;
    const { done, value } = making.next();
    if (done) {
      report = value;
      break;
    }
    $("checks").append(lineOf(value));
  }
  present(report, Math.round(performance.now() - started));
}

/** A trust file or policy that cannot be used ends everything: it is never ignored. */
function refuse(error, kind) {
  if (!(error instanceof AosError)) throw error;
  report = null;
  $("result").hidden = true;
  $("problem").hidden = false;
  $("problem").textContent = `${error.message} [${error.code}]. Nothing was verified.`;
  if (kind) show(kind, "This file cannot be used", true);
}

function lineOf(check) {
  const line = make("li", check.status);
  const details = make("details");
  const summary = make("summary");
  const said = make("span", "said", check.text);
  if (check.code) said.append(" ", make("code", "", check.code));
  summary.append(make("span", "word", check.status), make("span", "mono", check.id), said, make("span", "value mono", check.detail));
  details.append(summary, make("p", "about", ABOUT[check.id] ?? ""));
  line.append(details);
  return line;
}

function present(found, milliseconds) {
  const [tone, sign] = SIGNS[found.verdict];
  $("verdict-card").className = `verdict card ${tone}`;
  $("sign").textContent = sign;
  $("verdict").textContent = found.verdict;
  $("headline").textContent = found.headline.slice(found.verdict.length).replace(/^:? /, "");
  $("levels").replaceChildren(...found.levels.map((level) => make("span", "pill", level)));
  $("simulated").hidden = !found.levels.includes("simulated");
  $("hint").textContent = hintOf(found);
  $("took").textContent = `Exit code of aos verify: ${found.exitCode}. Checked in ${(milliseconds / 1000).toFixed(2)} s.`;
  presentAnswer(found);
}

function hintOf(found) {
  const failed = found.checks.find((check) => check.status === "FAIL" && HINTS[check.id]);
  if (failed) return HINTS[failed.id];
  if (found.verdict !== "PARTIAL") return "";
  if (files.trust === null) return "Add the trust file of the network that you trust.";
  if (found.missing.includes("registry-1"))
    return "The registry changed since the trust file was written: look at who was added, and add the new root.";
  return "";
}

function presentAnswer({ answer, verdict }) {
  $("answer-card").hidden = !answer;
  if (!answer) return;
  $("unproven").hidden = verdict === "VERIFIED";
  $("prompt").textContent = promptOf(answer.request);
  $("text").textContent = answer.text || "(empty)";
  const { core } = answer.receipt;
  const facts = [
    ["Network", core.network],
    ["Model id", hex(core.model_id)],
    ["Operator", core.operator],
    ["Other operators", String(answer.peers.length)],
    ["Engine", core.engine],
    ["Tokens", `${core.n_prompt} + ${core.n_out}, ended by ${core.finish_reason}`],
    ["Enclave", core.tee || "none"],
  ];
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "mono", value)]));
}

function promptOf(request) {
  try {
    const { prompt } = JSON.parse(request).job;
    return typeof prompt === "string" ? prompt : prompt.map(({ role, content }) => `${role}: ${content}`).join("\n\n");
  } catch {
    return "(the saved request cannot be read)";
  }
}

/** The report as `aos verify --json` prints it (docs/schemas/verify.json). */
function reportJson(found) {
  const checks = found.checks.map(({ code, ...check }) => ({ ...check, code: code || null }));
  const result = {
    file: files.answer.name,
    verdict: found.verdict,
    exit_code: found.exitCode,
    levels: found.levels,
    policy: found.policy,
    required_but_skipped: found.missing,
    checks,
  };
  return { schema: "aos.cli.verify/1", result };
}

function save() {
  if (report === null) return;
  const link = make("a");
  const blob = new Blob([JSON.stringify(reportJson(report), null, 2) + "\n"], { type: "application/json" });
  link.href = URL.createObjectURL(blob);
  link.download = `${files.answer.name}.report.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function dropped(list, zone) {
  for (const file of list) await take(list.length === 1 && zone ? zone : await kindOf(file), file);
  await verify();
}

for (const kind of ["answer", "trust"])
  $(`${kind}-file`).addEventListener("change", async (event) => {
    const [file] = event.target.files;
    event.target.value = ""; // so that the same file, changed since, can be chosen again
    if (file) await take(kind, file).then(verify);
  });
$("policy").addEventListener("change", verify);
$("save").addEventListener("click", save);
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragover");
    const zone = event.target.closest?.("[data-drop]");
    for (const card of document.querySelectorAll("[data-drop]"))
      card.classList.toggle("over", name === "dragover" && card === zone);
    if (name === "drop") dropped([...event.dataTransfer.files], zone?.dataset.drop);
  });
if (location.protocol.startsWith("http")) {
  $("served").hidden = false;
  $("download").href = location.pathname;
}
