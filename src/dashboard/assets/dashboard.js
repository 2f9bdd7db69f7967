// Keeps a page up to date: replaces its parts as the server sends them.
'use strict';

// What tells a node from its siblings.
const key = (node) => node.dataset?.key || node.id || '';
const isSame = (node, other) => node.nodeName === other.nodeName && key(node) === key(other);

// Changes an element into another one. What is the same stays, so that the focus, open details and
// what was typed are kept.
function morph(from, to) {
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && name !== 'open') from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  let current = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    // What was in between is gone.
    let same = current;
    while (same && key(wanted) && !isSame(same, wanted)) same = same.nextSibling;
    while (same && current !== same) {
      const gone = current;
      current = current.nextSibling;
      gone.remove();
    }
    if (!current || !isSame(current, wanted)) {
      from.insertBefore(wanted, current);
      continue;
    }
    if (wanted.nodeType === Node.ELEMENT_NODE) morph(current, wanted);
    else if (current.nodeValue !== wanted.nodeValue) current.nodeValue = wanted.nodeValue;
    current = current.nextSibling;
  }
  while (current) {
    const gone = current;
    current = current.nextSibling;
    gone.remove();
  }
}

function replace(id, html) {
  const target = document.getElementById(id);
  if (!target) return;
  const template = document.createElement('template');
  template.innerHTML = html;
  const wanted = target.cloneNode(false);
  wanted.append(template.content);
  morph(target, wanted);
}

function follow(address) {
  const state = document.getElementById('live-state');
  const show = (text, name) => {
    if (state.textContent === text) return;
    state.hidden = false;
    state.className = `live ${name}`;
    state.textContent = text;
  };
  const source = new EventSource(address);
  source.addEventListener('open', () => show('Live', 'on'));
  source.addEventListener('error', () => {
    if (source.readyState === EventSource.CLOSED) show('Not updated. Reload the page.', 'off');
    else show('Reconnecting…', 'off');
  });
  source.addEventListener('fragment', (event) => {
    const { id, html } = JSON.parse(event.data);
    replace(id, html);
    show('Live', 'on');
  });
  source.addEventListener('trouble', (event) => show(event.data, 'off'));
  source.addEventListener('end', (event) => {
    if (event.data !== 'session') return;
    source.close();
    location.reload();
  });
  // A page that nobody sees is not kept up to date. If the browser brings it back, it is read anew.
  addEventListener('pagehide', () => source.close());
  addEventListener('pageshow', (event) => event.persisted && location.reload());
}

// A form that takes long is sent once.
document.addEventListener('submit', ({ target }) => {
  if (!target.dataset.once) return;
  const button = target.querySelector('[type=submit]');
  button.disabled = true;
  button.textContent = target.dataset.once;
});

// Only one question is asked at a time, and Escape closes it.
function closeOthers(opened) {
  for (const details of document.querySelectorAll('details.confirm[open]')) {
    if (details !== opened) details.open = false;
  }
}

document.addEventListener('toggle', ({ target }) => {
  if (target.open && target.matches('details.confirm')) closeOthers(target);
}, true);
document.addEventListener('keydown', (event) => {
  const details = event.key === 'Escape' && event.target.closest?.('details.confirm[open]');
  if (!details) return;
  details.open = false;
  details.querySelector('summary').focus();
});
document.addEventListener('click', ({ target }) => {
  if (!target.closest('details.confirm')) closeOthers(null);
});

// What an action has done is said once, and not again when the page is reloaded.
const address = new URL(location.href);
if (address.searchParams.has('done')) {
  address.searchParams.delete('done');
  history.replaceState(null, '', address);
}

document.querySelector('nav [aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'center' });
if (document.body.dataset.live) follow(document.body.dataset.live);
