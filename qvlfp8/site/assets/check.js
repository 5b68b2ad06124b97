// The checker's page: takes files, has the worker answer, shows the answer. All text goes in by textContent.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const page = byId("checker");
  const [state, result, given] = [byId("state"), byId("result"), byId("given")];
  const [filesInput, folderInput, vllmInput] = [byId("files"), byId("folder"), byId("vllm")];
  const [againButton, clearButton] = [byId("again"), byId("clear")];

  // What the folder is called if only files were given: commands need a name.
  const UNNAMED = "CHECKPOINT";
  const MARKS = { works: "loads", blind: "blind", fails: "fails", unknown: "never" };
  const READ_WHOLE = new Set(["config.json", "hf_quant_config.json", "model.safetensors.index.json", "tokenizer_config.json"]);

  let folder = { name: UNNAMED, named: false, files: new Map() };
  let number = 0;

  // ---- The files ----

  function take(name, files) {
    const named = name !== null;
    const kept = named || folder.named ? [] : [...folder.files];
    const safe = named && !["", ".", ".."].includes(name) && !/[/\0]/.test(name);
    folder = { name: safe ? name : UNNAMED, named, files: new Map([...kept, ...files.map((file) => [file.name, file])]) };
    showGiven();
    if (folder.files.size) ask();
    else say(named ? `${folder.name} has no files.` : "No files were given.");
  }

  function clear() {
    number += 1;
    folder = { name: UNNAMED, named: false, files: new Map() };
    for (const input of [filesInput, folderInput]) input.value = "";
    result.replaceChildren();
    result.removeAttribute("aria-busy");
    showGiven();
    say("Nothing is given.");
    filesInput.focus();
  }

  function showGiven() {
    const names = [...folder.files.keys()].sort();
    given.replaceChildren(...names.map((name) => {
      const role = READ_WHOLE.has(name) ? "read" : name.endsWith(".safetensors") ? "header and scales read" : "name only";
      return element("li", {}, element("code", {}, name), ` ${size(folder.files.get(name).size)}, ${role}`);
    }));
    byId("given-box").hidden = !names.length;
    byId("given-count").textContent = `${folder.named ? `${folder.name}: ` : ""}${names.length === 1 ? "1 file" : `${names.length} files`}`;
    againButton.disabled = clearButton.disabled = !names.length;
  }

  function size(bytes) {
    for (const [unit, width] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
      if (bytes >= width) return `${(bytes / width).toFixed(1)} ${unit}`;
    }
    return `${bytes} B`;
  }

  filesInput.addEventListener("change", () => take(null, [...filesInput.files]));
  folderInput.addEventListener("change", () => {
    const all = [...folderInput.files];
    if (!all.length) return;
    const paths = all.map((file) => [file, file.webkitRelativePath.split("/")]);
    // Of folders inside nothing is read.
    take(paths[0][1][0], paths.filter(([, path]) => path.length === 2).map(([file]) => file));
  });

  for (const input of [filesInput, folderInput]) input.addEventListener("click", started);
  window.addEventListener("dragenter", started);

  // What is dropped beside the zone would otherwise leave the page.
  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    page.classList.add("over");
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) page.classList.remove("over");
  });
  window.addEventListener("drop", async (event) => {
    event.preventDefault();
    page.classList.remove("over");
    try {
      const dropped = await droppedFiles(event.dataTransfer);
      take(dropped.name, dropped.files);
    } catch (error) {
      say(error.message);
    }
  });

  async function droppedFiles(transfer) {
    const items = [...transfer.items].filter((item) => item.kind === "file");
    const plain = [...transfer.files];
    // Asked of all at once: the list is empty after the first wait.
    const entries = items.map((item) => item.webkitGetAsEntry());
    const handles = items.map((item) => item.getAsFileSystemHandle && item.getAsFileSystemHandle().catch(() => null));
    const folders = entries.filter((entry) => entry && entry.isDirectory);
    if (!folders.length) return { name: null, files: plain };
    if (items.length > 1) throw new Error("Drop one folder, or files of one folder.");
    const handle = await handles[0];
    const files = handle ? await filesOfHandle(handle) : await filesOfEntry(folders[0]);
    return { name: folders[0].name, files };
  }

  async function filesOfHandle(handle) {
    const found = [];
    for await (const entry of handle.values()) {
      if (entry.kind === "file") found.push(await entry.getFile());
    }
    return found;
  }

  async function filesOfEntry(folderEntry) {
    const reader = folderEntry.createReader();
    const found = [];
    try {
      for (;;) {
        const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!some.length) break;
        const files = some.filter((entry) => entry.isFile);
        found.push(...await Promise.all(files.map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject)))));
      }
    } catch {
      throw new Error("This browser does not open dropped folders here: choose the folder with the button, or drop its files.");
    }
    return found;
  }

  // ---- The worker ----

  const loaded = new Map();
  window.qvlfp8Part = (name, text) => loaded.set(name, text);

  function script(address) {
    return new Promise((resolve, reject) => {
      const tag = element("script", { src: address });
      tag.addEventListener("load", resolve);
      tag.addEventListener("error", () => reject(new Error(`${address} cannot be loaded: the site is not whole`)));
      document.head.append(tag);
    });
  }

  async function unpacked(name) {
    const raw = atob(loaded.get(name));
    const bytes = new Uint8Array(raw.length);
    for (let index = 0; index < raw.length; index += 1) bytes[index] = raw.charCodeAt(index);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  let worker = null;

  // From the first sign that files will come: loading goes on while they are being chosen.
  function started() {
    if (!worker) {
      worker = start();
      worker.catch(() => { worker = null; });
    }
    return worker;
  }

  async function start() {
    await Promise.all(page.dataset.parts.split(" ").filter((address) => !document.querySelector(`script[src="${address}"]`)).map(script));
    const parts = {};
    for (const name of ["wasm", "stdlib", "lock", "project", "program"]) parts[name] = await unpacked(name);
    const address = URL.createObjectURL(new Blob([parts.program], { type: "text/javascript" }));
    const made = new Worker(address);
    delete parts.program;
    await new Promise((resolve, reject) => {
      made.onmessage = ({ data }) => (data.ready ? resolve() : reject(new Error(data.failed)));
      made.onerror = (event) => reject(new Error(event.message || "the worker did not start"));
      made.postMessage({ start: parts }, Object.values(parts).map((bytes) => bytes.buffer));
    });
    URL.revokeObjectURL(address);
    return made;
  }

  function answerOf(made, question) {
    return new Promise((resolve, reject) => {
      made.onmessage = ({ data }) => (data.answer ? resolve(data.answer) : reject(new Error(data.failed)));
      made.onerror = (event) => reject(new Error(event.message));
      made.postMessage(question);
    });
  }

  let up = false;
  let queue = Promise.resolve();

  function ask() {
    number += 1;
    const asked = { number, name: folder.name, vllm: vllmInput.value.trim() || undefined };
    asked.files = [...folder.files].map(([name, data]) => ({ name, data }));
    result.setAttribute("aria-busy", "true");
    say(up ? "Reading …" : `Loading the checker, ${page.dataset.megabytes} MB, once …`);
    queue = queue.then(() => answer(asked));
  }

  async function answer(asked) {
    if (asked.number !== number) return;
    let made = null;
    try {
      made = await started();
      up = true;
      if (asked.number === number) say("Reading …");
      const found = await answerOf(made, asked);
      if (asked.number === number) show(found);
    } catch (error) {
      // What failed once may have left Python in a state of its own.
      if (made) made.terminate();
      worker = null;
      up = false;
      if (asked.number === number) failed(error.message);
    }
  }

  // ---- The answer ----

  function say(text) {
    state.textContent = text;
  }

  function failed(message) {
    result.replaceChildren(element("div", { class: "problem" },
      element("p", {}, "The checker itself failed, so this says nothing of the files. The command may answer:"),
      commandBox(`qvlfp8 explain ${folder.name}`),
      element("pre", { class: "wrap" }, message)));
    result.removeAttribute("aria-busy");
    say("The checker failed.");
  }

  function show(found) {
    const parts = [element("h2", {}, found.source)];
    const notes = element("ul", { class: "notes" }, ...found.notes.map((note) => element("li", {}, note)));
    const problem = found.error && [
      element("p", { class: "what" }, found.error.problem), element("p", {}, `Mend: ${found.error.mend}`)];
    if (found.wanting) {
      // What to add is said once, and first; the command's own words are there for whoever looks for them.
      parts.push(notes, element("details", { class: "problem" }, element("summary", {}, "What the command says of these files"), ...problem));
    } else {
      if (problem) parts.push(element("div", { class: "problem" }, ...problem));
      if (found.notes.length) parts.push(notes);
    }
    for (const section of found.sections) parts.push(sectionOf(section));
    if (!folder.named && found.explained) {
      parts.push(element("p", { class: "muted small" }, `${UNNAMED} stands for the folder that these files are from.`));
    }
    if (found.explained) {
      parts.push(element("details", {}, element("summary", {}, "The same as JSON (what --json prints)"),
        element("pre", { id: "json", tabindex: "0" }, JSON.stringify(found.explained, null, 1))));
    }
    result.replaceChildren(...parts);
    result.dataset.code = found.code;
    result.removeAttribute("aria-busy");
    say(found.summary);
  }

  function sectionOf({ title, lines }) {
    const rows = [];
    let list = null;
    for (const line of lines) {
      if (line.kind === "command") {
        rows.push(commandBox(line.text));
        list = null;
      } else {
        if (!list) rows.push(list = element("ul", { class: "lines" }));
        list.append(lineOf(line));
      }
    }
    return element("section", {}, ...(title ? [element("h3", {}, title)] : []), ...rows);
  }

  function lineOf({ text, kind, findings }) {
    const mark = MARKS[kind];
    if (!mark) return element("li", { class: kind === "fault" ? "fault" : "" }, ...linked(text, findings));
    // "0.10.2 to 0.12.0: works for text only, blind (finding)": versions, verdict, why.
    const colon = text.indexOf(": ") + 2;
    const why = text.indexOf(" (", colon) < 0 ? text.length : text.indexOf(" (", colon);
    return element("li", { class: "range" }, text.slice(0, colon),
      element("span", { class: `mark ${mark}` }, element("span", { class: "shape", "aria-hidden": "true" }), text.slice(colon, why)),
      ...linked(text.slice(why), findings));
  }

  function linked(text, findings) {
    const parts = [];
    let rest = text;
    for (;;) {
      const next = findings.map((id) => [rest.indexOf(id), id]).filter(([at]) => at >= 0).sort((a, b) => a[0] - b[0] || b[1].length - a[1].length)[0];
      if (!next) return [...parts, rest];
      const [at, id] = next;
      parts.push(rest.slice(0, at), element("a", { href: `findings/${id}.html` }, id));
      rest = rest.slice(at + id.length);
    }
  }

  function commandBox(text) {
    const code = element("code", {}, text);
    const button = element("button", { type: "button" }, "Copy");
    button.setAttribute("aria-label", `Copy ${text}`);
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(code);
      try {
        await navigator.clipboard.writeText(text);
        say("The command is copied.");
      } catch {
        say("The command is selected: copy it with the keyboard.");
      }
    });
    return element("div", { class: "command" }, element("pre", { class: "wrap" }, code), button);
  }

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  clearButton.addEventListener("click", clear);
  byId("options").addEventListener("submit", (event) => {
    event.preventDefault();
    if (folder.files.size) ask();
  });
  showGiven();
})();
