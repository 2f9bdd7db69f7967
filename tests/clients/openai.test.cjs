// OpenAI's client for Node, with the service at SERVICE_URL in OpenAI's place.

'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');

const OpenAI = require('openai');
const { zodResponseFormat } = require('openai/helpers/zod');
const { z } = require('zod');

const MODEL = 'gemini-3.5-flash-lite';
const ANSWER = 'Simulated answer to: Hello';

function client(key = 'OWN_KEY') {
  const baseURL = `${process.env.SERVICE_URL}/v1`;
  return new OpenAI({ apiKey: process.env[key], baseURL, maxRetries: 0 });
}

const asking = (content) => ({ model: MODEL, messages: [{ role: 'user', content }] });
const { chat, embeddings, models } = client();

test('a prompt is answered', async () => {
  const answer = await chat.completions.create(asking('Hello'));
  assert.equal(answer.choices[0].message.content, ANSWER);
  assert.ok(answer.usage.total_tokens > answer.usage.prompt_tokens);
});

test('an answer is streamed', async () => {
  const texts = [];
  for await (const chunk of await chat.completions.create({ ...asking('Hello'), stream: true })) {
    texts.push(chunk.choices[0]?.delta?.content ?? '');
  }
  assert.ok(texts.length > 1);
  assert.equal(texts.join(''), ANSWER);
});

test('a zod schema yields an object', async () => {
  const Person = z.object({ name: z.string(), age: z.int() });
  const response_format = zodResponseFormat(Person, 'person');
  // `$schema` is not among the keywords that Google lists as supported.
  delete response_format.json_schema.schema.$schema;
  const answer = await chat.completions.parse({ ...asking('Anna'), response_format });
  Person.parse(answer.choices[0].message.parsed);
});

test('embeddings are returned', async () => {
  const answer = await embeddings.create({ model: 'gemini-embedding-001', input: ['One', 'Two'] });
  assert.deepEqual(answer.data.map(({ index }) => index), [0, 1]);
  assert.ok(answer.data.every(({ embedding }) => embedding.length > 0));
});

test('models are listed', async () => {
  const names = (await models.list()).data.map(({ id }) => id);
  assert.ok(names.includes(`models/${MODEL}`));
});

test('refusals are errors', async () => {
  for (const [status, type] of [[429, OpenAI.RateLimitError], [400, OpenAI.BadRequestError]]) {
    const refused = chat.completions.create(asking(`[[simulate:status=${status}]]`));
    await assert.rejects(refused, (error) => error instanceof type && error.status === status);
  }
});

test('a bad key is an error', async () => {
  const refused = client('BAD_KEY').chat.completions.create(asking('Hello'));
  await assert.rejects(refused, (error) => error.code === 'invalid_api_key');
});

test('the admin key is accepted', async () => {
  const answer = await client('ADMIN_KEY').chat.completions.create(asking('Hello'));
  assert.equal(answer.choices[0].message.content, ANSWER);
});

// Lines of OpenAI's batch files, whose bodies are what the client's own methods take. JavaScript has no
// types to check the results with.
test('a batch file is a job', async () => {
  const bodies = [
    ['/v1/chat/completions', asking('Hello')],
    ['/v1/embeddings', { model: 'gemini-embedding-001', input: 'One' }],
    ['/v1/chat/completions', asking('[[simulate:status=400]]')],
  ];
  const lines = bodies.map(([url, body], index) =>
    JSON.stringify({ custom_id: `request-${index}`, method: 'POST', url, body }));
  const [openai, jobs] = [client(), `${process.env.SERVICE_URL}/jobs`];
  const headers = { 'content-type': 'application/jsonl' };
  const job = await openai.post(`${jobs}?kind=openai`, { body: lines.join('\n'), headers });
  const text = await openai.get(`${jobs}/${job.job_id}/results?follow=true`);
  const results = text.trim().split('\n').map((line) => JSON.parse(line));
  assert.deepEqual(results.map((result) => result.custom_id), ['request-0', 'request-1', 'request-2']);
  assert.deepEqual(results.map((result) => result.response.status_code), [200, 200, 400]);
  const [completion, embeddings, refusal] = results.map((result) => result.response.body);
  const answer = await openai.chat.completions.create(asking('Hello'));
  assert.deepEqual(Object.keys(completion).sort(), Object.keys(answer).sort());
  assert.equal(completion.choices[0].message.content, ANSWER);
  assert.ok(embeddings.data[0].embedding.length > 0);
  assert.ok(refusal.error.message);
});
