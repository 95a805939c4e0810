"use strict";
/* Draws the curves of a report from the JSON in it, and opens its pictures. Texts of the run are set as text, never as HTML. */
(() => {
  const HEIGHT = 190, WIDE_HEIGHT = 270, LEFT = 54, RIGHT = 12, TOP = 10, BOTTOM = 24, COLORS = 8;
  const LEAST_CHOSEN = 6; /* pixels of a drag that chooses steps */
  const data = JSON.parse(document.getElementById("curves").textContent);

  /* A namespace is a URL, and the page has none: take it from an element that the parser has made. */
  const template = document.createElement("div");
  template.innerHTML = "<svg></svg>";
  const SVG = template.firstChild.namespaceURI;

  const shape = (parent, tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  };
  const part = (parent, tag, css, text) => {
    const element = document.createElement(tag);
    if (css) element.className = css;
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  };
  const color = (index) => `var(--c${index % COLORS})`;

  /* Numbers */

  const digits = (value, places) => String(Number(value.toPrecision(places)));
  const number = (value, places = 4) => {
    const size = Math.abs(value);
    if (size >= 1e12) return digits(value / 1e12, places) + " T";
    if (size >= 1e9) return digits(value / 1e9, places) + " B";
    if (size >= 1e6) return digits(value / 1e6, places) + " M";
    if (size >= 1e4) return Math.round(value).toLocaleString("en-US");
    if (size !== 0 && size < 1e-3) return value.toExponential(Math.max(0, places - 2)).replace(/\.?0+e/, "e");
    return digits(value, places);
  };

  const linearTicks = (low, high, most) => {
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
    const ticks = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) ticks.push(n * step);
    return ticks;
  };
  const logTicks = (low, high) => {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const factor of [1, 2, 5]) {
        const value = factor * 10 ** power;
        if (value >= low * 0.999 && value <= high * 1.001) ticks.push(value);
      }
    }
    return ticks.length > 7 ? ticks.filter((value) => Math.log10(value) % 1 === 0) : ticks;
  };

  /* Centered moving average over `window` values, fewer at the ends. */
  const smooth = (values, window) => {
    const sums = [0];
    for (const value of values) sums.push(sums[sums.length - 1] + value);
    return values.map((_, i) => {
      const from = Math.max(0, i - ((window - 1) >> 1)), to = Math.min(values.length, i + (window >> 1) + 1);
      return (sums[to] - sums[from]) / (to - from);
    });
  };

  /* Index of the value in ascending `steps` that is nearest to `step`. */
  const nearest = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  };

  class Chart {
    constructor(figure, chart) {
      this.figure = figure;
      this.unit = chart.unit ? ` ${chart.unit}` : "";
      this.series = chart.series.map((one, index) => {
        const window = one.exact ? 1 : Math.max(1, Math.floor(one.y.length / 25));
        const x = data.steps[one.x];
        return { ...one, x, color: color(index), shown: true, smoothed: window > 1 ? smooth(one.y, window) : null };
      });
      this.wide = figure.classList.contains("wide");
      this.zoom = null;
      this.log = false;
      this.caption(chart);
      this.svg = shape(figure, "svg", { role: "img", "aria-label": chart.title });
      this.tip = part(figure, "div", "tip");
      this.tip.hidden = true;
      this.svg.addEventListener("pointermove", (event) => this.move(event));
      this.svg.addEventListener("pointerleave", () => this.leave());
      this.svg.addEventListener("pointerdown", (event) => this.press(event));
      this.svg.addEventListener("pointerup", (event) => this.release(event));
      this.svg.addEventListener("dblclick", () => this.whole());
      new ResizeObserver(() => this.draw()).observe(figure);
    }

    caption(chart) {
      const head = part(this.figure, "figcaption");
      const name = part(head, "b", "", chart.title);
      if (chart.about) name.title = chart.about;
      if (chart.unit) part(head, "span", "muted", `in ${chart.unit}`);
      if (chart.each > 1) part(head, "span", "muted", `each point: mean of ${chart.each} steps`);
      if (this.wide && this.series.every((one) => one.y.every((value) => value > 0))) {
        const button = part(head, "button", "act", "log scale");
        button.setAttribute("aria-pressed", "false");
        button.addEventListener("click", () => {
          this.log = !this.log;
          button.setAttribute("aria-pressed", this.log);
          this.draw();
        });
      }
      this.all = part(head, "button", "act", "all steps");
      this.all.hidden = true;
      this.all.addEventListener("click", () => this.whole());
      if (this.series.length < 2) return;
      const list = part(this.figure, "div", "series");
      for (const one of this.series) {
        const button = part(list, "button");
        part(button, "span", "swatch").style.background = one.color;
        button.append(one.name);
        button.setAttribute("aria-pressed", "true");
        button.title = [one.about, "Click: hide or show. Shift and click: this one alone."].filter(Boolean).join(" ");
        one.button = button;
        button.addEventListener("click", (event) => this.toggle(one, event.shiftKey));
      }
    }

    toggle(one, alone) {
      if (alone) {
        const only = this.series.every((other) => other.shown === (other === one));
        for (const other of this.series) other.shown = only || other === one;
      } else {
        one.shown = !one.shown;
      }
      for (const other of this.series) other.button.setAttribute("aria-pressed", other.shown);
      this.draw();
    }

    whole() {
      this.zoom = null;
      this.draw();
    }

    /* Scales */

    ranges() {
      const first = Math.min(...this.series.map((one) => one.x[0]));
      const last = Math.max(...this.series.map((one) => one.x[one.x.length - 1]));
      this.from = this.zoom ? this.zoom[0] : first;
      this.to = this.zoom ? this.zoom[1] : last;
      if (this.from === this.to) { this.from -= 1; this.to += 1; }
      let low = Infinity, high = -Infinity;
      for (const one of this.series) {
        if (!one.shown) continue;
        one.x.forEach((step, i) => {
          if (step < this.from || step > this.to) return;
          low = Math.min(low, one.y[i]);
          high = Math.max(high, one.y[i]);
        });
      }
      if (low > high) { low = 0; high = 1; }
      if (low === high) { const room = Math.abs(low) * 0.1 || 1; low -= room; high += room; }
      if (this.log && low > 0) {
        this.low = low / 1.05;
        this.high = high * 1.05;
      } else {
        const room = 0.05 * (high - low);
        this.low = low >= 0 && low < 0.2 * high ? 0 : low - room;
        this.high = high + room;
      }
    }

    X(step) { return LEFT + (step - this.from) / (this.to - this.from) * (this.width - LEFT - RIGHT); }
    step(x) { return this.from + (x - LEFT) / (this.width - LEFT - RIGHT) * (this.to - this.from); }
    Y(value) {
      const scale = this.log && this.low > 0 ? Math.log : (v) => v;
      const share = (scale(value) - scale(this.low)) / (scale(this.high) - scale(this.low));
      return this.height - BOTTOM - share * (this.height - TOP - BOTTOM);
    }

    /* Drawing */

    draw() {
      this.width = this.figure.clientWidth;
      if (this.width < 60) return;
      this.height = this.wide ? WIDE_HEIGHT : HEIGHT;
      this.ranges();
      this.all.hidden = !this.zoom;
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      this.svg.setAttribute("height", this.height);
      this.svg.replaceChildren();
      this.axes();
      for (const mark of data.marks) this.launch(mark);
      for (const one of this.series) if (one.shown) this.curve(one);
      this.over = shape(this.svg, "g", {});
    }

    axes() {
      const bottom = this.height - BOTTOM, right = this.width - RIGHT;
      const ticks = this.log && this.low > 0 ? logTicks(this.low, this.high) : linearTicks(this.low, this.high, this.wide ? 6 : 4);
      for (const value of ticks) {
        shape(this.svg, "line", { class: "grid", x1: LEFT, x2: right, y1: this.Y(value), y2: this.Y(value) });
        shape(this.svg, "text", { x: LEFT - 7, y: this.Y(value) + 4, "text-anchor": "end" }, number(value));
      }
      const steps = linearTicks(this.from, this.to, Math.max(2, Math.floor(this.width / 90)));
      for (const step of steps.filter(Number.isInteger)) {
        shape(this.svg, "text", { x: this.X(step), y: bottom + 16, "text-anchor": "middle" }, step.toLocaleString("en-US"));
      }
      shape(this.svg, "text", { x: LEFT - 7, y: bottom + 16, "text-anchor": "end" }, "step");
    }

    launch(mark) {
      if (mark.step < this.from || mark.step > this.to) return;
      const x = this.X(mark.step);
      shape(this.svg, "line", { class: "launch", x1: x, x2: x, y1: TOP, y2: this.height - BOTTOM });
      shape(this.svg, "path", { class: "launch-top", d: `M${x - 4} ${TOP - 6}h8l-4 7z` });
    }

    path(x, y) {
      let text = "", pen = "M";
      x.forEach((step, i) => {
        const inside = step >= this.from && step <= this.to;
        const next = x[i + 1] >= this.from && x[i - 1] <= this.to; /* the way out of the chosen steps */
        if (!inside && !next) { pen = "M"; return; }
        text += `${pen}${this.X(step).toFixed(1)} ${this.Y(y[i]).toFixed(1)}`;
        pen = "L";
      });
      return text;
    }

    curve(one) {
      const style = `stroke: ${one.color}`;
      const width = this.width - LEFT - RIGHT, box = `${LEFT} 0 ${width} ${this.height}`;
      const group = shape(this.svg, "svg", { x: LEFT, y: 0, width, height: this.height, viewBox: box }); /* cuts at its edges */
      if (one.x.length === 1) {
        shape(this.svg, "circle", { cx: this.X(one.x[0]), cy: this.Y(one.y[0]), r: 3.5, style: `fill: ${one.color}` });
      } else if (one.smoothed) {
        shape(group, "path", { class: "raw", style, d: this.path(one.x, one.y) });
        shape(group, "path", { class: "line", style, d: this.path(one.x, one.smoothed) });
      } else {
        shape(group, "path", { class: "line", style, d: this.path(one.x, one.y) });
      }
    }

    /* The pointer */

    place(event) {
      const box = this.svg.getBoundingClientRect();
      return Math.min(Math.max(event.clientX - box.left, LEFT), this.width - RIGHT);
    }

    press(event) {
      if (event.pointerType !== "mouse" || event.button !== 0) return;
      this.began = this.place(event);
      this.svg.setPointerCapture(event.pointerId);
    }

    release(event) {
      if (this.began === undefined) return;
      const ends = [this.began, this.place(event)].sort((a, b) => a - b);
      this.began = undefined;
      if (ends[1] - ends[0] >= LEAST_CHOSEN) {
        this.zoom = this.around(...ends.map((x) => this.step(x)));
        this.leave();
        this.draw();
      }
    }

    /* The points around a range, so that two are always shown, or null where there are no two. */
    around(from, to) {
      const shown = this.series.filter((one) => one.shown);
      const x = (shown.length ? shown : this.series).reduce((most, one) => one.x.length > most.x.length ? one : most).x;
      const last = x.length - 1;
      const low = Math.max(0, Math.min(x.findLastIndex((step) => step <= from), last - 1));
      const high = x.findIndex((step, i) => i > low && step >= to);
      return last > 0 ? [x[low], x[high < 0 ? last : high]] : null;
    }

    leave() {
      this.tip.hidden = true;
      this.over.replaceChildren();
    }

    move(event) {
      const x = this.place(event), shown = this.series.filter((one) => one.shown);
      this.over.replaceChildren();
      if (!shown.length) return;
      if (this.began !== undefined) {
        const [left, right] = [this.began, x].sort((a, b) => a - b);
        const height = this.height - TOP - BOTTOM;
        shape(this.over, "rect", { class: "chosen", x: left, y: TOP, width: right - left, height });
      }
      const wanted = this.step(x);
      const places = shown.map((one) => nearest(one.x, wanted));
      const steps = shown.map((one, n) => one.x[places[n]]);
      const step = steps.reduce((best, one) => Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best);
      shape(this.over, "line", { class: "cursor", x1: this.X(step), x2: this.X(step), y1: TOP, y2: this.height - BOTTOM });
      this.tip.replaceChildren();
      part(this.tip, "div", "head", `step ${step.toLocaleString("en-US")}`);
      for (const mark of data.marks) if (mark.step === step) part(this.tip, "div", "head", mark.text);
      shown.forEach((one, n) => {
        if (steps[n] !== step) return;
        const value = one.y[places[n]];
        shape(this.over, "circle", { cx: this.X(step), cy: this.Y(value), r: 3, style: `fill: ${one.color}` });
        const line = part(this.tip, "div");
        part(line, "span", "swatch").style.background = one.color;
        line.append(this.series.length > 1 ? `${one.name} ` : "");
        part(line, "b", "", number(value) + this.unit);
      });
      this.tip.hidden = false;
      const left = this.X(step) + 14, over = left + this.tip.offsetWidth > this.width;
      this.tip.style.left = `${Math.max(0, over ? this.X(step) - 14 - this.tip.offsetWidth : left)}px`;
      this.tip.style.top = `${this.svg.getBoundingClientRect().top - this.figure.getBoundingClientRect().top + TOP}px`;
    }
  }

  for (const figure of document.querySelectorAll("figure.chart")) new Chart(figure, data.charts[figure.dataset.chart]);

  /* Pictures: a click opens one, arrows go on to the next, Escape or a click closes it. */

  const dialog = document.getElementById("enlarged");
  const buttons = [...document.querySelectorAll("button.enlarge")];
  const large = dialog.querySelector("img"), words = dialog.querySelector("p");
  let open = 0;
  const show = (index) => {
    open = (index + buttons.length) % buttons.length;
    const picture = buttons[open].querySelector("img");
    const { naturalWidth: width, naturalHeight: height } = picture;
    let scale = Math.min(0.94 * innerWidth / width, 0.82 * innerHeight / height);
    if (scale > 2) scale = Math.min(8, Math.floor(scale));
    large.src = picture.src;
    large.alt = picture.alt;
    large.style.width = `${Math.round(width * scale)}px`;
    large.style.imageRendering = scale >= 2 ? "pixelated" : "auto";
    words.textContent = `${picture.alt} (${picture.dataset.size || `${width} x ${height}`})`;
    if (!dialog.open) dialog.showModal();
  };
  buttons.forEach((button, index) => button.addEventListener("click", () => show(index)));
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(open + 1);
    if (event.key === "ArrowLeft") show(open - 1);
  });

  const contents = document.querySelector(".contents details");
  if (contents && innerWidth <= 1000) contents.open = false;
})();
