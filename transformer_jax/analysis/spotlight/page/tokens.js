// A row of tokens that can be hovered, tabbed over, and shaded by a value for each.

/**
 * @param values a number from 0 to 1 for each token, shown below it, or null
 * @param meaning what a value is, for who listens, such as "of its attention"
 * @param point called with an index while the mouse is over it, with -1 when it leaves
 * @param choose called with the index that is focused or clicked
 */
function TokenRow({ row, title, note, values, meaning, chosen, pointed, point, choose, id }) {
  return html`<div class="row">
    <p class="row-title" id=${id}>${title} <span class="note">${note}</span></p>
    <ol class="tokens" dir=${row.direction} aria-labelledby=${id} onKeyDown=${(event) => arrowKeys(event, "button")}
      onMouseLeave=${() => point(-1)}>
      ${row.tokens.map((token, i) => html`<li key=${i}>
        <button type="button" aria-pressed=${i === chosen} class=${i === pointed ? "pointed" : ""}
          onMouseEnter=${() => point(i)} onFocus=${() => choose(i)} onClick=${() => choose(i)}>
          <span class="piece" style=${shade(values?.[i])}><${Piece} token=${token} /></span>
          <span class="hidden">, token ${i + 1} of ${row.tokens.length}, </span>
          <${Value} value=${values?.[i]} meaning=${meaning} />
        </button></li>`)}
    </ol>
  </div>`;
}

/** A value in percent, with words for who listens. */
function Value({ value, meaning }) {
  const shown = Math.round(100 * value) || "";
  const said = value === undefined ? "" : `${shown ? "" : "less than 1"} percent ${meaning}`;
  return html`<span class="value">${shown}<span class="hidden">${said}</span></span>`;
}

/** A token as the tokenizer writes it, the sign for a space made faint. */
const Piece = ({ token }) => html`<bdi>${visible(token).split(/(▁)/).map((part) =>
  part === "▁" ? html`<span class="faint" aria-hidden="true">▁</span>` : part)}</bdi>`;
