// A row of tokens that can be hovered, tabbed over, and shaded by a value for each.

/**
 * @param values a number from 0 to 1 for each token, shown below it, or null; negative: out of sight
 * @param meaning what a value is, for who listens, such as "of its attention"
 * @param point called with an index while the mouse is over it, with -1 when it leaves
 * @param choose called with the index that is focused or clicked
 */
function TokenRow({ row, title, note, values, meaning, chosen, pointed, point, choose, id }) {
  const label = (i) => {
    const value = values?.[i];
    const said = value === undefined ? "" : value < 0 ? ", out of sight" : `, ${percent(value)} ${meaning}`;
    return `${spoken(row.tokens[i])}, token ${i + 1} of ${row.tokens.length}${said}`;
  };
  return html`<div class="row">
    <h4 id=${id}>${title} <span class="note">${note}</span></h4>
    <ol class="tokens" dir=${row.direction} aria-labelledby=${id} onKeyDown=${(event) => arrowKeys(event, "button")}
      onMouseLeave=${() => point(-1)}>
      ${row.tokens.map((token, i) => html`<li key=${i}>
        <button type="button" aria-label=${label(i)} aria-pressed=${i === chosen} class=${i === pointed ? "pointed" : ""}
          onMouseEnter=${() => point(i)} onFocus=${() => choose(i)} onClick=${() => choose(i)}>
          <span class=${values?.[i] < 0 ? "piece unseen" : "piece"} style=${shade(values?.[i])}><${Piece} token=${token} /></span>
          <span class="value">${Math.round((values?.[i] ?? 0) * 100) || ""}</span>
        </button></li>`)}
    </ol>
  </div>`;
}

/** A token as the tokenizer writes it, the sign for a space made faint. */
const Piece = ({ token }) => html`<bdi>${token.split(/(▁)/).map((part) =>
  part === "▁" ? html`<span class="faint">▁</span>` : part)}</bdi>`;
