// The search page: sends what is typed, dropped or recorded, and shows the answer, which the server renders.
"use strict";

const page = document.body;
const form = document.getElementById("search");
const example = document.getElementById("example");
const recordButton = document.getElementById("record");
const preview = document.getElementById("preview");
const status = document.getElementById("status");
const error = document.getElementById("error");
const results = document.getElementById("results");
const maxBytes = Number(page.dataset.maxBytes);
const recordMs = 1000 * Math.min(10, Number(page.dataset.maxSeconds));

let asked = 0; // number of the latest request: answers to earlier ones are not shown
let sent = null; // the file of the latest answer, which a change of what is compared sends again

async function ask(url, options) {
  const mine = ++asked;
  const started = performance.now();
  page.classList.add("busy");
  error.hidden = true;
  status.textContent = "Searching …";
  try {
    const response = await fetch(url, options);
    const body = await response.text();
    if (mine !== asked) return;
    if (!response.ok) throw new Error(reason(body) || `the server answered ${response.status}`);
    results.innerHTML = body;
    results.querySelectorAll("video, audio").forEach(keepToSpan);
    status.textContent = `${results.querySelectorAll(".card").length} clips in ${Math.round(performance.now() - started)} ms`;
  } catch (problem) {
    if (mine !== asked) return;
    results.replaceChildren();
    preview.replaceChildren();
    show(problem instanceof TypeError ? "The server does not answer." : problem.message);
  } finally {
    if (mine === asked) page.classList.remove("busy");
  }
}

function reason(body) {
  try {
    return JSON.parse(body).detail;
  } catch {
    return "";
  }
}

function show(message) {
  status.textContent = "";
  error.textContent = message;
  error.hidden = false;
}

function compared() {
  return new FormData(form).get("compare") || "";
}

function searchByText() {
  const q = form.elements.q.value.trim();
  if (!q) return;
  sent = null;
  preview.replaceChildren();
  const query = new URLSearchParams({ q, compare: compared() });
  history.replaceState(null, "", `/?${query}`);
  ask(`/results?${query}`);
}

function searchByFile(file) {
  if (file.size > maxBytes) {
    show(`The file is too large: at most ${Math.floor(maxBytes / 1e6)} MB are read.`);
    return;
  }
  if (file !== sent) showFile(file);
  sent = file;
  form.elements.q.value = "";
  history.replaceState(null, "", "/");
  ask(`/results?${new URLSearchParams({ compare: compared() })}`, { method: "POST", body: file });
}

function showFile(file) {
  const names = { image: "img", video: "video", audio: "audio" };
  const element = document.createElement(names[file.type.split("/")[0]] || "audio");
  element.src = URL.createObjectURL(file);
  element.controls = true;
  element.alt = "Your example";
  preview.querySelectorAll("[src]").forEach((old) => URL.revokeObjectURL(old.src));
  preview.replaceChildren(element);
}

// A clip is a span of a file: it starts where the clip does, and pauses where the clip ends.
function keepToSpan(player) {
  const start = Number(player.dataset.start);
  const end = Number(player.dataset.end);
  player.addEventListener("play", () => {
    if (player.currentTime < start - 0.05 || player.currentTime >= end - 0.05) player.currentTime = start;
    document.querySelectorAll("video, audio").forEach((other) => other !== player && other.pause());
  });
  player.addEventListener("timeupdate", () => player.currentTime >= end && player.pause());
  player.addEventListener("error", () => showPreview(player), { once: true });
}

// What the index keeps of a file, where the browser can't play the file itself.
function showPreview(player) {
  const template = player.parentElement?.querySelector("template");
  if (template) player.replaceWith(template.content.cloneNode(true));
}

let recorder = null;

async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (problem) {
    show(`No sound can be recorded: ${problem.message}`);
    return;
  }
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    stream.getTracks().forEach((track) => track.stop());
    const type = recorder.mimeType;
    recorder = null;
    recordButton.textContent = "Record a sound";
    recordButton.setAttribute("aria-pressed", "false");
    searchByFile(new Blob(parts, { type }));
  });
  recorder.start();
  recordButton.textContent = "Stop";
  recordButton.setAttribute("aria-pressed", "true");
  setTimeout(() => recorder?.state === "recording" && recorder.stop(), recordMs);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  searchByText();
});
form.addEventListener("change", (event) => {
  if (event.target.name === "compare") sent ? searchByFile(sent) : searchByText();
});
document.getElementById("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) searchByFile(file);
  event.target.value = "";
});
recordButton.addEventListener("click", record);
recordButton.hidden = !navigator.mediaDevices || !window.MediaRecorder;

page.addEventListener("dragover", (event) => {
  event.preventDefault();
  example.classList.add("over");
});
page.addEventListener("dragleave", (event) => event.relatedTarget || example.classList.remove("over"));
page.addEventListener("drop", (event) => {
  event.preventDefault();
  example.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) searchByFile(file);
});

example.hidden = false;
results.querySelectorAll("video, audio").forEach(keepToSpan);
