// Draws the Vega-Lite specifications of a page, redraws them when the colour scheme changes, and keeps
// the curves of a run that still trains up to date. Specifications are JSON in
// <script type="application/json">; expressions are interpreted (ast), never evaluated as code.
"use strict";

(() => {
  const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8A6FD1"];
  const POLL_MS = 2000;
  const figures = []; // {box, spec, view}

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function theme() {
    const [text, faint, line] = [css("--text"), css("--faint"), css("--line")];
    const words = { labelColor: text, titleColor: text, labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal" };
    return {
      background: "transparent",
      font: "system-ui, DejaVu Sans, sans-serif",
      axis: { ...words, gridColor: line, domainColor: faint, tickColor: faint, gridOpacity: 0.6 },
      legend: { ...words, labelLimit: 190, orient: "top", columns: 2, symbolStrokeWidth: 2.5, symbolOpacity: 1 },
      header: words,
      title: { color: text, fontSize: 12, fontWeight: "normal", anchor: "start" },
      text: { color: text, fill: text },
      view: { stroke: null },
      range: { category: PALETTE },
      style: { words: { fill: text } },
    };
  }

  async function draw(figure) {
    const { box, spec } = figure;
    try {
      const result = await vegaEmbed(box, structuredClone(spec), {
        mode: "vega-lite",
        ast: true,
        renderer: "svg",
        config: theme(),
        tooltip: { theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light" },
        actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
        downloadFileName: box.dataset.name || "plot",
        i18n: { SVG_ACTION: "Save as SVG", PNG_ACTION: "Save as PNG", CLICK_TO_VIEW_ACTIONS: "Save this plot" },
        loader: { load: () => Promise.reject(new Error("plots load nothing")) },
      });
      figure.view = result.view;
      box.dataset.drawn = "yes";
    } catch (error) {
      box.classList.add("failed");
      box.textContent = "This plot could not be drawn; its data are in the CSV file.";
      console.error(error);
    }
  }

  async function drawAll(root) {
    if (typeof vegaEmbed === "undefined") return;
    for (const source of root.querySelectorAll("script[type='application/json'][data-spec]")) {
      const box = source.parentElement.querySelector(".draw");
      if (!box || box.dataset.taken) continue;
      box.dataset.taken = "yes";
      const figure = { box, spec: JSON.parse(source.textContent), view: null };
      figures.push(figure);
      await draw(figure);
    }
  }

  // A run that trains: ask for new points and put each into the plot that shows its series.
  function follow(live) {
    let after = live.dataset.after;
    const note = document.getElementById("live-note");
    const again = () => setTimeout(ask, POLL_MS);
    async function ask() {
      if (document.hidden) return again();
      try {
        const query = new URLSearchParams({ after, keys: live.dataset.keys || "" });
        const answer = await fetch(`${live.dataset.live}?${query}`, { headers: { accept: "application/json" } });
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        const news = await answer.json();
        // at its end, or when it went back to a checkpoint, the page is another one
        if (news.final || news.reset || (news.points.length && !figures.length)) return location.reload();
        after = String(news.after);
        for (const figure of figures) {
          const rows = news.points.filter((point) => (figure.box.dataset.series || "").split("\n").includes(point.k));
          if (!rows.length) continue;
          figure.spec.data.values.push(...rows);
          if (figure.view) await figure.view.insert("points", rows).resize().runAsync();
        }
        if (note && news.points.length) note.textContent = news.note;
        live.dataset.polls = String(Number(live.dataset.polls || 0) + 1);
      } catch (error) {
        if (note) note.textContent = "the server does not answer; trying again";
      }
      again();
    }
    again();
  }

  document.addEventListener("DOMContentLoaded", async () => {
    await drawAll(document);
    const live = document.querySelector("[data-live]");
    if (live) follow(live);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", async () => {
    for (const figure of figures) {
      if (figure.view) figure.view.finalize();
      await draw(figure);
    }
  });
})();
