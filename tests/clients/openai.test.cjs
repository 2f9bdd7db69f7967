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
