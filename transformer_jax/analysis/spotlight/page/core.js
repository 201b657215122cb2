// What all parts of the page share: its libraries, the report, numbers as text, and movement by arrow keys.

const { h, render, useEffect, useMemo, useRef, useState, plot } = libraries;
const html = libraries.htm.bind(h);
const report = JSON.parse(document.getElementById("report").textContent);

for (const { views } of report.examples)
  for (const { weights } of views)
    weights.bytes = Uint8Array.from(atob(weights.uint8), (character) => character.charCodeAt(0));

/** A token as it is shown: a space by a sign. */
const visible = (token) => token.replace(/^ +$/, (spaces) => "␣".repeat(spaces.length));

/** A token without the sign that SentencePiece writes for a space, for who listens to it. */
const spoken = (token) => token.replaceAll("▁", " ").trim() || "space";

/** A token within a sentence, in quotation marks; isolated, so that its direction does not turn its neighbours round. */
const quoted = (token) => `‘\u2068${spoken(token)}\u2069’`;

/** A probability or weight from 0 to 1 as percent; as many digits as are sure. */
const percent = (value) => (value >= 0.995 ? "100%" : value >= 0.095 ? `${Math.round(value * 100)}%`
  : value >= 0.005 ? `${(value * 100).toFixed(1)}%` : "<1%");

const fixed = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));

/** A number of any size, to two digits. */
const short = (value) => (Math.abs(value) >= 0.001 ? String(Number(value.toPrecision(2))) : value === 0 ? "0" : value.toExponential(0)).replace("-", "−");

/** Shading that grows with the square root, so that small values can be told from none. */
const shade = (value) => ({ "--amount": Math.sqrt(Math.max(0, value ?? 0)).toFixed(3) });

/** "‘dog’ 83%, ‘a’ 10%": the largest of some weights of tokens. */
const largest = (weights, tokens, count = 3) =>
  [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, count)
    .filter((i) => weights[i] >= 0.005)
    .map((i) => `${quoted(tokens[i])} ${percent(weights[i])}`).join(", ");

/** The index that an arrow key, Home or End leads to in a grid of count items, so many a line; -1 for other keys. */
function moved(event, index, count, perLine) {
  const right = getComputedStyle(event.currentTarget).direction === "rtl" ? -1 : 1;
  const steps = { ArrowRight: right, ArrowLeft: -right, ArrowDown: perLine, ArrowUp: -perLine };
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return -1;
  if (event.key === "Home") return 0;
  if (event.key === "End") return count - 1;
  if (!(event.key in steps)) return -1;
  return Math.min(count - 1, Math.max(0, index + steps[event.key]));
}

/** Moves the focus among the elements of one container that match the selector, by arrow keys. */
function arrowKeys(event, selector, perLine = 1) {
  const items = [...event.currentTarget.querySelectorAll(selector)];
  const index = items.indexOf(event.target.closest(selector));
  const next = index < 0 ? -1 : moved(event, index, items.length, perLine);
  if (next < 0) return;
  event.preventDefault();
  items[next].focus();
}

/** A text that is told to a screen reader a moment after it stops changing. */
function Live({ text }) {
  const [told, tell] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => tell(text), 350);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<p class="hidden" role="status">${told}</p>`;
}

/** A chart of the plotting library, redrawn when what it depends on changes; `label` is all that is said of it. */
function Chart({ draw, on, label }) {
  const place = useRef(null);
  useEffect(() => {
    const chart = draw();
    chart.setAttribute("aria-hidden", "true");
    place.current.replaceChildren(chart);
  }, on);
  return html`<div ref=${place} role=${label && "img"} aria-label=${label}></div>`;
}

/** The width of an element in pixels, kept up to date, and whether the page is dark. */
function useSurroundings() {
  const place = useRef(null);
  const query = matchMedia("(prefers-color-scheme: dark)");
  const [found, set] = useState({ width: 0, dark: query.matches });
  useEffect(() => {
    const element = place.current;
    const measure = () => set({ width: Math.floor(element.clientWidth), dark: query.matches });
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    query.addEventListener("change", measure);
    return () => (observer.disconnect(), query.removeEventListener("change", measure));
  }, []);
  return [place, found];
}

/** The value of one of the page's colours as a chart needs it. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
