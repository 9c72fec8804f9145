// Builds src/aos/dispatcher/ui/verify.html: one file, everything inlined, readable (not minified).
//   npm ci --ignore-scripts && node build.mjs            writes it
//   node build.mjs --check                               exits 1 where the file is not what the sources give
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "../..");
const target = join(root, "src/aos/dispatcher/ui/verify.html");
const read = (...path) => readFileSync(join(...path), "utf8");
const sha256 = (text, form) => createHash("sha256").update(text).digest(form);

// Every file that the page is made of, by its path from the repository's root; tests/unit/test_verifier_page.py repeats this.
const inputs = [
  ...["build.mjs", "package-lock.json", "package.json"].map((name) => `packages/browser/${name}`),
  ...readdirSync(join(here, "src")).map((name) => `packages/browser/src/${name}`),
  ...["default", "dev", "production"].map((name) => `src/aos/core/policies/${name}.json`),
  "src/aos/dispatcher/ui/static/icon.svg",
].sort();
const sources = sha256(inputs.map((path) => `${sha256(readFileSync(join(root, path)), "hex")}  ${path}\n`).join(""), "hex");

const bundled = await build({
  entryPoints: [join(here, "src/page.js")],
  bundle: true,
  write: false,
  format: "iife",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  absWorkingDir: here,
});
const script = "\n" + bundled.outputFiles[0].text;
if (script.includes("</script")) throw new Error("the script would end itself");
const style = "\n" + read(here, "src/style.css");
const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");

const lock = JSON.parse(read(here, "package-lock.json")).packages;
const libraries = ["@noble/curves", "@noble/hashes"].map((name) => {
  const { version, integrity } = lock[`node_modules/${name}`];
  return { name, version, integrity, licence: read(here, "node_modules", name, "LICENSE").trim() };
});
const values = {
  csp:
    `default-src 'none'; script-src 'sha256-${sha256(script, "base64")}'; style-src 'sha256-${sha256(style, "base64")}'; ` +
    "img-src data:; base-uri 'none'; form-action 'none'",
  sources,
  build: sources.slice(0, 12),
  icon: "data:image/svg+xml," + encodeURIComponent(read(root, "src/aos/dispatcher/ui/static/icon.svg")).replaceAll("'", "%27"),
  libraries: libraries.map(({ name, version }) => `${name} ${version}`).join(", "),
  notices: libraries
    .map(
      ({ name, version, integrity, licence }) =>
        `<h3>${name} ${version}</h3><p><code>${integrity}</code></p><pre tabindex="0">${escape(licence)}</pre>`,
    )
    .join(""),
  style,
  script,
};
const page = read(here, "src/page.html").replace(/\{\{(\w+)\}\}/g, (_, name) => values[name]);

if (process.argv.includes("--check")) {
  if (readFileSync(target, "utf8") !== page) {
    console.error("verify.html is not what its sources give: cd packages/browser && npm ci --ignore-scripts && node build.mjs");
    process.exit(1);
  }
} else writeFileSync(target, page);
console.log(`${Buffer.byteLength(page).toLocaleString("en")} bytes, sources ${sources}`);
