"use strict";
// Live pages, copying, and the two places where a token is typed in. A token is read from its field for one request and kept
// nowhere: no storage, no cookie, no address. Text from the network enters the page as text, never as markup.

const one = (selector, within = document) => within.querySelector(selector);

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button || !navigator.clipboard) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1200);
  } catch {
    if (button.matches(".hash")) button.textContent = button.dataset.copy; // no right to copy: show it whole
  }
});

// --- live updates: an event says only that something changed; the page itself is asked again

const told = one("[data-live-state]");
let source = null;
let busy = false;
let again = false;

function say(text, on) {
  if (!told) return;
  told.textContent = text;
  told.classList.toggle("on", on);
}

async function refresh() {
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) replace(part, fresh.getElementById(part.id));
    }
  } catch {
    say("not reachable; trying again", false);
  } finally {
    busy = false;
    if (again) {
      again = false;
      refresh();
    }
  }
}

function replace(part, fresh) {
  if (!fresh || fresh.innerHTML === part.innerHTML) return;
  // What is opened, or has the focus, is somebody's reading: it is left alone until they are done.
  if (part.contains(document.activeElement) || one("details[open]", part)) return;
  part.replaceWith(document.adoptNode(fresh));
}

function follow() {
  if (!document.body.dataset.follow || source) return;
  source = new EventSource(document.body.dataset.follow);
  source.addEventListener("open", () => say("live", true));
  source.addEventListener("changed", refresh);
  source.addEventListener("error", () => say("not connected; trying again", false));
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && source) {
    source.close();
    source = null;
  } else if (!document.hidden) {
    follow();
    refresh();
  }
});
follow();

// --- errors, in either shape that the dispatcher gives

function problemOf(body, status) {
  const error = body && body.error ? body.error : body || {};
  const text = error.message || error.detail || `the dispatcher answered ${status}`;
  return error.code || error.title ? `${text} [${error.code || error.title}]` : text;
}

function complain(place, text) {
  const line = one("[data-problem]", place);
  line.textContent = text;
  line.hidden = !text;
}

// --- prompt and answer of a job

const contentForm = one("[data-content-form]");
if (contentForm) {
  contentForm.addEventListener("submit", async (event) => {
    event.preventDefault();
    const place = contentForm.closest("[data-content]");
    const field = contentForm.elements.token;
    complain(place, "");
    try {
      const answer = await fetch(place.dataset.content, { headers: { Authorization: `Bearer ${field.value}` }, cache: "no-store" });
      const body = await answer.json();
      if (!answer.ok) return complain(place, problemOf(body, answer.status));
      field.value = "";
      const prompt = body.prompt;
      one("[data-prompt]", place).textContent =
        typeof prompt === "string" ? prompt : prompt.map((turn) => `${turn.role}: ${turn.content}`).join("\n\n");
      one("[data-answer]", place).textContent = body.answer === null ? "no answer (yet)" : body.answer;
      one("[data-shown]", place).hidden = false;
    } catch {
      complain(place, "the dispatcher was not reached; try again");
    }
  });
}

// --- playground

const playground = one("[data-playground]");
if (playground) {
  const place = one("#main");
  const state = one("[data-state]");
  const text = one("[data-answer]", place);
  const stop = one("[data-stop]");
  const link = one("[data-job]");
  const facts = one("[data-facts]");
  let reading = null;

  stop.addEventListener("click", () => reading && reading.abort());

  playground.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = playground.elements;
    const chat = form.form.value === "chat";
    const body = { model: form.model.value, max_tokens: Number(form.most.value), stream: true };
    if (chat) body.messages = [{ role: "user", content: form.prompt.value }];
    else body.prompt = form.prompt.value;
    if (form.verify.value) body.aos = { verify: form.verify.value };
    complain(place, "");
    text.textContent = "";
    link.hidden = facts.hidden = true;
    state.textContent = "asking";
    const ask = one("button.main", playground);
    ask.disabled = true;
    stop.hidden = false;
    reading = new AbortController();
    try {
      const answer = await fetch(chat ? "/v1/chat/completions" : "/v1/completions", {
        method: "POST",
        headers: { Authorization: `Bearer ${form.token.value}`, "Content-Type": "application/json" },
        body: JSON.stringify(body),
        signal: reading.signal,
      });
      if (!answer.ok) {
        complain(place, problemOf(await answer.json(), answer.status));
        state.textContent = "refused";
      } else await read(answer);
    } catch (error) {
      state.textContent = error.name === "AbortError" ? "no longer read here; the job goes on" : "broken off";
    } finally {
      ask.disabled = false;
      stop.hidden = true;
    }
  });

  async function read(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) if (block.startsWith("data: ") && block !== "data: [DONE]") take(JSON.parse(block.slice(6)));
    }
  }

  function take(chunk) {
    if (chunk.error) {
      complain(place, problemOf(chunk, 0));
      state.textContent = "ended with an error";
      return;
    }
    for (const choice of chunk.choices || []) text.append(choice.text || (choice.delta && choice.delta.content) || "");
    if (!chunk.aos) return;
    if (chunk.aos.provisional) state.textContent = "provisional, until the receipts are in";
    else settle(chunk.aos);
  }

  function settle(aos) {
    state.textContent = "receipts are in";
    facts.replaceChildren();
    const shown = { Outcome: aos.outcome, Assurance: aos.claimed, Operators: Array.isArray(aos.operators) ? aos.operators.length : aos.operators, Engine: aos.engine };
    for (const [name, value] of Object.entries(shown)) {
      if (value === undefined || value === null) continue;
      const term = document.createElement("dt");
      const said = document.createElement("dd");
      term.textContent = name;
      said.textContent = Array.isArray(value) ? value.join(", ") : String(value);
      facts.append(term, said);
    }
    facts.hidden = false;
    link.href = `/ui/jobs/${encodeURIComponent(aos.job_ref)}`;
    link.hidden = false;
  }
}
