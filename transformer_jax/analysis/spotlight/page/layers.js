// What single heads and layers contribute: the importance of heads, and the logit lens.

function Importance({ example, places, setPlace, setView }) {
  const views = example.views.filter(({ importance }) => importance);
  if (!views.length) return null;
  const most = Math.max(...views.flatMap(({ importance }) => importance.flat()));
  return html`<section aria-labelledby="importance-title">
    <h2 id="importance-title">Importance of heads</h2>
    <p>${report.importance} Choose a head to see above where it looks.</p>
    <div class="tables">${views.map((view) => html`<div class="scroll" key=${view.name}><table class="importance" role="grid"
        onKeyDown=${(event) => arrowKeys(event, "button", view.weights.heads)}>
      <caption>${view.title}</caption>
      <thead><tr><td></td>${view.importance[0].map((_, h) => html`<th scope="col" key=${h}>Head ${h}</th>`)}</tr></thead>
      <tbody>${view.importance.map((values, l) => html`<tr key=${l}><th scope="row">Layer ${view.layers[l]}</th>
        ${values.map((value, h) => {
          const [layer, head] = places[view.name] ?? firstPlace(view), here = layer === l && head === h;
          return html`<td key=${h}><button type="button" class="cell" style=${shade(most && value / most)} aria-pressed=${here} tabindex=${here ? 0 : -1}
            onClick=${() => (setView(view.name), setPlace(view.name, [l, h]))}>${short(value)}</button></td>`;
        })}</tr>`)}</tbody>
    </table></div>`)}</div>
  </section>`;
}

function Lens({ example, positions, setPosition }) {
  const { lens } = example;
  const [layer, setLayer] = useState(0);
  const [pointed, point] = useState(null);
  if (!lens) return null;
  const row = example.rows[lens.row], width = row.tokens.length;
  const chosen = [layer, Math.min(positions[lens.row] ?? 0, width - 1)];
  const [l, t] = pointed ?? chosen;
  const order = [...lens.layers.keys()].reverse();
  const go = (l, t) => (point(null), setLayer(l), setPosition(lens.row, t));
  const list = lens.tokens[l][t].map((token, i) => `${quoted(token)} ${percent(lens.probabilities[l][t][i])}`).join(", ");
  return html`<section aria-labelledby="lens-title">
    <h2 id="lens-title">Logit lens</h2>
    <p>What the output layer reads from the residual stream after each layer (nostalgebraist 2020): the likeliest token and its
      probability in percent;${" "}<span class="tag">✓</span>${" "}marks a token that the last layer agrees with.</p>
    <p class="summary"><b>${lens.layers[l]}</b>, ${quoted(row.tokens[t])}: ${list}</p>
    <${Live} text=${`${lens.layers[l]}, ${spoken(row.tokens[t])}: ${list}`} />
    <div class="scroll"><table class="lens" role="grid" aria-labelledby="lens-title" onMouseLeave=${() => point(null)}
        onKeyDown=${(event) => arrowKeys(event, "button", width)}>
      <thead><tr><th scope="col">${row.title}</th>${row.tokens.map((token, i) => html`<th scope="col" key=${i}><${Piece} token=${token} /></th>`)}</tr></thead>
      <tbody>${order.map((l) => html`<tr key=${l}><th scope="row">${lens.layers[l]}</th>
        ${row.tokens.map((_, t) => {
          const token = lens.tokens[l][t][0], value = lens.probabilities[l][t][0], here = l === chosen[0] && t === chosen[1];
          const agrees = token === lens.tokens[lens.layers.length - 1][t][0];
          return html`<td key=${t}><button type="button" class="cell" style=${shade(value)} aria-pressed=${here} tabindex=${here ? 0 : -1}
            onMouseEnter=${() => point([l, t])} onFocus=${() => go(l, t)} onClick=${() => go(l, t)}>
            <${Piece} token=${token} /><span class="value">${Math.round(value * 100) || "<1"}${agrees ? " ✓" : ""}</span></button></td>`;
        })}</tr>`)}</tbody>
    </table></div>
  </section>`;
}
