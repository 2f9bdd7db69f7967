// The interactions of Google's client @google/genai, or of the version of it that GENAI names, with
// the service at SERVICE_URL in Gemini's place.

'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { setTimeout: sleep } = require('node:timers/promises');

const { GoogleGenAI } = require(process.env.GENAI ?? '@google/genai');

const MODEL = 'gemini-3.5-flash-lite';
const ANSWER = 'Simulated answer to: Hello';
const REFUSED = '[[simulate:status=400]]';
const SLOW = '[[simulate:latency_ms=300]]Hello';

function client(key = 'OWN_KEY') {
  const httpOptions = { baseUrl: process.env.SERVICE_URL };
  return new GoogleGenAI({ apiKey: process.env[key], httpOptions }).interactions;
}

const interactions = client();

function text({ steps }) {
  const outputs = steps.filter(({ type }) => type === 'model_output');
  return outputs.flatMap(({ content }) => content.map(({ text }) => text)).join('');
}

test('a prompt is answered', async () => {
  const answer = await interactions.create({ model: MODEL, input: 'Hello' });
  assert.deepEqual([answer.status, text(answer)], ['completed', ANSWER]);
  assert.ok(answer.usage.total_input_tokens > 0);
});

test('a conversation goes on', async () => {
  const first = await interactions.create({ model: MODEL, input: 'Hi' });
  const previous_interaction_id = first.id;
  const answer = await interactions.create({ model: MODEL, input: 'Hello', previous_interaction_id });
  assert.equal(text(answer), ANSWER);
});

test('an answer is streamed', async () => {
  const events = [];
  for await (const event of await interactions.create({ model: MODEL, input: 'Hello', stream: true })) {
    events.push(event);
  }
  const deltas = events.filter(({ event_type, delta }) => event_type === 'step.delta' && delta.type === 'text');
  assert.ok(deltas.length > 1);
  assert.equal(deltas.map(({ delta }) => delta.text).join(''), ANSWER);
  assert.equal(events.at(-1).event_type, 'interaction.completed');
});

test('a run in the background is polled', async () => {
  let run = await interactions.create({ model: MODEL, input: SLOW, background: true });
  let polls = 0;
  for (; run.status === 'queued' || run.status === 'in_progress'; polls += 1) {
    await sleep(50);
    run = await interactions.get(run.id);
  }
  assert.ok(polls > 0);
  assert.deepEqual([run.status, text(run)], ['completed', ANSWER]);
});

test('an interaction is deleted', async () => {
  const { id } = await interactions.create({ model: MODEL, input: 'Hello' });
  await interactions.delete(id);
  await assert.rejects(interactions.get(id), isStatus(404));
});

test('a refused request is an error', async () => {
  await assert.rejects(interactions.create({ model: MODEL, input: REFUSED }), isStatus(400));
});

test('a bad key is an error', async () => {
  await assert.rejects(client('BAD_KEY').create({ model: MODEL, input: 'Hello' }), isStatus(401));
});

test('the admin key is accepted', async () => {
  const answer = await client('ADMIN_KEY').create({ model: MODEL, input: 'Hello' });
  assert.equal(text(answer), ANSWER);
});

// The two major versions name the status differently.
function isStatus(expected) {
  return (error) => {
    assert.equal(error.status ?? error.statusCode, expected, error);
    return true;
  };
}
