// Compiles the contracts: `node compile.mjs` writes the artefacts, `node compile.mjs OUT` writes them under OUT instead.
// src/ goes to the package (src/aos/adapters/chain/artifacts), test/ stays with the tests.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] && resolve(process.argv[2]);
const targets = {
  src: out ? join(out, "src") : join(here, "../src/aos/adapters/chain/artifacts"),
  test: out ? join(out, "test") : join(here, "test/artifacts"),
};
const settings = {
  viaIR: true,
  optimizer: { enabled: true, runs: 1000 },
  evmVersion: "cancun",
  metadata: { bytecodeHash: "none", appendCBOR: false },
};
const sources = {};
for (const folder of Object.keys(targets)) {
  for (const name of readdirSync(join(here, folder)).filter((name) => name.endsWith(".sol")).sort()) {
    sources[`${folder}/${name}`] = { content: readFileSync(join(here, folder, name), "utf8") };
  }
}
const wanted = [
  "abi",
  "metadata",
  "evm.bytecode.object",
  "evm.deployedBytecode.object",
  "evm.deployedBytecode.immutableReferences",
];
const input = { language: "Solidity", sources, settings: { ...settings, outputSelection: { "*": { "*": wanted } } } };
const output = JSON.parse(solc.compile(JSON.stringify(input)));
for (const problem of output.errors ?? []) console.error(problem.formattedMessage);
if (output.errors?.length) process.exit(1); // warnings too

// Where the deployed code holds values that the constructor put there: [start, length], ascending.
const immutables = (references) =>
  Object.values(references ?? {})
    .flat()
    .map(({ start, length }) => [start, length])
    .sort(([a], [b]) => a - b);

for (const target of Object.values(targets)) {
  rmSync(target, { recursive: true, force: true });
  mkdirSync(target, { recursive: true });
}
for (const [source, contracts] of Object.entries(output.contracts).sort()) {
  for (const [name, built] of Object.entries(contracts)) {
    const code = built.evm.bytecode.object;
    if (!code) continue; // an interface
    const used = Object.keys(JSON.parse(built.metadata).sources).sort();
    const digest = (path) => createHash("sha256").update(sources[path].content).digest("hex");
    const artifact = {
      contract: name,
      source,
      compiler: solc.version(),
      settings,
      sources: Object.fromEntries(used.map((path) => [path, digest(path)])),
      abi: built.abi,
      bytecode: code,
      deployed_bytecode: built.evm.deployedBytecode.object,
      immutables: immutables(built.evm.deployedBytecode.immutableReferences),
    };
    writeFileSync(join(targets[source.split("/")[0]], `${name}.json`), JSON.stringify(artifact, null, 1) + "\n");
  }
}
