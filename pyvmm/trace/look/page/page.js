// Draws the timeline of a trace on one canvas: exits over time, a lane for each vCPU, queue, and the interrupts.
// Its data is the JSON in #data (pyvmm/trace/look/html.py says what is in it); whatever comes from the trace reaches the
// page by textContent or fillText alone. The tables around it are there without this script.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  window.addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });
  const canvas = $("canvas");
  if (!canvas) return; // nothing happened
  const data = JSON.parse($("data").textContent);
  const pen = canvas.getContext("2d"), tip = $("tip"), chosen = $("chosen");
  const points = data.points, whole = data.stride === 1, length = Math.max(data.length, 1);
  const view = { from: 0, to: length };
  const hidden = new Set();
  let measure = "exits", colors = {}, width = 0, cursor = -1, asked = false, lanes = [];

  // Figures as people write them.
  const counted = (n, one) => `${grouped(n)} ${one}${n === 1 ? "" : "s"}`;
  const grouped = (n) => Math.round(n).toLocaleString("en-US");
  function duration(ns) {
    for (const [scale, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
      if (Math.abs(ns) >= scale * 0.9995) return `${Number((ns / scale).toPrecision(3))} ${unit}`;
    }
    return `${Math.round(ns)} ns`;
  }
  function moment(ns) { // a time on the axis, as fine as the view needs it
    const span = view.to - view.from;
    const [scale, unit] = length >= 1e9 ? [1e9, "s"] : length >= 1e6 ? [1e6, "ms"] : [1e3, "µs"];
    const digits = Math.max(0, Math.ceil(Math.log10(scale / span)) + 2);
    return `${(ns / scale).toFixed(Math.min(digits, 9))} ${unit}`;
  }
  const kindOf = (point) => data.told[points.told[point]][0];
  const shown = (kind) => !hidden.has(kind);
  const toX = (t) => ((t - view.from) / (view.to - view.from)) * width;
  const toT = (x) => view.from + (x / width) * (view.to - view.from);
  function firstAt(t) { // the place in `points` of the first one at or behind t
    let low = 0, high = points.t.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points.t[middle] < t) low = middle + 1; else high = middle;
    }
    return low;
  }

  // The lanes, from top to bottom.
  const AXIS = 22, PHASES = data.phases.length ? 20 : 0, CHART = 190, LANE = 44, GAP = 8;
  function place() {
    let top = AXIS + PHASES + GAP;
    const add = (lane, height) => { lanes.push({ ...lane, top, height }); top += height + GAP; };
    lanes = [];
    add({ kind: "chart" }, CHART);
    for (const vcpu of data.vcpus) add({ kind: "vcpu", vcpu }, LANE);
    for (const queue of data.queues) add({ kind: "queue", queue }, queue.deepest > 1 ? LANE : LANE - 12);
    if (data.interrupts) add({ kind: "interrupts" }, LANE - 10);
    return top;
  }

  function readColors() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["ink", "soft", "line", "track", "card", ...data.kinds.map((_, at) => `k${at}`)]) {
      colors[name] = style.getPropertyValue(`--${name}`).trim();
    }
  }
  function resize() {
    const ratio = window.devicePixelRatio || 1, height = place();
    width = Math.max(200, canvas.parentElement.clientWidth);
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    readColors();
    draw();
  }
  function redraw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  }

  // Exits (or handler time) by kind in columns over what is in view: exact bins, or single exits where all are here.
  function columns() {
    const span = view.to - view.from;
    let step = span / Math.max(20, Math.floor(width / 4));
    if (!whole || step >= data.bins.width) step = Math.max(1, Math.round(step / data.bins.width)) * data.bins.width;
    const start = Math.floor(view.from / step) * step, count = Math.ceil((view.to - start) / step) + 1;
    const sums = data.kinds.map(() => new Float64Array(count));
    if (whole && step < data.bins.width) {
      for (let at = firstAt(start); at < points.t.length && points.t[at] < start + count * step; at++) {
        const column = Math.floor((points.t[at] - start) / step);
        sums[kindOf(at)][column] += measure === "exits" ? 1 : points.handle[at];
      }
    } else {
      data.bins[measure].forEach((series, kind) => {
        const first = Math.round(start / data.bins.width), each = Math.round(step / data.bins.width);
        for (let at = Math.max(0, first); at < Math.min(series.length, first + count * each); at++) {
          sums[kind][Math.floor((at - first) / each)] += series[at];
        }
      });
    }
    return { start, step, count, sums };
  }

  function write(text, x, y, color, align = "left", font = "12px system-ui, 'DejaVu Sans', sans-serif") {
    pen.font = font;
    pen.textAlign = align;
    pen.fillStyle = colors[color];
    pen.fillText(text, x, y);
  }
  function drawAxis(bottom) {
    const about = (view.to - view.from) / Math.max(2, Math.floor(width / 130));
    const power = 10 ** Math.floor(Math.log10(about));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= about);
    for (let t = Math.ceil(view.from / step) * step; t <= view.to; t += step) {
      const x = toX(t);
      pen.fillStyle = colors.line;
      pen.fillRect(x, AXIS - 6, 1, bottom - AXIS);
      if (x < width - 60) write(moment(t), x + 4, AXIS - 8, "soft");
      if (step <= 0) break;
    }
  }
  function drawPhases(bottom) {
    const before = data.phases.filter((phase) => phase.t < view.from).pop(); // the one that the view begins in
    const font = "600 12px system-ui, 'DejaVu Sans', sans-serif";
    let free = -1;
    if (before) {
      write(before.name, 2, AXIS + 14, "soft", "left", font);
      free = pen.measureText(before.name).width + 12;
    }
    data.phases.forEach((phase) => {
      const x = toX(phase.t);
      if (x < -1 || x > width) return;
      pen.fillStyle = colors.soft;
      for (let y = AXIS; y < bottom; y += 7) pen.fillRect(x, y, 1, 4);
      pen.font = font;
      const wide = pen.measureText(phase.name).width;
      const left = Math.min(x + 4, width - wide - 2);
      if (left < free) return; // its line is there; the table has its name
      write(phase.name, left, AXIS + 14, "ink", "left", font);
      free = left + wide + 10;
    });
  }
  function drawChart(lane) {
    const { start, step, count, sums } = columns();
    let most = 0;
    for (let column = 0; column < count; column++) {
      let sum = 0;
      sums.forEach((series, kind) => { if (shown(kind)) sum += series[column]; });
      most = Math.max(most, sum);
    }
    const base = lane.top + lane.height, scale = most ? (lane.height - 20) / most : 0;
    for (let column = 0; column < count; column++) {
      const x = toX(start + column * step), wide = Math.max(1, (step / (view.to - view.from)) * width - 1);
      let y = base;
      sums.forEach((series, kind) => {
        if (!series[column] || !shown(kind)) return;
        const high = series[column] * scale;
        pen.fillStyle = colors[`k${kind}`];
        pen.fillRect(x, y - high, wide, high);
        y -= high;
      });
    }
    pen.fillStyle = colors.line;
    pen.fillRect(0, base, width, 1);
    const what = measure === "exits" ? counted(most, "exit") : duration(most);
    label(`${measure === "exits" ? "Exits" : "Handler time"} by kind, up to ${what} in ${duration(step)}`, lane);
  }
  function label(text, lane) {
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    pen.globalAlpha = 0.85;
    pen.fillStyle = colors.card;
    pen.fillRect(0, lane.top - 1, pen.measureText(text).width + 8, 16);
    pen.globalAlpha = 1;
    write(text, 2, lane.top + 11, "soft");
  }
  function drawVcpu(lane) {
    const top = lane.top + 17, high = lane.height - 17;
    pen.fillStyle = colors.track;
    pen.fillRect(0, top, width, high);
    const first = firstAt(view.from - data.longest);
    for (let at = first; at < points.t.length && points.t[at] <= view.to; at++) {
      const kind = kindOf(at);
      if (points.vcpu[at] !== lane.vcpu || !shown(kind)) continue;
      const x = toX(points.t[at]);
      pen.fillStyle = colors[`k${kind}`];
      pen.fillRect(x, top, Math.max(1, toX(points.t[at] + points.handle[at]) - x), high);
    }
    label(`vCPU ${lane.vcpu}${whole ? "" : `, one exit in ${data.stride}`}`, lane);
  }
  function drawQueue(lane) {
    const { queue } = lane, base = lane.top + lane.height, scale = (lane.height - 18) / Math.max(1, queue.deepest);
    pen.fillStyle = colors.k0;
    queue.depth.forEach((depth, at) => {
      const x = toX(at * queue.width), next = toX((at + 1) * queue.width);
      if (depth && next > 0 && x < width) pen.fillRect(x, base - depth * scale, Math.max(1, next - x), depth * scale);
    });
    pen.fillStyle = colors.line;
    pen.fillRect(0, base, width, 1);
    label(`${queue.name} queue ${queue.index}: requests in flight, up to ${grouped(queue.deepest)}`, lane);
  }
  function drawInterrupts(lane) {
    const { counts, width: wide } = data.interrupts, top = lane.top + 17, most = Math.max(1, ...counts);
    pen.fillStyle = colors.ink;
    counts.forEach((count, at) => {
      const x = toX(at * wide), next = toX((at + 1) * wide);
      if (!count || next < 0 || x > width) return;
      pen.globalAlpha = 0.35 + (0.65 * count) / most;
      pen.fillRect(x, top, Math.max(1, next - x), lane.height - 17);
    });
    pen.globalAlpha = 1;
    label(`Interrupts raised, up to ${grouped(most)} in ${duration(wide)}`, lane);
  }
  function draw() {
    const bottom = lanes.length ? lanes[lanes.length - 1].top + lanes[lanes.length - 1].height : AXIS;
    pen.clearRect(0, 0, width, bottom + 40);
    drawAxis(bottom);
    for (const lane of lanes) {
      ({ chart: drawChart, vcpu: drawVcpu, queue: drawQueue, interrupts: drawInterrupts })[lane.kind](lane);
    }
    drawPhases(bottom);
    if (cursor >= 0) {
      const x = toX(points.t[cursor]);
      pen.fillStyle = colors.ink;
      pen.fillRect(x, AXIS, 2, bottom - AXIS);
    }
    $("range").textContent = `${moment(view.from)} to ${moment(view.to)}`;
  }

  // What an exit was, line by line.
  function tell(at) {
    const [, reason, register, access, where, size, words, spec, by] = data.told[points.told[at]];
    const name = data.names[points.told[at]];
    const access_ = access && `${access} of ${size} byte${size === 1 ? "" : "s"} at ${where}`;
    return [
      [name, register, access].filter(Boolean).join(" ") || reason,
      words,
      [reason, access_].filter(Boolean).join(", "),
      `at ${moment(points.t[at])}, vCPU ${points.vcpu[at]}, RIP ${data.rips[points.rip[at]]}`,
      `handler ${duration(points.handle[at])} in ${by}, KVM_RUN before ${duration(points.run[at])}`,
      spec,
    ].filter(Boolean);
  }
  function nearest(x, vcpu) {
    const t = toT(x), reach = (12 / width) * (view.to - view.from);
    let best = -1, far = reach;
    for (let at = firstAt(t - reach - data.longest); at < points.t.length && points.t[at] <= t + reach; at++) {
      if (points.vcpu[at] !== vcpu || !shown(kindOf(at))) continue;
      const away = t < points.t[at] ? points.t[at] - t : Math.max(0, t - points.t[at] - points.handle[at]);
      if (away < far || (away === 0 && best < 0)) { best = at; far = away; }
    }
    return best;
  }
  function under(x, y) { // what is told of the place (x, y), as lines
    const lane = lanes.find((one) => y >= one.top && y < one.top + one.height), t = toT(x);
    if (!lane) return [];
    if (lane.kind === "vcpu") {
      const at = nearest(x, lane.vcpu);
      return at < 0 ? [] : tell(at);
    }
    if (lane.kind === "chart") {
      const { start, step, sums } = columns(), column = Math.floor((t - start) / step);
      const rows = sums.map((series, kind) => [series[column] || 0, kind]).filter(([n, kind]) => n && shown(kind));
      const lines = rows.sort((a, b) => b[0] - a[0]).map(([n, kind]) =>
        `${data.kinds[kind]}: ${measure === "exits" ? grouped(n) : duration(n)}`);
      return [`${moment(start + column * step)}, ${duration(step)}`, ...(lines.length ? lines : ["no exits"])];
    }
    if (lane.kind === "queue") {
      const depth = lane.queue.depth[Math.floor(t / lane.queue.width)] || 0;
      return [`${lane.queue.name} queue ${lane.queue.index}`, `${grouped(depth)} in flight at ${moment(t)}`];
    }
    const many = data.interrupts.counts[Math.floor(t / data.interrupts.width)] || 0;
    return [counted(many, "interrupt"), `in ${duration(data.interrupts.width)} at ${moment(t)}`];
  }
  function fill(element, lines) {
    element.replaceChildren(...lines.map((line, at) => {
      const part = document.createElement(at ? "div" : "b");
      part.textContent = line;
      return part;
    }));
  }
  function hover(x, y) {
    const lines = under(x, y);
    tip.hidden = !lines.length;
    if (!lines.length) return;
    fill(tip, lines);
    tip.style.left = `${Math.max(0, Math.min(x + 14, width - tip.offsetWidth))}px`;
    tip.style.top = `${y + 16}px`;
  }

  // Moving about.
  function show(from, to) {
    const span = Math.min(Math.max(to - from, Math.min(length, 2000)), length);
    view.from = Math.min(Math.max(0, from + (to - from - span) / 2), length - span);
    view.to = view.from + span;
    redraw();
  }
  function zoom(factor, x = width / 2) {
    const t = toT(x);
    show(t - (t - view.from) * factor, t + (view.to - t) * factor);
  }
  const pan = (share) => show(view.from + (view.to - view.from) * share, view.to + (view.to - view.from) * share);
  function step(by) {
    let next = cursor < 0 ? firstAt(view.from) - (by < 0 ? 0 : 1) : cursor;
    do next += by; while (next >= 0 && next < points.t.length && !shown(kindOf(next)));
    if (next < 0 || next >= points.t.length) return;
    choose(next);
    if (points.t[next] < view.from || points.t[next] > view.to) {
      const half = (view.to - view.from) / 2;
      show(points.t[next] - half, points.t[next] + half);
    }
  }
  function choose(at) {
    cursor = at;
    chosen.textContent = tell(at).join(" · ");
    redraw();
  }

  let drag = null;
  const spot = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: spot(event)[0], from: view.from, to: view.to, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = spot(event);
    if (drag && Math.abs(x - drag.x) > 3) drag.moved = true;
    if (drag && drag.moved) {
      const by = ((drag.x - x) / width) * (drag.to - drag.from);
      show(drag.from + by, drag.to + by);
      tip.hidden = true;
    } else hover(x, y);
  });
  canvas.addEventListener("pointerup", (event) => {
    const [x, y] = spot(event), lane = lanes.find((one) => y >= one.top && y < one.top + one.height);
    if (drag && !drag.moved && lane && lane.kind === "vcpu") {
      const at = nearest(x, lane.vcpu);
      if (at >= 0) choose(at);
    }
    drag = null;
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("dblclick", (event) => zoom(0.25, spot(event)[0]));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey && document.activeElement !== canvas) return; // the page scrolls
    event.preventDefault();
    if (event.shiftKey) pan(Math.sign(event.deltaY || event.deltaX) * 0.1);
    else zoom(event.deltaY > 0 ? 1.25 : 0.8, spot(event)[0]);
  }, { passive: false });
  const keys = {
    ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2),
    0: () => show(0, length), ".": () => step(1), ",": () => step(-1),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  for (const button of document.querySelectorAll("[data-key]")) {
    button.addEventListener("click", () => keys[button.dataset.key]());
  }
  for (const button of document.querySelectorAll("[data-kind]")) {
    button.addEventListener("click", () => {
      const kind = Number(button.dataset.kind), off = !hidden.delete(kind);
      if (off) hidden.add(kind);
      button.setAttribute("aria-pressed", String(!off));
      redraw();
    });
  }
  $("measure").addEventListener("change", (event) => { measure = event.target.value; redraw(); });
  window.addEventListener("resize", resize);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", resize);
  $("tools").hidden = false;
  resize();
  document.documentElement.dataset.drawn = `${points.t.length}`;
})();
