// What the page does by itself, without asking the server: the text box, keys, scrolling, copying, the theme.
(() => {
  const one = (selector, within = document) => within.querySelector(selector);
  const box = () => one("#ask");
  const DRAFT = location.pathname.startsWith("/kb") ? "tinyseek.kb-draft" : "tinyseek.draft";

  const studio = {
    // The text that was typed, taken out of the box; null while an answer is being written, and where there must be a text and is none.
    take(empty = false) {
      const area = box();
      const text = area.value;
      if ((!text.trim() && !empty) || one(".composer").classList.contains("busy")) return null;
      studio.put("");
      studio.stick();
      return text;
    },
    put(text) {
      const area = box();
      area.value = text;
      studio.grow(area);
      sessionStorage.setItem(DRAFT, text);
      if (matchMedia("(hover: hover)").matches) area.focus();
    },
    // Enter sends; with Shift, on a touch keyboard, and while a word is being composed it does not.
    sends(event) {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return false;
      if (matchMedia("(pointer: coarse) and (hover: none)").matches) return false;
      event.preventDefault();
      return true;
    },
    grow(area) {
      if (CSS.supports("field-sizing", "content")) return;
      area.style.height = "auto";
      area.style.height = `${area.scrollHeight}px`;
    },
    async copy(text) {
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        const area = Object.assign(document.createElement("textarea"), { value: text });
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
    },
    theme(name) {
      if (name === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = name;
    },
    stick() {
      stuck = true;
      follow();
    },
    // The token that is looked at.
    mark(token) {
      document.querySelectorAll(".answer-tokens .here").forEach((chip) => chip.classList.remove("here"));
      const chip = token === null ? null : one(`.answer-tokens [data-token="${token}"]`);
      chip?.classList.add("here");
      requestAnimationFrame(() => {
        chip?.scrollIntoView({ block: "nearest" });
        const seen = one(".attended");
        const here = one(".attended .here");
        if (seen && here) seen.scrollTop = here.offsetTop - seen.offsetTop - seen.clientHeight + 40;
      });
    },
    // A setting that was refused says why; an empty text takes it back.
    fault(field, text) {
      const place = one(`.field[data-of="${field}"] .bad`);
      if (place) place.textContent = text;
    },
    edit() {
      setTimeout(() => {
        const area = one(".edit-text");
        area?.focus();
        area?.setSelectionRange(area.value.length, area.value.length);
        if (area) studio.grow(area);
      }, 30);
    },
    rename() {
      setTimeout(() => {
        const field = one(".rename-text");
        field?.select();
        // Leaving the field without a change must end the renaming too.
        field?.addEventListener("blur", () => field.dispatchEvent(new Event("change", { bubbles: true })), { once: true });
      }, 30);
    },
    drawer(open) {
      one(".studio").classList.toggle("drawer", open);
    },
  };
  window.studio = studio;

  let stuck = true;
  const follow = () => {
    const area = one(".scroll");
    if (area && stuck) area.scrollTop = area.scrollHeight;
    one(".down")?.classList.toggle("shown", !!area && !stuck);
  };
  const ready = () => {
    const area = one(".scroll");
    area.addEventListener("scroll", () => {
      stuck = area.scrollHeight - area.scrollTop - area.clientHeight < 60;
      one(".down")?.classList.toggle("shown", !stuck);
    }, { passive: true });
    new MutationObserver(follow).observe(area, { childList: true, subtree: true, characterData: true });
    new ResizeObserver(follow).observe(area);
    follow();
    const draft = sessionStorage.getItem(DRAFT);
    if (draft && !box().value) studio.put(draft);
    else if (matchMedia("(hover: hover)").matches) box().focus();
  };
  new MutationObserver((_, watch) => {
    if (one(".scroll") && box()) {
      watch.disconnect();
      ready();
    }
  }).observe(document, { childList: true, subtree: true });

  document.addEventListener("input", (event) => {
    if (event.target.id === "ask") sessionStorage.setItem(DRAFT, event.target.value);
    if (event.target.matches?.("textarea")) studio.grow(event.target);
    if (event.target.matches?.('.field input[type="range"]')) {
      const field = event.target.closest(".field");
      field.classList.remove("unset");
      one(".now", field).textContent = event.target.value;
    }
  });
  document.addEventListener("click", async (event) => {
    const target = event.target.closest?.("[data-act]");
    if (!target) return;
    if (target.dataset.act === "copy-code") {
      await studio.copy(one("pre", target.closest(".code")).innerText);
      target.classList.add("done");
      setTimeout(() => target.classList.remove("done"), 1500);
    } else if (target.dataset.act === "down") studio.stick();
    else if (target.dataset.act === "drawer") studio.drawer(true);
    else if (["close-drawer", "open", "new"].includes(target.dataset.act)) studio.drawer(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || document.body.classList.contains("q-body--dialog")) return;
    const typing = event.target.matches?.("input, textarea");
    if (event.key === "Escape" && event.target.matches?.(".rename-text")) {
      event.target.value = event.target.defaultValue;
      event.target.blur();
    } else if (event.key === "Escape") {
      const stop = one(".composer.busy .stop") ?? one('[data-act="cancel-edit"]') ?? one('[data-act="close-panel"]');
      if (one(".studio.drawer")) studio.drawer(false);
      else stop?.click();
    } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      const step = one(`[data-act="step"][data-by="${event.key === "ArrowLeft" ? -1 : 1}"]`);
      if (step) {
        event.preventDefault();
        step.click();
      }
    } else if (!typing && event.key === "/" && box()) {
      event.preventDefault();
      box().focus();
    }
  });
  window.addEventListener("popstate", () => location.reload());
})();
