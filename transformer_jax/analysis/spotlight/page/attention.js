// Where each layer and head looks: token rows, a chart for each head, and the whole matrix of one.

const MIXES = { head: "one head", layer: "the mean of its layer", all: "the mean of all heads" };

/** The head that is shown first. */
const firstPlace = (view) => [view.layers.length - 1, 0];

/** Weights of one view: at(layer, head, query, key), and of a choice of heads the row of a query or column of a key. */
function reader(view, numQueries, numKeys) {
  const { bytes, heads } = view.weights, layers = view.layers.length;
  const at = (l, h, q, k) => bytes[((l * heads + h) * numQueries + q) * numKeys + k] / 255;
  const members = (mix, [layer, head]) =>
    mix === "head" ? [[layer, head]]
      : [...Array(layers).keys()].filter((l) => mix === "all" || l === layer)
        .flatMap((l) => [...Array(heads).keys()].map((h) => [l, h]));
  const mean = (mix, place, get, length) => {
    const chosen = members(mix, place);
    return Array.from({ length }, (_, i) => chosen.reduce((sum, [l, h]) => sum + get(l, h, i), 0) / chosen.length);
  };
  return {
    layers, heads, at,
    row: (mix, place, q) => mean(mix, place, (l, h, k) => at(l, h, q, k), numKeys),
    column: (mix, place, k) => mean(mix, place, (l, h, q) => at(l, h, q, k), numQueries),
  };
}

function Attention({ example, positions, setPosition, viewName, setView, places, setPlace }) {
  const view = example.views.find(({ name }) => name === viewName) ?? example.views[0];
  if (!view) return null;
  const several = example.views.length > 1;
  return html`<section aria-labelledby="attention-title">
    <h2 id="attention-title">Attention</h2>
    ${several && html`<div role="tablist" aria-label="Kind of attention" onKeyDown=${(event) => arrowKeys(event, "[role=tab]")}>
      ${example.views.map(({ name, title }) => html`<button type="button" role="tab" key=${name} id=${`tab-${name}`}
        aria-selected=${name === view.name} aria-controls="attention-panel" tabindex=${name === view.name ? 0 : -1}
        onFocus=${() => setView(name)} onClick=${() => setView(name)}>${title}</button>`)}
    </div>`}
    <div id="attention-panel" role=${several ? "tabpanel" : undefined} aria-labelledby=${several ? `tab-${view.name}` : undefined}>
      <${View} key=${view.name} ...${{ example, view, positions, setPosition, place: places[view.name] ?? firstPlace(view) }}
        setPlace=${(place) => setPlace(view.name, place)} />
    </div>
  </section>`;
}

function View({ example, view, positions, setPosition, place, setPlace }) {
  const queries = example.rows[view.queries], keys = example.rows[view.keys];
  const read = useMemo(() => reader(view, queries.tokens.length, keys.tokens.length), [view]);
  const [mix, setMix] = useState("head");
  const [pinnedKey, pinKey] = useState(-1);
  const [pointed, point] = useState({ side: "query", index: -1 });
  const query = Math.min(positions[view.queries] ?? 0, queries.tokens.length - 1);

  // What is under the mouse goes before what was chosen.
  const side = pointed.index >= 0 ? pointed.side : pinnedKey >= 0 ? "key" : "query";
  const index = pointed.index >= 0 ? pointed.index : side === "key" ? pinnedKey : query;
  const values = side === "query" ? read.row(mix, place, index) : read.column(mix, place, index);
  // Where the keyboard goes, the mouse no longer matters, though it may lie on another token.
  const still = { side: "query", index: -1 };
  const chooseQuery = (i) => (point(still), pinKey(-1), setPosition(view.queries, i));
  const chooseKey = (i) => (point(still), pinKey(i));

  const token = (side === "query" ? queries : keys).tokens[index];
  const whose = mix === "head" ? `Layer ${view.layers[place[0]]}, head ${place[1]}` : mix === "layer" ? `Mean of layer ${view.layers[place[0]]}` : "Mean of all heads";
  const found = largest(values, (side === "query" ? keys : queries).tokens) || "nothing above 0.5%";
  const summary = side === "query" ? `${quoted(token)} looks at ${found}` : `${quoted(token)} is looked at by ${found}`;
  return html`<p>${view.explanation}</p>
    <div class="columns">
      <div class="looks">
        <${TokenRow} id="queries" row=${queries} title=${queries.title} note="looks from" chosen=${side === "query" ? query : -1}
          pointed=${side === "query" ? pointed.index : -1} point=${(i) => point({ side: "query", index: i })} choose=${chooseQuery}
          values=${side === "key" ? values : null} meaning="of its attention goes there" />
        <${TokenRow} id="keys" row=${keys} title=${keys.title} note="looks at" chosen=${pinnedKey}
          pointed=${side === "key" ? pointed.index : -1} point=${(i) => point({ side: "key", index: i })} choose=${chooseKey}
          values=${side === "query" ? values : null} meaning="of the attention" />
        <p class="summary"><b>${whose}</b>: ${summary}</p>
        <${Live} text=${`${whose}: ${summary}`} />
      </div>
      <${Heads} ...${{ view, read, side, index, mix, setMix, place, setPlace }}
        others=${(side === "query" ? keys : queries).tokens} token=${token} />
      <${Matrix} ...${{ read, queries, keys, mix, place, query, whose }} choose=${chooseQuery} />
    </div>`;
}

/** One chart for each head, of where it looks from the token at hand; radio buttons, so that one can be chosen. */
function Heads({ view, read, side, index, mix, setMix, place, setPlace, others, token }) {
  const [area, { width, dark }] = useSurroundings();
  const height = 46, { layers, heads } = read;
  const weight = (l, h, i) => (side === "query" ? read.at(l, h, index, i) : read.at(l, h, i, index));
  const draw = () => {
    const bars = [];
    for (let l = 0; l < layers; l++)
      for (let h = 0; h < heads; h++)
        for (let i = 0; i < others.length; i++) {
          const value = weight(l, h, i);
          if (value) bars.push({ l, h, i, value });
        }
    return plot({
      width, height: layers * height, margin: 0, axis: null, fx: { padding: 0, axis: null }, fy: { padding: 0, axis: null },
      x: { domain: [0, others.length], insetLeft: 5, insetRight: 5 }, y: { domain: [0, 1], type: "sqrt", insetTop: 5, insetBottom: 5 },
      marks: [libraries.rect(bars, { fx: "h", fy: "l", x1: "i", x2: (bar) => bar.i + 1, y1: 0, y2: "value", fill: colour("accent"),
        inset: others.length > 24 ? 0 : 0.5 })],
    });
  };
  const label = (l, h) => `Layer ${view.layers[l]}, head ${h}${view.importance ? `, importance ${short(view.importance[l][h])}` : ""}: ${
    largest(others.map((_, i) => weight(l, h, i)), others, 2) || "nothing above 0.5%"}`;
  const onKeyDown = (event) => {
    const next = moved(event, place[0] * heads + place[1], layers * heads, heads);
    if (next < 0) return;
    event.preventDefault();
    setPlace([Math.floor(next / heads), next % heads]);
    event.currentTarget.querySelectorAll("input")[next].focus();
  };
  return html`<div class="side">
    <fieldset class="mix"><legend>Weights of</legend>
      ${Object.entries(MIXES).map(([name, title]) => html`<label key=${name}><input type="radio" name="mix" checked=${mix === name}
        onChange=${() => setMix(name)} /> ${title}</label>`)}
    </fieldset>
    <fieldset class="heads" onKeyDown=${onKeyDown}>
      <legend>Head <span class="note">each chart is where it ${side === "query" ? "looks from" : "is looked at from, at"} ${quoted(token)}</span></legend>
      <div class="head-grid" style=${{ "--heads": heads, "--height": `${height}px` }}>
        <span class="corner" aria-hidden="true"></span>
        <div class="head-numbers" aria-hidden="true">${[...Array(heads).keys()].map((h) => html`<span key=${h}>${h}</span>`)}</div>
        <div class="layer-numbers" aria-hidden="true">${view.layers.map((layer) => html`<span key=${layer}>${layer}</span>`)}</div>
        <div class="head-charts" ref=${area}>
          ${width > 0 && html`<${Chart} draw=${draw} on=${[view, side, index, width, dark]} />`}
          <div class="head-choices">
            ${[...Array(layers * heads).keys()].map((n) => {
              const l = Math.floor(n / heads), h = n % heads, within = mix === "all" || (mix === "layer" && l === place[0]);
              return html`<label key=${n} class=${within ? "within" : ""} title=${`layer ${view.layers[l]}, head ${h}`}>
                <input type="radio" name="head" aria-label=${label(l, h)} checked=${l === place[0] && h === place[1]}
                  onChange=${() => setPlace([l, h])} /><span></span></label>`;
            })}
          </div>
        </div>
      </div>
      <p class="note">Rows are layers, columns heads. The height of a bar is the square root of a weight.</p>
    </fieldset>
  </div>`;
}

/** All queries and keys of the heads chosen. */
function Matrix({ read, queries, keys, mix, place, query, choose, whose }) {
  const [area, { width, dark }] = useSurroundings();
  const room = (tokens) => Math.min(130, 18 + 7.2 * Math.max(...tokens.map((token) => [...token].length)));
  const cut = (token) => visible(token).replaceAll("▁", "_").replace(/^(.{14}).{2,}$/u, "$1…");
  const left = room(queries.tokens), top = room(keys.tokens);
  const size = Math.max(9, Math.min(26, (width - left - 10) / keys.tokens.length));
  const draw = () => {
    const cells = queries.tokens.flatMap((_, q) => read.row(mix, place, q).map((value, k) => ({ q, k, value })));
    const ticks = (tokens) => ({ domain: [...tokens.keys()], tickFormat: (i) => cut(tokens[i]), tickSize: 0, label: null, padding: 0 });
    const chart = plot({
      width: left + 10 + size * keys.tokens.length, height: top + 10 + size * queries.tokens.length,
      marginLeft: left, marginTop: top, marginRight: 10, marginBottom: 10, style: { fontSize: `${Math.min(12, size + 1)}px` },
      x: { ...ticks(keys.tokens), axis: "top", tickRotate: -90 }, y: ticks(queries.tokens),
      color: { type: "sqrt", domain: [0, 1], range: [colour("surface"), colour("accent")], interpolate: "rgb" },
      marks: [libraries.cell(cells, {
        x: "k", y: "q", fill: "value", inset: size > 12 ? 0.5 : 0,
        channels: { from: ({ q }) => queries.tokens[q], at: ({ k }) => keys.tokens[k], weight: ({ value }) => percent(value) },
        tip: { format: { x: false, y: false, fill: false, from: true, at: true, weight: true } },
      })],
    });
    chart.addEventListener("click", () => chart.value && choose(chart.value.q));
    return chart;
  };
  return html`<details class="whole" open>
    <summary>The whole matrix <span class="note">rows look at columns; click to choose a row</span></summary>
    <div class="scroll" ref=${area} tabindex="0" role="region" aria-label="Attention matrix, scrollable">
      ${width > 0 && html`<${Chart} draw=${draw} on=${[read, mix, ...place, width, dark]}
        label=${`${whose}: ${queries.tokens.length} by ${keys.tokens.length} weights, which the tokens above show row by row`} />
      <div class="here" style=${{ top: `${top + query * size}px`, left: `${left}px`, height: `${size}px`, width: `${size * keys.tokens.length}px` }}></div>`}
    </div>
  </details>`;
}
