(() => {
  "use strict";
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const touch = matchMedia("(pointer: coarse)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const settings = { responsive: true, displayModeBar: false }; // drag to zoom, double click to go back
  const drawn = new Set();
  const at = {}; // run -> the shown step's place

  function themed(layout) {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line"), automargin: false };
    const out = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: colour("--ink") },
      hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      dragmode: touch.matches ? false : "zoom" };
    for (const name of ["xaxis", "yaxis"]) out[name] = { ...axis, ...layout[name] };
    if (layout.shapes) out.shapes = layout.shapes.map((s) => ({ ...s, line: { ...s.line, color: colour("--ink") } }));
    return out;
  }

  const scale = () => [[0, "#2166ac"], [0.25, dark.matches ? "#2b557f" : "#92c5de"], [0.5, colour("--zero")],
    [0.75, dark.matches ? "#8f3d34" : "#f4a582"], [1, "#b2182b"]];

  // What a plot of the embedding space shows at a step.
  function points(run, place) {
    const { image, text } = page.spaces[run].frames;
    const x = [], y = [];
    image[place].forEach((a, i) => {
      const b = text[place][i];
      x.push(a[0], b[0], null);
      y.push(a[1], b[1], null);
    });
    const of = (side, i) => side[place].map((p) => p[i]);
    return [{ x, y }, { x: of(image, 0), y: of(image, 1) }, { x: of(text, 0), y: of(text, 1) }];
  }

  function figure(id) {
    const { data, layout } = page.plots[id];
    const [kind, run] = id.split("-");
    if (kind === "plane") return { data: points(run, at[run]).map((p, i) => ({ ...data[i], ...p })), layout: themed(layout) };
    if (kind === "matrix") {
      const { similarity } = page.spaces[run].frames;
      const limit = Math.max(...similarity.flat(2).map((v) => Math.abs(v ?? 0))) || 1;
      return { layout: themed(layout), data: [{ ...data[0], z: similarity[at[run]], zmin: -limit, zmax: limit, colorscale: scale() }] };
    }
    return { data, layout: themed(layout) };
  }

  function draw(div) {
    if (drawn.has(div.id) || !page.plots[div.id]) return;
    drawn.add(div.id);
    const { data, layout } = figure(div.id);
    Plotly.newPlot(div, data, layout, settings).then(() => listen(div));
  }

  function listen(div) {
    const [kind, run] = div.id.split("-");
    if (!page.spaces[run] || kind === "curve") return;
    const show = ({ points: [point] }) => {
      const { frames, pairs } = page.spaces[run];
      if (kind === "plane") card(div, run, pairs[point.pointNumber], pairs[point.pointNumber].caption, "");
      if (kind === "matrix") {
        const [row, column] = point.pointNumber.length ? point.pointNumber : [point.y, point.x];
        const cosines = frames.similarity[at[run]][row];
        const scale = frames.scales[at[run]];
        const powers = cosines.map((c) => Math.exp(scale * (c - Math.max(...cosines))));
        const share = powers[column] / powers.reduce((a, b) => a + b);
        const numbers = cosines[column] === null ? "no number" : `cosine ${cosines[column].toFixed(3)}, ` +
          `probability ${(100 * share).toFixed(1)}% among these captions (logit scale ${scale})`;
        card(div, run, pairs[frames.rows[row]], pairs[frames.rows[column]].caption, numbers);
      }
    };
    div.on("plotly_hover", show);
    div.on("plotly_click", show);
  }

  function card(div, run, pair, caption, numbers) {
    const box = document.getElementById(div.id.replace("-", "-card-"));
    const parts = [];
    if (pair.image) {
      const image = new Image();
      image.src = pair.image;
      image.alt = pair.caption;
      parts.push(image);
    }
    const line = (text, name) => {
      const p = document.createElement("p");
      p.textContent = text;
      p.dir = "auto";
      if (name) p.className = name;
      parts.push(p);
    };
    if (caption !== pair.caption) line(`its own caption: ${pair.caption}`, "about");
    line(caption);
    if (numbers) line(numbers, "about");
    box.replaceChildren(...parts);
  }

  function go(run, place) {
    at[run] = place;
    const { frames, total } = page.spaces[run];
    const all = (what) => document.querySelectorAll(`${what}[data-run="${run}"]`);
    all("input.step").forEach((input) => { input.value = place; });
    const step = frames.steps[place].toLocaleString("en");
    all("output.step-label").forEach((o) => { o.textContent = `step ${step}` + (total ? ` of ${total.toLocaleString("en")}` : ""); });
    const m = frames.measures[place];
    const shown = (v) => (v === null ? "no number" : v.toFixed(2));
    all("p.measures").forEach((p) => {
      p.textContent = `Mean cosine of matching pairs ${shown(m.own)}, of others ${shown(m.other)}. Distance between the mean ` +
        `image and the mean caption ${shown(m.gap)}. ${m.right} of ${m.pairs} images are nearest to their own caption.`;
    });
    const plane = document.getElementById(`plane-${run}`), matrix = document.getElementById(`matrix-${run}`);
    if (drawn.has(plane.id)) {
      const motion = still.matches ? 0 : 350;
      Plotly.animate(plane, { data: points(run, place), traces: [0, 1, 2] },
        { mode: "immediate", transition: { duration: motion, easing: "cubic-in-out" }, frame: { duration: motion, redraw: false } });
    }
    if (drawn.has(matrix.id)) Plotly.restyle(matrix, { z: [frames.similarity[place]] });
  }

  const playing = {};
  function play(run) {
    const buttons = document.querySelectorAll(`button.play[data-run="${run}"]`);
    const stop = () => { clearInterval(playing[run]); delete playing[run]; buttons.forEach((b) => { b.textContent = "▶"; }); };
    if (playing[run]) return stop();
    const last = page.spaces[run].frames.steps.length - 1;
    if (at[run] === last) go(run, 0);
    buttons.forEach((b) => { b.textContent = "❚❚"; });
    playing[run] = setInterval(() => (at[run] < last ? go(run, at[run] + 1) : stop()), 700);
  }

  for (const [run, { frames }] of Object.entries(page.spaces)) {
    const last = frames.steps.length - 1;
    document.querySelectorAll(`input.step[data-run="${run}"]`).forEach((input) => {
      input.max = last;
      input.addEventListener("input", () => go(run, Number(input.value)));
    });
    document.querySelectorAll(`button.play[data-run="${run}"]`).forEach((b) => b.addEventListener("click", () => play(run)));
    go(run, last);
  }

  // A plot is drawn when it comes near the window: the page opens at once, and folded parts have their width by then.
  const seen = new IntersectionObserver((entries) => entries.forEach((e) => { if (e.isIntersecting) { seen.unobserve(e.target); draw(e.target); } }),
    { rootMargin: "600px" });
  document.querySelectorAll(".plot").forEach((div) => seen.observe(div));
  dark.addEventListener("change", () => drawn.forEach((id) => {
    const { data, layout } = figure(id);
    Plotly.react(document.getElementById(id), data, layout, settings);
  }));
})();
