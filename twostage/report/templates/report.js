"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  // Light and dark: as the system says, until the button is pressed.
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const applyTheme = () => {
    root.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
    drawCharts();
  };
  byId("theme").addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    applyTheme();
  });
  system.addEventListener("change", applyTheme);

  // Pictures: each is in the store once, however often it is shown.
  const store = new Map(JSON.parse(byId("store").textContent).filter(Boolean));
  const source = (key) => {
    const found = store.get(key);
    return found?.startsWith("=") ? store.get(found.slice(1)) : found;
  };
  const fill = (panel) => {
    for (const button of panel.querySelectorAll("[data-picture]:not([data-filled])")) {
      const uri = source(button.dataset.picture);
      button.dataset.filled = "";
      if (uri) button.firstElementChild.src = uri;
      else {
        button.disabled = true;
        button.classList.add("broken");
        button.title = "This picture cannot be read";
      }
    }
  };
  const panels = [...document.querySelectorAll(".panel")];
  const subject = byId("subject"), seed = byId("seed");
  const showPanel = () => {
    const fits = (panel, exact) =>
      (!subject || panel.dataset.subject === subject.value) && (!exact || !seed || panel.dataset.seed === seed.value);
    const shown = panels.find((panel) => fits(panel, true)) ?? panels.find((panel) => fits(panel, false));
    for (const panel of panels) panel.hidden = panel !== shown;
    if (!shown) return;
    if (seed) seed.value = shown.dataset.seed;
    fill(shown);
  };
  subject?.addEventListener("change", showPanel);
  seed?.addEventListener("change", showPanel);
  showPanel();

  // A picture opens large; arrows go through its row, and up and down through the strategies.
  const viewer = byId("viewer");
  let open = null;
  const show = (button) => {
    open = button;
    const image = button.firstElementChild;
    const [who, ...what] = image.alt.split(": ");
    byId("large").src = image.src;
    byId("large").alt = image.alt;
    byId("who").textContent = who;
    byId("what").textContent = what.join(": ");
    if (!viewer.open) viewer.showModal();
  };
  const move = (way) => {
    const [down, right] = { left: [0, -1], right: [0, 1], up: [-1, 0], down: [1, 0] }[way];
    const shots = [...open.closest(".panel").querySelectorAll(".shot:not(:disabled)")];
    let [row, column] = [+open.dataset.row, +open.dataset.column];
    for (let far = 0; far < 40; far++) {
      row += down;
      column += right;
      const next = shots.find((shot) => +shot.dataset.row === row && +shot.dataset.column === column);
      if (next) return show(next);
    }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".shot");
    if (button && !viewer.contains(button)) show(button);
  });
  viewer.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" }[event.key];
    if (!way) return;
    event.preventDefault();
    move(way);
  });
  viewer.addEventListener("click", (event) => {
    const way = event.target.closest("[data-move]")?.dataset.move;
    if (way) move(way);
    else if (event.target === viewer || event.target.id === "close") viewer.close();
  });
  viewer.addEventListener("close", () => open?.focus());

  // Tables: numbers by value, what is missing always last; a first click puts the best on top.
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, index) => {
      head.querySelector("button").addEventListener("click", () => {
        const body = table.tBodies[0];
        const rows = [...body.rows];
        const keys = new Map(rows.map((row) => [row, row.cells[index].dataset.sort]));
        const numeric = [...keys.values()].every((key) => key === "" || !Number.isNaN(Number(key)));
        const first = head.dataset.better === "higher" ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const way = head.getAttribute("aria-sort") === first ? second : first;
        const sign = way === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          const [x, y] = [keys.get(a), keys.get(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          return sign * (numeric ? x - y : compare(x, y));
        });
        for (const other of heads) other.setAttribute("aria-sort", other === head ? way : "none");
        body.append(...rows);
      });
    });
  }

  // Charts: the library is unpacked after the page is there, and drawn anew when the colours change.
  const charts = JSON.parse(byId("chart-data").textContent);
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  const painted = (value, style) => {
    if (typeof value === "string" && value.startsWith("var(")) return style.getPropertyValue(value.slice(4, -1)).trim();
    if (Array.isArray(value)) return value.map((part) => painted(part, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, painted(part, style)]));
    }
    return value;
  };
  const layoutOf = (figure) => {
    const axis = (own) => ({
      gridcolor: "var(--line)", zerolinecolor: "var(--line)", linecolor: "var(--line)", automargin: true,
      fixedrange: true, tickfont: { size: 12 }, ...own,
      ...(own?.title ? { title: { font: { size: 12.5 }, standoff: 10, ...own.title } } : {}),
    });
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false,
      margin: { l: 8, r: 12, t: 12, b: 8 }, font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "var(--soft)" },
      hoverlabel: { bgcolor: "var(--card)", bordercolor: "var(--faint)", font: { color: "var(--ink)" } },
      ...figure.layout, xaxis: axis(figure.layout.xaxis), yaxis: axis(figure.layout.yaxis),
    };
  };
  let ready = false;
  function drawCharts() {
    if (!ready) return;
    const style = getComputedStyle(root);
    for (const place of document.querySelectorAll("[data-chart]")) {
      const figure = charts[place.dataset.chart];
      const { data, layout } = painted({ data: figure.data, layout: layoutOf(figure) }, style);
      // Where it is narrow, names would cover the points; the legend has them.
      const narrow = place.clientWidth < 560;
      if (narrow) for (const trace of data) if (trace.mode === "markers+text") trace.mode = "markers";
      Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
    }
    root.dataset.charts = "drawn";
  }
  applyTheme();
  const packed = byId("plotly");
  if (packed) {
    unpack(packed.textContent).then(() => {
      ready = true;
      drawCharts();
    }, () => {
      for (const place of document.querySelectorAll("[data-chart]")) {
        place.textContent = "This browser cannot unpack the charts; the table below has their figures.";
      }
    });
  }
})();
