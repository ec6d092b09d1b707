// What the knowledge page does by itself: sending files in pieces, bringing marks into view, the question before something is deleted.
(() => {
  const one = (selector, within = document) => within.querySelector(selector);
  const PIECE = 1 << 20; // bytes; a server takes four million in one request
  const TRIES = 5;
  let from = null; // what was clicked to open the viewer: the focus goes back there

  // ---- sending files ----

  const drop = () => one("#kb-drop");
  const known = (name) => {
    const dot = name.lastIndexOf(".");
    return dot >= 0 && drop().dataset.kinds.split(" ").includes(name.slice(dot).toLowerCase());
  };
  const line = (name, told) => {
    const row = document.createElement("div");
    const parts = ["b", "span", "span"].map((tag) => row.appendChild(document.createElement(tag)));
    parts[0].textContent = name;
    parts[1].className = "bar";
    parts[1].appendChild(document.createElement("i"));
    parts[2].className = "state";
    parts[2].textContent = told;
    one("#kb-sending").append(row);
    return row;
  };
  const fail = (row, why) => {
    row.className = "bad";
    one(".bar", row)?.remove();
    one("button", row)?.remove();
    one(".state", row).textContent = why;
    row.title = why;
    row.addEventListener("click", () => row.remove(), { once: true });
  };
  const name_of_upload = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

  // One piece; resolves to { status, next } or { status, error }, or to null where no answer came.
  const piece = (address, body, row, done, size) =>
    new Promise((resolve) => {
      const request = new XMLHttpRequest();
      request.open("POST", address);
      request.setRequestHeader("content-type", "application/octet-stream");
      request.upload.addEventListener("progress", (event) => {
        one(".bar i", row).style.width = `${(100 * (done + event.loaded)) / Math.max(size, 1)}%`;
      });
      request.addEventListener("loadend", () => {
        let said = {};
        try {
          said = JSON.parse(request.responseText);
        } catch {
          said = {};
        }
        const error = typeof said.error === "string" ? said.error : said.error?.message;
        resolve(request.status ? { status: request.status, next: said.next, error } : null);
      });
      row.request = request;
      request.send(body);
    });

  const send = async (file, name, to) => {
    const words = drop().dataset;
    const row = line(name, words.waiting);
    if (file.size > Number(words.most)) return fail(row, words.large);
    const stop = row.appendChild(document.createElement("button"));
    Object.assign(stop, { type: "button", className: "quiet", textContent: words.stop });
    stop.addEventListener("click", () => {
      row.stopped = true;
      row.request?.abort();
      row.remove();
    });
    return async () => {
      if (row.stopped) return;
      one(".state", row).textContent = words.sending;
      const upload = name_of_upload();
      let at = 0;
      let length = PIECE;
      let missed = 0;
      do {
        const asked = new URLSearchParams({ upload, name, at, size: file.size });
        const said = await piece(`${to}?${asked}`, file.slice(at, at + length), row, at, file.size);
        if (row.stopped) return;
        if (said?.status === 413 && length > 1 << 14) {
          length /= 2; // max_body_mb is less than usual
          continue;
        }
        if (said && (said.status === 200 || (said.status === 409 && Number.isInteger(said.next)))) {
          at = said.next;
          missed = said.status === 200 ? 0 : missed + 1;
        } else if (said && said.status < 500 && said.status !== 408) {
          return fail(row, (said.error ?? `${said.status}`).replace(`${name}: `, ""));
        } else {
          missed += 1;
        }
        if (missed >= TRIES) return fail(row, said?.error ?? words.lost);
        if (missed) await new Promise((resolve) => setTimeout(resolve, 300 * 2 ** missed));
      } while (at < file.size);
      row.remove();
    };
  };

  const queue = [];
  let sending = 0;
  const work = async () => {
    if (sending >= 2) return;
    sending += 1;
    while (queue.length) await (await queue.shift())?.();
    sending -= 1;
  };
  const enqueue = (files) => {
    const to = drop()?.dataset.to;
    if (!to) return;
    let left = 0;
    for (const [file, name, chosen] of files) {
      const plain = name.split("/").pop();
      if (!chosen && (plain.startsWith(".") || plain.startsWith("~$") || !known(plain))) left += plain.startsWith(".") ? 0 : 1;
      else queue.push(send(file, name, to));
    }
    if (left) fail(line("…", ""), drop().dataset.left.replace("{count}", left));
    work();
    work();
  };

  // Files of what was dropped, folders with their paths.
  const dropped = async (items) => {
    const found = [];
    const walk = async (entry, path, depth) => {
      if (entry.isFile) {
        const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
        if (file) found.push([file, path + entry.name, depth === 0]);
      } else if (entry.isDirectory && depth < 20 && !entry.name.startsWith(".")) {
        const reader = entry.createReader();
        for (;;) {
          const part = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
          if (!part.length) break;
          for (const inner of part) await walk(inner, `${path}${entry.name}/`, depth + 1);
        }
      }
    };
    const entries = items.filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
    for (const entry of entries) {
      if (entry instanceof File) found.push([entry, entry.name, true]);
      else if (entry) await walk(entry, "", 0);
    }
    return found;
  };

  const carries = (event) => Array.from(event.dataTransfer?.types ?? []).includes("Files") && drop();
  let over = 0;
  const lift = (on) => one(".studio.kb")?.classList.toggle("dropping", on);
  document.addEventListener("dragenter", (event) => {
    if (carries(event)) lift(++over > 0);
  });
  document.addEventListener("dragleave", (event) => {
    if (carries(event)) lift(--over > 0);
  });
  document.addEventListener("dragover", (event) => {
    if (carries(event)) event.preventDefault();
  });
  document.addEventListener("drop", async (event) => {
    over = 0;
    lift(false);
    if (!carries(event)) return;
    event.preventDefault();
    const files = await dropped(Array.from(event.dataTransfer.items));
    show_documents();
    enqueue(files);
  });
  document.addEventListener("change", (event) => {
    const at = event.target;
    if (at.id !== "kb-files" && at.id !== "kb-folder") return;
    enqueue(Array.from(at.files, (file) => [file, file.webkitRelativePath || file.name, at.id === "kb-files"]));
    at.value = "";
  });
  document.addEventListener("paste", (event) => {
    const files = Array.from(event.clipboardData?.files ?? []);
    if (!files.length || !drop()) return;
    event.preventDefault();
    show_documents();
    enqueue(files.map((file) => [file, file.name, true]));
  });
  const show_documents = () => one('.top [data-act="tab"][data-name="documents"]')?.click();

  // ---- the viewer ----

  const reveal = (behavior) => {
    const pane = one(".viewer .original");
    const mark = one(".viewer .original :is(.mark, mark, .hit)");
    if (pane) {
      if (mark) mark.scrollIntoView({ block: "center", inline: "center", behavior });
      else pane.scrollTop = 0;
    }
    one(".viewer .passage.here")?.scrollIntoView({ block: "center", behavior });
  };
  const soon = (work) => setTimeout(() => requestAnimationFrame(work), 30);

  const kb = {
    // Clicks that need no server.
    own(act, target) {
      if (act === "choose-files") one("#kb-files").click();
      else if (act === "choose-folder") one("#kb-folder").click();
      else {
        if (["cite", "passage", "hit", "view"].includes(act)) from = target;
        return false;
      }
      return true;
    },
    opened() {
      soon(() => {
        reveal("instant");
        one(".viewer h2")?.focus({ preventScroll: true });
      });
    },
    closed() {
      if (from?.isConnected) from.focus({ preventScroll: true });
      from = null;
    },
    fetch(addresses) {
      for (const address of addresses) new Image().src = address;
    },
    marked() {
      soon(() => reveal("instant"));
    },
    turned(passage) {
      soon(() => {
        one(`.viewer .passage[data-chunk="${passage}"]`)?.scrollIntoView({ block: "start" });
        const pane = one(".viewer .original");
        if (one(".viewer .original .mark")) one(".viewer .original .mark").scrollIntoView({ block: "center" });
        else if (pane) pane.scrollTop = one(".viewer .desk")?.offsetTop - pane.offsetTop || 0;
      });
    },
    // A field that was just drawn, to be typed into.
    name() {
      soon(() => {
        const field = one(".make-text, .tag-text");
        field?.select();
        field?.addEventListener("blur", () => field.dispatchEvent(new Event("change", { bubbles: true })), { once: true });
      });
    },
    save(area) {
      one(".actions button:last-child", area.closest(".edit"))?.click();
    },
    // How the next question is answered; a summary needs no words.
    task(name, hint) {
      const box = one("#ask");
      if (!box) return;
      box.dataset.task = name;
      box.placeholder = hint;
    },
    may_be_empty() {
      return one("#ask").dataset.task === "summary";
    },
    emptied(selector) {
      const field = one(selector);
      if (field) field.value = "";
      field?.focus();
    },
    ask() {
      soon(() => one(".asking button")?.focus());
    },
  };
  window.kb = kb;

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const at = event.target;
    if (one(".asking .confirm")) {
      event.stopImmediatePropagation();
      one('.asking [data-act="no"]').click();
    } else if (one('[data-act="leave-fact"]')) {
      event.stopImmediatePropagation();
      one('[data-act="leave-fact"]').click();
    } else if (at.matches?.(".make-text, .tag-text")) {
      event.stopImmediatePropagation();
      at.value = at.defaultValue;
      at.blur();
    }
  }, true);
  document.addEventListener("keydown", (event) => {
    // In a question before a deletion the focus stays inside.
    const box = one(".asking .confirm");
    if (!box || event.key !== "Tab") return;
    const buttons = Array.from(box.querySelectorAll("button"));
    const next = buttons[(buttons.indexOf(document.activeElement) + (event.shiftKey ? -1 : 1) + buttons.length) % buttons.length];
    event.preventDefault();
    next.focus();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest?.('[data-act="collection"]')) window.studio.drawer(false);
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) one(".studio.kb")?.dispatchEvent(new Event("kb-look"));
  });
})();
