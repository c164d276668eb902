"use strict";
(() => {
  const inNats = () => document.getElementById("nats")?.checked ?? false;
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    element.className = name;
    element.textContent = text ?? "";
    return element;
  };
  document.documentElement.classList.add("scripted");

  // Tables: sorted by a click on a head, copied as text.
  const text = (cell) => cell.innerText.replace(/\s+/g, " ").trim();
  const key = (cell) => {
    const value = text(cell).replace(/,(?=\d{3})/g, "").replace("−", "-").replace(/^×/, "");
    const number = parseFloat(value);
    return /^[-+]?[.\d]/.test(value) && !Number.isNaN(number) ? number : value;
  };
  const compare = (a, b) =>
    typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b))
      : typeof a === "number" ? -1 : 1;
  const sort = (table, column, heads) => {
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const plain = [...body.rows].filter((row) => !row.className);
      if (body.className === "fixed") continue;
      const before = [...body.rows].filter((row) => row.className === "group");
      const after = [...body.rows].filter((row) => row.className && row.className !== "group");
      plain.sort((a, b) => (down ? -1 : 1) * compare(key(a.cells[column]), key(b.cells[column])));
      body.append(...before, ...plain, ...after);
    }
  };
  const write = async (content) => {
    try {
      await navigator.clipboard.writeText(content);
    } catch {
      const area = make("textarea", "", content);
      area.value = content;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  const rowsOf = (table) => [...table.rows].map((row) => [...row.cells].map(text));
  const asTsv = (rows) => rows.map((row) => row.join("\t")).join("\n");
  const asMarkdown = (rows) => {
    const line = (row) => `| ${row.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
    const rule = `|${rows[0].map((_, index) => (index ? " ---: " : " :--- ")).join("|")}|`;
    return [line(rows[0]), rule, ...rows.slice(1).map(line)].join("\n");
  };
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", "sort");
      button.type = "button";
      button.title = "Sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column, heads));
      head.append(button);
    });
    const bar = make("div", "tools");
    for (const [name, format] of [["TSV", asTsv], ["Markdown", asMarkdown]]) {
      const button = make("button", "", `Copy ${name}`);
      button.type = "button";
      button.addEventListener("click", async () => {
        await write(format(rowsOf(table)));
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = `Copy ${name}`; }, 1200);
      });
      bar.append(button);
    }
    const below = table.parentElement.nextElementSibling;
    (below?.className === "caption" ? below : table.parentElement).after(bar);
  }

  // Figures: the values beside the pointer, read back from the paths.
  const parse = (name, svg) => JSON.parse(svg.getAttribute(`data-${name}`));
  const number = (value, digits) =>
    value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
  const short = (value) =>
    Math.abs(value) >= 1000 ? number(value, 0) : number(value, Math.abs(value) >= 100 ? 1 : 3);
  const written = (value, kind) => {
    if (kind === "perplexity") return inNats() ? number(value, 3) : short(Math.exp(value));
    if (kind === "times") {
      return inNats() ? (value < 0 ? "−" : "+") + number(Math.abs(value), 3)
        : `${number(Math.exp(value), 2)}×`;
    }
    if (kind === "percent") return `${number(100 * value, 2)}%`;
    return kind === "nats" ? number(value, 3) : short(value);
  };
  const corners = (group) => {
    const uses = [...group.querySelectorAll("use")];
    const path = [...group.children].find((child) => child.tagName === "path");
    if (path) {
      const found = path.getAttribute("d").matchAll(/[ML]\s*(-?[\d.]+)\s+(-?[\d.]+)/g);
      return [...found].map((match) => [Number(match[1]), Number(match[2])]);
    }
    return uses.map((use) => [Number(use.getAttribute("x")), Number(use.getAttribute("y"))]);
  };
  const tip = make("div", "tip");
  tip.hidden = true;
  document.body.append(tip);
  const leave = (svg) => {
    tip.hidden = true;
    svg.classList.remove("dim");
    svg.querySelector(".cursor")?.remove();
    svg.querySelectorAll(".hot").forEach((group) => group.classList.remove("hot"));
  };
  const show = (svg, lines, event) => {
    const place = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse());
    const stretches = parse("x", svg);
    const [low, lowValue, high, highValue, name] = parse("y", svg);
    const last = stretches[stretches.length - 1];
    if (place.x < stretches[0][0] - 6 || place.x > last[1] + 6) return leave(svg);
    const log = name.startsWith("log-");
    const value = (y) => {
      const linear = lowValue + ((y - low) * (highValue - lowValue)) / (high - low);
      return log ? Math.exp(linear) : linear;
    };
    const near = lines.map(({ group, label, points }) => {
      let best = points[0];
      for (const point of points) {
        if (Math.abs(point[0] - place.x) <= Math.abs(best[0] - place.x)) best = point;
      }
      return { group, label, x: best[0], y: best[1], off: Math.abs(best[1] - place.y) };
    });
    const nearest = Math.min(...near.map((line) => Math.abs(line.x - place.x)));
    const seen = near.filter((line) => Math.abs(line.x - place.x) <= nearest + 12);
    const hot = seen.reduce((a, b) => (b.off < a.off ? b : a));
    const at = hot.x;
    const [left, right, first, end, title] =
      stretches.find((stretch) => at <= stretch[1] + 0.01) ?? last;
    const step = Math.round(first + ((at - left) * (end - first)) / (right - left));
    const kept = seen.sort((a, b) => a.off - b.off).slice(0, 9).sort((a, b) => a.y - b.y);
    tip.replaceChildren(make("b", "", `${title}, step ${number(step, 0)}`));
    for (const line of kept) {
      const row = make("div", line === hot ? "hot" : "");
      row.append(make("span", "", line.label));
      row.append(make("span", "", written(value(line.y), name.replace("log-", ""))));
      tip.append(row);
    }
    svg.querySelectorAll(".hot").forEach((group) => group.classList.remove("hot"));
    svg.classList.toggle("dim", lines.length > 4);
    hot.group.classList.add("hot");
    let cursor = svg.querySelector(".cursor");
    if (!cursor) {
      cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
      cursor.setAttribute("class", "cursor");
      svg.append(cursor);
    }
    for (const [attribute, position] of [["x1", at], ["x2", at], ["y1", low], ["y2", high]]) {
      cursor.setAttribute(attribute, position);
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const across = event.clientX + 16 + box.width > innerWidth
      ? Math.max(4, event.clientX - 16 - box.width) : event.clientX + 16;
    tip.style.left = `${across}px`;
    tip.style.top = `${Math.min(event.clientY + 12, innerHeight - box.height - 4)}px`;
  };
  for (const svg of document.querySelectorAll("svg.plot[data-x]")) {
    let lines = null;
    const move = (event) => {
      lines ??= [...svg.querySelectorAll("[data-name]")]
        .map((group) => ({ group, label: group.getAttribute("data-name"), points: corners(group) }))
        .filter((line) => line.points.length);
      if (lines.length) show(svg, lines, event);
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", () => leave(svg));
  }

  // Paper shows what is folded.
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details:not([open])").forEach((part) => {
      part.open = true;
      part.dataset.closed = "";
    });
  });
  addEventListener("afterprint", () => {
    document.querySelectorAll("details[data-closed]").forEach((part) => {
      part.open = false;
      delete part.dataset.closed;
    });
  });
})();
