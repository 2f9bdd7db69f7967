// Live sessions of Google's client @google/genai, or of the version of it that GENAI names, with the
// service at SERVICE_URL in Gemini's place. The client sends its key in the URL.

'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');

const { GoogleGenAI, Modality } = require(process.env.GENAI ?? '@google/genai');

const MODEL = 'gemini-3.8-live';

// Opens a session. Returns it, a function that waits for its next turn, and its end.
function open(key = 'OWN_KEY') {
  const httpOptions = { baseUrl: process.env.SERVICE_URL };
  const { live } = new GoogleGenAI({ apiKey: process.env[key], httpOptions });
  const messages = [];
  let wake = () => {};
  let end = () => {};
  const closed = new Promise((resolve) => (end = resolve));
  const opened = live.connect({
    model: MODEL,
    config: { responseModalities: [Modality.TEXT] },
    callbacks: {
      onmessage: (message) => {
        messages.push(message);
        wake();
      },
      onclose: ({ code, reason }) => end({ code, reason }),
    },
  });
  const turn = async () => {
    let text = '';
    for (;;) {
      while (messages.length === 0) await new Promise((resolve) => (wake = resolve));
      const { serverContent } = messages.shift();
      text += serverContent?.modelTurn?.parts?.[0]?.text ?? '';
      if (serverContent?.turnComplete) return text;
    }
  };
  return { opened, turn, closed };
}

test('a session has several turns', async () => {
  const { opened, turn, closed } = open();
  const session = await opened;
  for (const text of ['Hello', 'Ciao']) {
    session.sendClientContent({ turns: text });
    assert.equal(await turn(), `Simulated answer to: ${text}`);
  }
  session.close();
  await closed;
});

test('the admin key pays', async () => {
  const { opened, turn, closed } = open('ADMIN_KEY');
  const session = await opened;
  session.sendClientContent({ turns: 'Hello' });
  assert.equal(await turn(), 'Simulated answer to: Hello');
  session.close();
  await closed;
});

test('a bad key is refused', async () => {
  const { opened, closed } = open('BAD_KEY');
  // Version 2 waits for ever, and version 3 says why it does not.
  opened.catch(({ message }) => assert.match(message, /API key not valid/));
  const { code, reason } = await closed;
  assert.equal(code, 1008);
  assert.match(reason, /API key not valid/);
});
