"use strict";
// Filters the table that is on the page already, keeps what is asked in the address, and moves in it by arrow keys.
(() => {
  const form = document.getElementById("filters");
  const table = document.getElementById("matrix");
  const count = document.getElementById("count");
  const none = document.getElementById("none");
  const sheet = document.getElementById("sheet");
  const heads = [...table.tHead.rows[0].cells];
  const columns = heads.map((head) => head.textContent.trim().replace("vLLM ", ""));
  const selects = [...form.querySelectorAll("select")];
  const place = Object.fromEntries(selects.map((select) => [select.name, [...select.options].slice(1).map((o) => o.value)]));
  const ofRow = ["by", "tf", "model"];
  const listed = (text) => (text ? text.split(" ").map(Number) : []);

  // What there is: recipes, their rows, their cells.
  const recipes = [];
  const rows = [];
  for (const body of table.tBodies) {
    if (body.dataset.recipe) {
      recipes.push({ body, head: body.rows[0].cells[0], rows: [] });
      continue;
    }
    const data = body.dataset;
    const name = data.row + (data.variant ? "+" + data.variant : "");
    const row = { body, head: body.rows[0].cells[0], cells: [] };
    row.by = Number(data.by);
    row.tf = Number(data.tf);
    row.model = Number(data.model);
    const told = `${name} ${row.head.querySelector(".who").textContent} transformers ${place.tf[row.tf]}`;
    [...body.rows[1].cells].forEach((td, column) => {
      const mark = td.firstElementChild;
      if (!mark) return;
      const [far, dagger] = [mark.querySelector("i"), mark.textContent.includes("†")];
      const word = mark.firstChild.textContent.replace("†", "").trim();
      const cell = { td, mark, row, column, out: mark.classList[1], gpu: listed(td.dataset.g), finding: listed(td.dataset.f) };
      cell.stage = listed(td.dataset.s);
      const findings = cell.finding.map((index) => place.finding[index]).join(" ");
      const hardware = cell.gpu.map((index) => place.gpu[index]).join(" ");
      cell.text = `${told} vllm ${columns[column]} ${word} ${cell.stage.map((i) => place.stage[i])} ${findings} ${hardware}`.toLowerCase();
      const passed = far ? `, passed ${far.textContent}` : "";
      mark.setAttribute("aria-label", `${word}${passed}: ${name} in vLLM ${columns[column]}${dagger ? ", by an earlier worker" : ""}`);
      if (mark.tagName !== "A") mark.setAttribute("role", "img");
      mark.tabIndex = -1;
      row.cells.push(cell);
    });
    rows.push(row);
    recipes[recipes.length - 1].rows.push(row);
  }
  const total = rows.reduce((sum, row) => sum + row.cells.length, 0);

  function asked() {
    const values = Object.fromEntries(selects.map((select) => [select.name, select.value]));
    return { terms: form.q.value.toLowerCase().split(/\s+/).filter(Boolean), values };
  }

  function matcher({ terms, values }) {
    const tests = [];
    for (const [name, value] of Object.entries(values)) {
      if (!value) continue;
      const index = place[name].indexOf(value);
      if (ofRow.includes(name)) tests.push((cell) => cell.row[name] === index);
      else if (name === "vllm") tests.push((cell) => cell.column === index);
      else if (name === "out") tests.push((cell) => cell.out === value);
      else tests.push((cell) => cell[name].includes(index));
    }
    for (const term of terms) tests.push((cell) => cell.text.includes(term));
    return (cell) => tests.every((test) => test(cell));
  }

  function show() {
    const matches = matcher(asked());
    const used = new Set();
    let [cells, lines] = [0, 0];
    for (const row of rows) {
      row.shown = false;
      for (const cell of row.cells) {
        cell.shown = matches(cell);
        cell.td.classList.toggle("off", !cell.shown);
        if (!cell.shown) continue;
        row.shown = true;
        used.add(cell.column);
        cells += 1;
      }
      row.body.hidden = !row.shown;
      lines += row.shown;
    }
    const wide = Math.max(used.size, 1);
    heads.forEach((head, column) => (head.hidden = !used.has(column)));
    for (const recipe of recipes) {
      recipe.body.hidden = !recipe.rows.some((row) => row.shown);
      recipe.head.colSpan = wide;
      for (const row of recipe.rows) {
        row.head.colSpan = wide;
        const tds = row.body.rows[1].cells;
        for (let column = 0; column < tds.length; column++) tds[column].hidden = !used.has(column);
      }
    }
    table.style.setProperty("--columns", String(wide));
    sheet.hidden = cells === 0;
    none.hidden = cells !== 0;
    const number = (value) => value.toLocaleString("en");
    count.textContent = `${number(cells)} of ${number(total)} cells in ${number(lines)} ${lines === 1 ? "row" : "rows"}`;
    enter(rows.flatMap((row) => row.cells).find((cell) => cell.shown));
  }

  // The address: what is asked, and nothing else.
  function write() {
    const told = new URLSearchParams();
    for (const element of [form.q, ...selects]) if (element.value) told.set(element.name, element.value);
    const wanted = told.size ? `#${told}` : "#";
    if (location.hash !== wanted && (told.size || location.hash)) history.replaceState(null, "", wanted);
  }

  function read() {
    const told = new URLSearchParams(location.hash.slice(1));
    form.q.value = told.get("q") || "";
    for (const select of selects) {
      const value = told.get(select.name) || "";
      select.value = place[select.name].includes(value) ? value : "";
    }
    show();
  }

  // One stop for the Tab key; arrows move inside.
  let current;
  function enter(cell) {
    if (current) current.mark.tabIndex = -1;
    current = cell;
    if (cell) cell.mark.tabIndex = 0;
  }

  function move(key, far) {
    const line = current.row.cells.filter((cell) => cell.shown);
    const shown = rows.filter((row) => row.shown);
    const at = shown.indexOf(current.row);
    const inRow = (row) => {
      const found = row.cells.filter((cell) => cell.shown);
      const near = (cell) => Math.abs(cell.column - current.column);
      return found.reduce((best, cell) => (near(cell) < near(best) ? cell : best), found[0]);
    };
    switch (key) {
      case "ArrowRight": return line[line.indexOf(current) + 1];
      case "ArrowLeft": return line[line.indexOf(current) - 1];
      case "ArrowDown": return at + 1 < shown.length ? inRow(shown[at + 1]) : undefined;
      case "ArrowUp": return at > 0 ? inRow(shown[at - 1]) : undefined;
      case "Home": return far ? shown[0].cells.find((cell) => cell.shown) : line[0];
      case "End": return far ? shown[shown.length - 1].cells.filter((cell) => cell.shown).pop() : line[line.length - 1];
      default: return null;
    }
  }

  table.setAttribute("role", "grid");
  table.addEventListener("focusin", (event) => {
    const found = rows.flatMap((row) => row.cells).find((cell) => cell.mark === event.target);
    if (found) enter(found);
  });
  table.addEventListener("keydown", (event) => {
    if (!current || event.altKey || event.metaKey) return;
    const next = move(event.key, event.ctrlKey);
    if (next === null) return;
    event.preventDefault();
    if (next) {
      enter(next);
      next.mark.focus();
    }
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { show(); write(); });
  function clear(event) {
    event.preventDefault();
    for (const element of [form.q, ...selects]) element.value = "";
    show();
    write();
    form.q.focus();
  }
  form.addEventListener("reset", clear);
  document.getElementById("clear").addEventListener("click", clear);
  window.addEventListener("hashchange", read);
  form.hidden = false;
  // Where there is little room the table comes first.
  document.getElementById("meaning").open = !window.matchMedia("(max-width: 40rem)").matches;
  read();
})();
