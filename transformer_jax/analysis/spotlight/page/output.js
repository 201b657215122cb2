// What else the model might have said: the n best outputs, the beam step by step, the likeliest tokens at a position.

const probability = (logProb) => (logProb === null ? 0 : Math.exp(logProb));

function Output({ example, positions, setPosition }) {
  const { hypotheses, beams, candidates } = example;
  if (!hypotheses.length && !beams.length && !candidates) return null;
  return html`<section aria-labelledby="output-title">
    <h2 id="output-title">What else it might have said</h2>
    ${candidates && html`<${Likeliest} ...${{ example, candidates, positions, setPosition }} />`}
    ${hypotheses.length > 0 && html`<${Hypotheses} hypotheses=${hypotheses} />`}
    ${beams.length > 0 && html`<${Beams} beams=${beams} />`}
  </section>`;
}

/** The likeliest tokens at the position chosen. */
function Likeliest({ example, candidates, positions, setPosition }) {
  const row = { ...example.rows[candidates.row], tokens: candidates.taken };
  const [pointed, point] = useState(-1);
  const chosen = Math.min(positions[candidates.row] ?? 0, row.tokens.length - 1);
  const index = pointed >= 0 ? pointed : chosen;
  const taken = candidates.taken[index];
  const said = candidates.tokens[index].map((token, i) => `${quoted(token)} ${percent(probability(candidates.log_probs[index][i]))}`);
  return html`<h3>Token by token</h3>
    <${TokenRow} id="likeliest" row=${row} title=${candidates.title} note="probability of each in percent, given all before it" chosen=${chosen}
      pointed=${pointed} point=${point} choose=${(i) => (point(-1), setPosition(candidates.row, i))}
      values=${candidates.taken_log_probs.map(probability)} meaning="likely" />
    <${Live} text=${`Instead of ${quoted(row.tokens[index])}: ${said.slice(0, 4).join(", ")}`} />
    <div class="scroll"><table class="bars">
      <caption>Instead of ${quoted(row.tokens[index])} (position ${index + 1})</caption>
      <thead><tr><th scope="col">Token</th><th scope="col">Probability</th><th scope="col" class="number">log P</th></tr></thead>
      <tbody>${candidates.tokens[index].map((token, i) => html`<${Candidate} key=${i} token=${token} logProb=${candidates.log_probs[index][i]}
          taken=${token === taken} />`)}
        ${candidates.taken_log_probs[index] !== null && !candidates.tokens[index].includes(taken) && html`<${Candidate} token=${taken} taken logProb=${candidates.taken_log_probs[index]} />`}
      </tbody>
    </table></div>`;
}

const Candidate = ({ token, logProb, taken }) => html`<tr>
  <th scope="row"><${Piece} token=${token} />${taken && html` <span class="tag">taken</span>`}</th>
  <td class="bar"><span class="amount" style=${{ "--share": probability(logProb) }}></span>${percent(probability(logProb))}</td>
  <td class="number">${fixed(logProb)}</td></tr>`;

function Hypotheses({ hypotheses }) {
  return html`<h3 id="n-best">The ${hypotheses.length === 1 ? "output" : `${hypotheses.length} best outputs`}</h3>
    <div class="scroll" tabindex="0" role="region" aria-labelledby="n-best"><table>
      <thead><tr><th scope="col" class="number">Rank</th><th scope="col">Tokens${" "}
        <span class="note">underlined where they differ from the best; below each, its probability in percent</span></th>
        <th scope="col" class="number">Score</th><th scope="col" class="number">log P</th></tr></thead>
      <tbody>${hypotheses.map(({ tokens, direction, differs, log_probs, score }, rank) => html`<tr key=${rank}>
        <th scope="row" class="number">${rank + 1}</th>
        <td><span class="hypothesis" dir=${direction}>${tokens.map((token, i) => html`<span key=${i} class="step"
            title=${`log P ${fixed(log_probs[i])}`}>${differs[i] ? html`<mark><${Piece} token=${token} /></mark>` : html`<${Piece} token=${token} />`}
            <span class="value">${Math.round(100 * probability(log_probs[i])) || "<1"}</span></span>`)}</span></td>
        <td class="number">${fixed(score, 3)}</td>
        <td class="number">${fixed(log_probs.reduce((sum, one) => sum + one, 0), 3)}</td></tr>`)}
      </tbody></table></div>`;
}

/** Which hypotheses were alive after each step; the one at hand is followed back to its beginning. */
function Beams({ beams }) {
  const [[step, rank], go] = useState([0, 0]);
  const [pointed, point] = useState(null);
  const path = useMemo(() => {
    const found = [];
    for (let [s, r] = pointed ?? [step, rank]; s >= 0 && r >= 0; r = beams[s][r].parent, s--) found[s] = r;
    return found;
  }, [beams, step, rank, pointed]);
  const last = beams[path.length - 1][path.at(-1)];
  const size = Math.max(...beams.map((beam) => beam.length));
  const onKeyDown = (event) => {
    const next = moved(event, rank * beams.length + step, size * beams.length, beams.length);
    if (next < 0) return;
    event.preventDefault();
    const [r, s] = [Math.floor(next / beams.length), next % beams.length];
    event.currentTarget.querySelector(`[data-at="${s},${Math.min(r, beams[s].length - 1)}"]`)?.focus();
  };
  return html`<h3 id="beam">The beam, step by step</h3>
    <p>Each column holds the unfinished hypotheses that were kept after a step, likeliest first, by their last token and log P;${" "}
      <span class="tag">best</span>${" "}marks those that became the best output. Choose one to see what it continues.</p>
    <p class="summary"><bdi>${path.map((r, s) => html`<${Piece} token=${beams[s][r].token} />${" "}`)}</bdi>${" "}<span class="note">log P ${fixed(last.log_prob)}</span></p>
    <${Live} text=${`${path.map((r, s) => spoken(beams[s][r].token)).join(" ")}, log probability ${fixed(last.log_prob)}`} />
    <div class="scroll"><table class="beams" role="grid" aria-labelledby="beam" onKeyDown=${onKeyDown} onMouseLeave=${() => point(null)}>
      <thead><tr><th scope="col">Rank</th>${beams.map((_, s) => html`<th scope="col" key=${s}>${s + 1}</th>`)}</tr></thead>
      <tbody>${[...Array(size).keys()].map((r) => html`<tr key=${r}><th scope="row">${r + 1}</th>
        ${beams.map((beam, s) => html`<td key=${s}>${beam[r] && html`<button type="button" data-at=${`${s},${r}`}
          class=${path[s] === r ? "on-path" : ""} tabindex=${s === step && r === rank ? 0 : -1} aria-pressed=${s === step && r === rank}
          onMouseEnter=${() => point([s, r])} onFocus=${() => (point(null), go([s, r]))} onClick=${() => go([s, r])}>
          <${Piece} token=${beam[r].token} /><span class="value">${fixed(beam[r].log_prob)}</span>
          ${beam[r].on_best && html`<span class="tag">best</span>`}</button>`}</td>`)}</tr>`)}
      </tbody></table></div>`;
}
