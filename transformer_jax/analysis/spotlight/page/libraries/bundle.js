// Writes ../libraries.js: the parts of the libraries that entry.js names, minified, and the licences of all of them.
import { build } from "esbuild";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";

const { outputFiles, metafile } = await build({
  entryPoints: ["entry.js"], bundle: true, minify: true, format: "iife", globalName: "libraries", target: "es2020",
  charset: "utf8", legalComments: "none", metafile: true, write: false,
});
const folders = Object.keys(metafile.inputs).map((file) => file.match(/^node_modules\/(@[^/]+\/[^/]+|[^/]+)/)?.[0]);
const notices = [...new Set(folders.filter(Boolean))].sort().map((folder) => {
  const { name, version, license } = JSON.parse(readFileSync(`${folder}/package.json`));
  const file = readdirSync(folder).find((one) => /^licen[cs]e/i.test(one));
  if (!file) throw new Error(`${name} comes without a licence`);
  return { title: `${name} ${version} (${license})`, text: readFileSync(`${folder}/${file}`, "utf8").trim() };
});
// Many of these have the same licence to the letter: each text stands once.
const packages = new Map();
for (const { title, text } of notices) packages.set(text, [...(packages.get(text) ?? []), title]);
const licences = [...packages].map(([text, titles]) => `${titles.join(", ")}\n\n${text}`);
const comment = licences.join(`\n\n${"-".repeat(80)}\n\n`).replaceAll("*/", "* /");
writeFileSync("../libraries.js", `/*!\n${comment}\n*/\n${outputFiles[0].text}`);
