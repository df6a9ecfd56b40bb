// Builds the page's template: one file with one style, one script and a policy that allows nothing else.
// Usage: node build.mjs [OUT], by default src/tauspan/editing/desk/page.html of this repository.

import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "../src/tauspan/editing/desk/page.html");
const LIMITS = { script: 60_000, page: 80_000 };

async function bundle(entry) {
  const made = await build({
    absWorkingDir: here,
    entryPoints: [entry],
    bundle: true,
    write: false,
    minify: true,
    format: "iife",
    target: ["es2022"],
    charset: "ascii",
    legalComments: "none",
    jsx: "transform",
    jsxFactory: "h",
    jsxFragment: "Fragment",
    inject: ["src/h.ts"],
    tsconfigRaw: "{}",
    define: { "process.env.NODE_ENV": '"production"' },
  });
  return made.outputFiles[0].text.trim();
}

function hash(text) {
  return `'sha256-${createHash("sha256").update(text, "utf8").digest("base64")}'`;
}

const script = await bundle("src/main.tsx");
const style = await bundle("src/style.css");
for (const [what, text] of Object.entries({ script, style })) {
  if (/<\/(script|style)|<!--|__DESK_/i.test(text)) throw new Error(`the ${what} has text that would end its element`);
}
const policy = [
  "default-src 'none'",
  `script-src ${hash(script)}`,
  `style-src ${hash(style)}`,
  "img-src data: blob:",
  "base-uri 'none'",
  "form-action 'none'",
  "require-trusted-types-for 'script'",
].join("; ");
const parts = { "%POLICY%": policy, "%STYLE%": style, "%SCRIPT%": script };
const shell = readFileSync(join(here, "index.html"), "utf8");
const page = shell.replace(/%[A-Z]+%/g, (place) => parts[place]);
const sizes = { script: Buffer.byteLength(script), page: Buffer.byteLength(page) };
for (const [what, limit] of Object.entries(LIMITS)) {
  if (sizes[what] > limit) throw new Error(`the ${what} has ${sizes[what]} bytes; at most ${limit}`);
}
mkdirSync(dirname(out), { recursive: true });
writeFileSync(out, page);
console.log(`${out}: ${sizes.page} bytes, script ${sizes.script}, style ${Buffer.byteLength(style)}`);
