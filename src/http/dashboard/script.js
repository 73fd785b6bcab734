// Keeps the page up to date: the server sends sections as HTML, and this puts what has changed in
// place, so that focus, hover and scrolling stay where they are.
'use strict';

const byId = (id) => document.getElementById(id);

// Live sections

function morph(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
        old.replaceWith(fresh);
        return;
    }
    if (old.nodeType === Node.TEXT_NODE) {
        if (old.data !== fresh.data) old.data = fresh.data;
        return;
    }
    // Its words are this script's own.
    if (old.hasAttribute('data-keep')) return;
    const focusable = old.classList.contains('key');
    for (const { name, value } of [...fresh.attributes]) {
        if (focusable && name === 'tabindex') continue;
        if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
        if (!fresh.hasAttribute(name) && name !== 'aria-busy') old.removeAttribute(name);
    }
    morphChildren(old, fresh);
}

function morphChildren(old, fresh) {
    // A row that goes takes its own focus along, and gives it to no other.
    if (fresh.localName === 'tbody') {
        const kept = new Set([...fresh.rows].map((row) => row.cells[0].textContent));
        [...old.rows].filter((row) => !kept.has(row.cells[0].textContent)).forEach((row) => row.remove());
    }
    const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
    after.forEach((node, n) => {
        if (n < before.length) morph(before[n], node);
        else old.append(node);
    });
    before.slice(after.length).forEach((node) => node.remove());
}

function show(id, html) {
    const section = byId(id);
    if (!section) return;
    const fresh = document.createElement('div');
    fresh.innerHTML = html;
    morphChildren(section, fresh);
}

function say(words, kind) {
    const live = byId('live');
    if (live.textContent === words) return;
    live.textContent = words;
    live.dataset.kind = kind;
}

function connect() {
    const events = new EventSource(`${document.body.dataset.base}/events`);
    events.addEventListener('open', () => say('live', 'good'));
    events.addEventListener('section', (event) => {
        const { id, html } = JSON.parse(event.data);
        show(id, html);
    });
    events.addEventListener('bye', () => {
        events.close();
        location.assign('/login');
    });
    events.addEventListener('error', async () => {
        say('reconnecting', 'warn');
        // The browser tries again by itself, but not after an answer that was no stream.
        if (events.readyState !== EventSource.CLOSED) return;
        const answer = await fetch('/v1/nodes?limit=1').catch(() => undefined);
        if (answer?.status === 401) location.assign('/login');
        else setTimeout(connect, 5000);
    });
}
connect();

// Orders

let clearing;
function toast(words, kind) {
    const box = byId('toast');
    box.textContent = words;
    box.dataset.kind = kind;
    clearTimeout(clearing);
    clearing = setTimeout(() => { box.textContent = ''; }, 8000);
}

function confirmed(words) {
    if (!words) return Promise.resolve(true);
    const dialog = byId('confirm');
    byId('confirm-words').textContent = words;
    dialog.returnValue = 'no';
    dialog.showModal();
    return new Promise((resolve) => {
        dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
    });
}

async function order(button) {
    const { post, body, confirm } = button.dataset;
    if (!await confirmed(confirm)) return;
    // Not disabled, which would take its focus away.
    if (button.getAttribute('aria-busy') === 'true') return;
    button.setAttribute('aria-busy', 'true');
    try {
        const headers = body ? { 'Content-Type': 'application/json' } : {};
        const answer = await fetch(post, { method: 'POST', headers, body });
        const result = await answer.json().catch(() => ({}));
        const words = result.detail ?? (answer.ok ? 'Done.' : `Refused: ${answer.status}`);
        toast(words, answer.ok ? 'good' : 'bad');
    } catch {
        toast('The node does not answer.', 'bad');
    } finally {
        button.removeAttribute('aria-busy');
    }
}

document.addEventListener('click', (event) => {
    const button = event.target.closest('button[data-post]');
    if (button) order(button);
});

// The key ring: one stop of the tab key, and the arrow keys from key to key

function describe(key) {
    byId('key-detail').textContent = key.getAttribute('aria-label');
}

function moveTo(key) {
    for (const other of document.querySelectorAll('.key[tabindex="0"]')) other.tabIndex = -1;
    key.tabIndex = 0;
    key.focus();
}

document.addEventListener('pointerover', (event) => {
    const key = event.target.closest?.('.key');
    if (key) describe(key);
});
document.addEventListener('focusin', (event) => {
    if (event.target.matches?.('.key')) describe(event.target);
});
document.addEventListener('keydown', (event) => {
    if (!event.target.matches?.('.key')) return;
    const keys = [...document.querySelectorAll('.key')];
    const at = keys.indexOf(event.target);
    const to = {
        ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1,
        Home: 0, End: keys.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    moveTo(keys[(to + keys.length) % keys.length]);
});
