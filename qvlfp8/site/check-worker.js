// Runs the project's own Python, in a worker so that the page stays alive. The page puts this text behind Pyodide's
// two scripts in one blob: from disk a worker cannot load files, and nothing may come from the network.
"use strict";
(() => {
  const held = new Map();
  let python = null;
  let check = null;

  // Pyodide fetches its WebAssembly and its library by name; both were handed over with the first message.
  self.fetch = async (address) => {
    const name = String(address).split("/").pop();
    if (!held.has(name)) throw new TypeError(`nothing is fetched here: ${name}`);
    const type = name.endsWith(".wasm") ? "application/wasm" : "application/octet-stream";
    return new Response(held.get(name), { headers: { "Content-Type": type } });
  };

  async function start(parts) {
    held.set("pyodide.asm.wasm", parts.wasm);
    held.set("python_stdlib.zip", parts.stdlib);
    const lock = JSON.parse(new TextDecoder().decode(parts.lock));
    python = await loadPyodide({ indexURL: "https://nowhere.invalid/", lockFileContents: lock });
    held.clear();
    python.unpackArchive(parts.project, "zip", { extractDir: "/project" });
    python.FS.mkdir("/given");
    check = python.runPython(`
import json, os, sys
sys.path.insert(0, "/project")
os.chdir("/given")
from qvlfp8 import json_depth
from qvlfp8.checked import check
json_depth.bound()
lambda source, vllm: json.dumps(check(source, vllm))
`);
  }

  // The files are mounted, not copied: Python reads of them what the command reads, a header here and a scale there.
  function ask({ name, files, vllm }) {
    const folder = `/given/${name}`;
    python.FS.mkdir(folder);
    try {
      python.FS.mount(python.FS.filesystems.WORKERFS, { blobs: files }, folder);
      try {
        return JSON.parse(check(name, vllm));
      } finally {
        python.FS.unmount(folder);
      }
    } finally {
      python.FS.rmdir(folder);
    }
  }

  self.onmessage = async ({ data }) => {
    try {
      if (data.start) {
        await start(data.start);
        self.postMessage({ ready: true });
      } else {
        self.postMessage({ number: data.number, answer: ask(data) });
      }
    } catch (error) {
      self.postMessage({ number: data.number, failed: String(error && error.message ? error.message : error) });
    }
  };
})();
