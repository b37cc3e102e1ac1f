// The page: reads the events of its server and shows them. Names come from workers and clients and are not to be
// trusted: they go into the page by textContent only.

import { Chart, spark } from "./charts.js";

const get = (id) => document.getElementById(id);
const TOKEN = "zmq-offload token", THEME = "zmq-offload theme";

let view = null, counts = null;

// --- how numbers are written ---------------------------------------------------------------------------------

function count(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(value < 1e7 ? 2 : 1)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  return value >= 100 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(2)));
}

function duration(seconds) {
  if (seconds === null) return ["–", ""];
  if (seconds === 0) return ["0", "ms"];
  if (seconds < 0.001) return [(seconds * 1e6).toFixed(0), "µs"];
  if (seconds < 1) return [String(Number((seconds * 1e3).toPrecision(seconds < 0.1 ? 2 : 3))), "ms"];
  return [String(Number(seconds.toPrecision(3))), "s"];
}

const time = (seconds) => duration(seconds).join(" ").trim();

function ago(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}

function memory(bytes) {
  if (!bytes) return "–";
  return bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

function used(gpu) {
  const parts = ["used_bytes", "total_bytes"].filter((key) => key in gpu).map((key) => memory(gpu[key]));
  const busy = "busy_percent" in gpu ? [`${gpu.busy_percent} %`] : [];
  return [...(parts.length ? [parts.join(" of ")] : []), ...busy].join(", ");
}

// --- small parts ---------------------------------------------------------------------------------------------

function make(name, className, ...content) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...content); // strings become text nodes
  return made;
}

function put(id, text) {
  if (get(id).textContent !== text) get(id).textContent = text;
}

/** A name, which may have hundreds of characters: then without its middle, which the pointer shows. */
function named(name) {
  if (name.length <= 64) return name;
  const made = make("span", "", `${name.slice(0, 32)}…${name.slice(-31)}`);
  made.title = name;
  return made;
}

function badge(state, text) {
  const made = make("span", "badge", text);
  made.dataset.state = state;
  return made;
}

function bar(...parts) {
  const made = make("span", "bar");
  made.setAttribute("aria-hidden", "true");
  for (const [className, share] of parts) {
    const part = make("i", className);
    part.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
    made.append(part);
  }
  return made;
}

/** Fill a table. Each row has a class and cells: [content, class]. The first cell is the row's header. */
function fill(id, rows) {
  const table = get(id);
  const labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const body = document.createDocumentFragment();
  for (const { className, cells } of rows) {
    const row = make("tr", className);
    cells.forEach(([content, cellClass], at) => {
      const cell = make(at ? "td" : "th", cellClass, ...[content].flat());
      if (at) cell.dataset.label = labels[at];
      else cell.scope = "row";
      row.append(cell);
    });
    body.append(row);
  }
  table.tBodies[0].replaceChildren(body);
  table.parentElement.hidden = !rows.length;
  const empty = get(`${id}-empty`);
  empty.hidden = rows.length > 0 || view.broker.state === "waiting";
}

/** Say how many rows a table does not have. */
function more(id, left) {
  put(`${id}-more`, left ? `and ${left.toLocaleString("en-US")} more; zmq-offload status shows all` : "");
}

// --- the parts of the page -----------------------------------------------------------------------------------

const charts = [
  [new Chart(get("chart-throughput"), [
    { column: 1, name: "served", style: "s1" },
    { column: 2, name: "errors", style: "s-bad" },
  ], count, { area: true })],
  [new Chart(get("chart-latency"), [
    { column: 3, name: "p50", style: "s1" },
    { column: 4, name: "p95", style: "s2" },
    { column: 5, name: "p99", style: "s3" },
  ], time)],
  [new Chart(get("chart-queue"), [{ column: 6, name: "queued", style: "s1" }], count, { whole: true, area: true })],
].flat();

function showState() {
  const { broker } = view;
  const words = { up: "broker up", stopping: "broker stopping", none: "no broker", waiting: "connecting" };
  state(broker.state, words[broker.state]);
  const restarts = broker.restarts ? `, started again ${broker.restarts}×` : "";
  put("uptime", broker.uptime ? `up ${ago(broker.uptime)}, ${count(view.served)} served${restarts}` : "");
  notice(broker.state === "none" ? `No broker answers: ${broker.message}. What is shown is what was known last.` : "");
}

function state(name, words) {
  get("state").dataset.state = name;
  put("state", words);
}

function notice(text) {
  put("notice", text);
  get("notice").hidden = !text;
}

function showTiles() {
  const { rates } = view;
  put("tile-requests", count(rates.requests));
  for (const name of ["p50", "p95", "p99"]) {
    const [value, unit] = duration(rates[name]);
    put(`tile-${name}`, value);
    put(`unit-${name}`, unit || "\u00a0");
  }
  put("tile-queued", count(view.queued));
  put("tile-outstanding", `of ${count(view.outstanding)} outstanding`);
  put("tile-errors", count(rates.errors));
  get("box-errors").classList.toggle("bad", rates.errors > 0);
  const { ready, lost } = counts;
  put("tile-workers", count(ready));
  put("tile-lost", lost ? `ready, ${lost} lost` : "ready");
  get("box-workers").classList.toggle("bad", lost > 0);
}

let chosen = false;

/** What the charts show: what was chosen, or as little as shows all that is known. */
function span() {
  const choices = [...document.querySelectorAll("#span input")];
  if (!chosen) {
    const known = view.points.length ? (view.now - view.points[0][0]) * view.step : 0;
    (choices.find((choice) => Number(choice.value) >= known) ?? choices.at(-1)).checked = true;
  }
  return Number(choices.find((choice) => choice.checked).value);
}

function showCharts() {
  const shown = span();
  for (const chart of charts) chart.update(view.points, view.now, view.step, shown);
}

function showWorkers() {
  fill("workers", view.workers.map((worker) => {
    const lost = worker.state === "lost";
    const name = [named(worker.name)];
    if (worker.replaces === worker.name) name.push(make("span", "sub", "came back"));
    else if (worker.replaces) name.push(make("span", "sub", "came back for ", named(worker.replaces)));
    const since = lost ? `${ago(worker.silent)} ago` : worker.state === "quiet" ? `for ${ago(worker.silent)}` : "";
    const runs = worker.running.join(", ") || (lost ? "" : `idle; has ${worker.models.join(", ") || "no model"}`);
    const busy = worker.busy === null ? "–"
      : make("span", "busy", bar(["c1", worker.busy]), `${Math.round(worker.busy * 100)} %`);
    return {
      className: worker.state,
      cells: [
        [name], [[badge(worker.state, worker.state), since ? make("span", "sub", since) : ""]],
        [runs, `names wide ${runs ? "" : "nothing"} ${worker.running.length ? "" : "quiet"}`],
        [busy, lost ? "nothing" : ""], [lost ? "–" : `${worker.outstanding} of ${worker.slots}`, "n"],
        [[worker.device || "–", make("span", "sub", used(worker.gpu))], "names"],
        [memory(worker.memory_bytes), "n"], [count(worker.served), "n"],
        [count(worker.failed), "n"], [count(worker.restarts), "n"],
      ],
    };
  }));
  more("workers", counts.workers - view.workers.length);
}

const SMALL = "http://www.w3.org/2000/svg";

function showModels() {
  const shown = span();
  fill("models", view.models.map((model) => {
    const { rates } = model;
    const tags = [...(model.latest ? ["latest"] : []), ...model.labels];
    const version = [String(model.version), ...tags.flatMap((tag) => [" ", make("span", "tag", tag)])];
    const line = document.createElementNS(SMALL, "svg");
    line.setAttribute("class", "spark");
    line.setAttribute("viewBox", "0 0 150 26");
    line.setAttribute("aria-hidden", "true");
    spark(line, model.points, (view.now * view.step) / view.model_step, view.model_step, shown);
    return {
      cells: [
        [named(model.name)], [version], [count(model.workers), "n"], [count(rates.requests), "n"],
        [count(rates.errors), `n ${rates.errors ? "bad-text" : ""}`], [time(rates.p50), "n"], [time(rates.p95), "n"],
        [time(rates.p99), "n"], [count(model.queued), "n"],
        [model.mean_batch ? model.mean_batch.toFixed(1) : "–", "n"], [line, "wide"],
      ],
    };
  }));
  more("models", counts.models - view.models.length);
}

function showSlow() {
  const recent = [...view.slow].sort((a, b) => a.ago - b.ago).slice(0, 10);
  fill("slow", recent.map((slow) => {
    const total = Math.max(slow.total, slow.queue + slow.compute, 1e-9);
    const parts = bar(["c3", slow.queue / total], ["c1", slow.compute / total],
      ["rest", (total - slow.queue - slow.compute) / total]);
    const computed = slow.status === "ok" ? `, compute ${time(slow.compute)}` : ""; // else nobody told
    const words = `queue ${time(slow.queue)}${computed}`;
    const more = slow.attempts > 1 ? [make("span", "sub", `${slow.attempts} attempts`)] : [];
    return {
      cells: [
        [`${ago(slow.ago)} ago`], [named(`${slow.model}:${slow.version}`), "names"], [time(slow.total), "n"],
        [make("span", "stack", parts, make("span", "sub", words)), "wide"], [named(slow.worker || "–"), "names"],
        [[slow.status, ...more], "names wide"],
      ],
    };
  }));
}

function showErrors() {
  fill("errors", view.errors.map((error) => ({
    cells: [[error.code], [error.kind], [count(error.hour), "n"], [count(error.count), "n"]],
  })));
}

function show() {
  document.body.dataset.shown = view.broker.state;
  showState();
  showTiles();
  showCharts();
  showWorkers();
  showModels();
  showSlow();
  showErrors();
}

// --- events --------------------------------------------------------------------------------------------------

/** The points of a series, with changed and new ones of an update. */
function merged(before, changes, oldest) {
  const first = changes.length ? changes[0][0] : Infinity;
  return [...before.filter((point) => point[0] < first && point[0] > oldest), ...changes];
}

function take(name, data) {
  const { view: news, ...numbers } = JSON.parse(data);
  if (name === "update" && view) {
    const known = new Map(view.models.map((model) => [`${model.name}\n${model.version}`, model.points]));
    news.points = merged(view.points, news.points, news.now - 3600 / news.step);
    const oldest = (news.now * news.step - 3600) / news.model_step;
    for (const model of news.models) {
      model.points = merged(known.get(`${model.name}\n${model.version}`) ?? [], model.points, oldest);
    }
  }
  view = news;
  counts = numbers;
  show();
}

class Refused extends Error {}

/** Read server-sent events by fetch: EventSource could not send a token. */
async function read() {
  const token = sessionStorage.getItem(TOKEN);
  const stop = new AbortController();
  let alarm = 0;
  const heard = () => {
    clearTimeout(alarm);
    alarm = setTimeout(() => stop.abort(new Error("it is silent")), 15000);
  };
  heard();
  try {
    await receive(token, stop.signal, heard);
  } finally {
    clearTimeout(alarm);
  }
}

async function receive(token, signal, heard) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch("dashboard/events", { headers, cache: "no-store", signal });
  if (!answer.ok) {
    const said = (await answer.json()).error;
    if (answer.status === 401 || answer.status === 403) throw new Refused(token ? said : "");
    throw new Error(said);
  }
  get("access").hidden = true;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    heard();
    if (done) throw new Error("the connection ended");
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const [, name, data] = /^event: (.*)\ndata: (.*)$/.exec(event);
      take(name, data);
    }
  }
}

/** Ask for a token; what is wrong with the one that was given is said. */
function ask(refused) {
  state("none", "no access");
  put("refused", refused);
  get("access").hidden = false;
  get("token").focus();
  return new Promise((given) => {
    get("access").addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, get("token").value.trim());
      given();
    }, { once: true });
  });
}

async function follow() {
  for (;;) {
    try {
      await read();
    } catch (error) {
      if (error instanceof Refused) {
        await ask(error.message);
        continue;
      }
      state("none", "no server");
      notice(`This page's server does not answer (${error.message}). Trying again.`);
      await new Promise((ready) => setTimeout(ready, 2000));
    }
  }
}

// --- colors --------------------------------------------------------------------------------------------------

const themes = ["system", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = themes.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "system";

function paint() {
  document.documentElement.dataset.theme = theme === "system" ? (dark.matches ? "dark" : "light") : theme;
  put("theme", `Colors: ${theme}`);
  get("theme").setAttribute("aria-label", `Colors: ${theme === "system" ? "as the system has them" : theme}`);
}

get("theme").addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  localStorage.setItem(THEME, theme);
  paint();
});
dark.addEventListener("change", paint);
get("span").addEventListener("change", () => {
  chosen = true;
  if (view) showCharts();
});

paint();
follow();
