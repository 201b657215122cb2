// The page as a whole: which text is shown, and what is chosen in it.

function Page() {
  const [number, choose] = useState(0);
  const [viewName, setView] = useState(report.examples[0].views.at(-1)?.name);
  const [places, setPlaces] = useState({});
  const setPlace = (name, place) => setPlaces((before) => ({ ...before, [name]: place }));
  const example = report.examples[number];
  return html`
    <a class="skip" href="#output-title">Skip attention</a>
    <header>
      <h1>Spotlight <span class="note">on ${report.run}</span></h1>
      <dl class="facts">${Object.entries(report.facts).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      ${report.examples.length > 1 && html`<label class="chooser">Text
        <select value=${number} onChange=${(event) => choose(Number(event.currentTarget.value))}>
          ${report.examples.map(({ title }, i) => html`<option key=${i} value=${i}>${i + 1}. ${title}</option>`)}
        </select></label>`}
    </header>
    <main key=${number}><${Shown} ...${{ example, viewName, setView, places, setPlace }} /></main>
    <footer><details><summary>Libraries of this page and their licences</summary>
      <pre tabindex="0" role="region" aria-label="Licences">${document.scripts[1].textContent.match(/\/\*!\n([\s\S]*?)\n\*\//)[1]}</pre></details></footer>`;
}

/** One text. Positions are chosen by token row, so that all parts of the page follow. */
function Shown({ example, viewName, setView, places, setPlace }) {
  const [positions, setPositions] = useState({});
  const setPosition = (row, index) => setPositions((before) => ({ ...before, [row]: index }));
  const texts = Object.entries(example.rows).filter(([, row]) => row.text);
  return html`
    <dl class="texts">${texts.map(([name, row]) => html`<div key=${name}><dt>${row.title}</dt><dd dir=${row.direction}>${row.text}</dd></div>`)}</dl>
    <${Attention} ...${{ example, positions, setPosition, viewName, setView, places, setPlace }} />
    <${Output} ...${{ example, positions, setPosition }} />
    <${Importance} ...${{ example, places, setPlace, setView }} />
    <${Lens} ...${{ example, positions, setPosition }} />`;
}

render(html`<${Page} />`, document.getElementById("page"));
