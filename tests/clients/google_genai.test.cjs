// Google's client @google/genai, or the version of it that GENAI names, with the service at
// SERVICE_URL in Gemini's place.

'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');

const { z } = require('zod');

const { FinishReason, GoogleGenAI } = require(process.env.GENAI ?? '@google/genai');

const MODEL = 'gemini-3.5-flash-lite';
const ANSWER = 'Simulated answer to: Hello';
const EXHAUSTED = '[[simulate:status=429]]';
const REFUSED = '[[simulate:status=400]]';

function client(key = 'OWN_KEY') {
  // The client retries only if configured to.
  const httpOptions = { baseUrl: process.env.SERVICE_URL };
  return new GoogleGenAI({ apiKey: process.env[key], httpOptions });
}

const { chats, files, models } = client();

test('a prompt is answered', async () => {
  const answer = await models.generateContent({ model: MODEL, contents: 'Hello' });
  assert.equal(answer.text, ANSWER);
  assert.equal(answer.candidates[0].finishReason, FinishReason.STOP);
  const { promptTokenCount, totalTokenCount } = answer.usageMetadata;
  assert.ok(promptTokenCount > 0);
  assert.ok(totalTokenCount > promptTokenCount);
});

test('an answer is streamed', async () => {
  const chunks = [];
  for await (const chunk of await models.generateContentStream({ model: MODEL, contents: 'Hello' })) {
    chunks.push(chunk);
  }
  assert.ok(chunks.length > 1);
  assert.equal(chunks.map((chunk) => chunk.text).join(''), ANSWER);
  assert.equal(chunks.at(-1).candidates[0].finishReason, FinishReason.STOP);
});

test('a schema yields an object', async () => {
  const responseJsonSchema = {
    type: 'object',
    properties: { name: { type: 'string' }, age: { type: 'integer' } },
    required: ['name', 'age'],
  };
  const config = { responseMimeType: 'application/json', responseJsonSchema };
  const answer = await models.generateContent({ model: MODEL, contents: 'Anna', config });
  const { name, age } = JSON.parse(answer.text);
  assert.equal(typeof name, 'string');
  assert.ok(Number.isInteger(age));
});

test('a zod schema yields an object', async () => {
  const Person = z.object({ name: z.string(), age: z.int().nonnegative() });
  // `$schema` is not among the keywords that Google lists as supported.
  const { $schema, ...responseJsonSchema } = z.toJSONSchema(Person);
  const config = { responseMimeType: 'application/json', responseJsonSchema };
  const answer = await models.generateContent({ model: MODEL, contents: 'Anna', config });
  Person.parse(JSON.parse(answer.text));
});

test('a chat is streamed', async () => {
  const chat = chats.create({ model: MODEL });
  await chat.sendMessage({ message: 'Hi' });
  const texts = [];
  for await (const chunk of await chat.sendMessageStream({ message: 'Hello' })) {
    texts.push(chunk.text);
  }
  assert.ok(texts.length > 1);
  assert.equal(texts.join(''), ANSWER);
});

test('a second chat message is answered', async () => {
  const chat = chats.create({ model: MODEL });
  await chat.sendMessage({ message: 'Hi' });
  assert.equal((await chat.sendMessage({ message: 'Hello' })).text, ANSWER);
});

test('tokens are counted', async () => {
  const answer = await models.countTokens({ model: MODEL, contents: 'Hello' });
  assert.ok(answer.totalTokens > 0);
});

test('embeddings are returned', async () => {
  const contents = ['One', 'Two'];
  const answer = await models.embedContent({ model: 'gemini-embedding-001', contents });
  assert.equal(answer.embeddings.length, 2);
  assert.ok(answer.embeddings.every((embedding) => embedding.values.length > 0));
});

test('models are listed', async () => {
  const names = [];
  for await (const model of await models.list()) {
    names.push(model.name);
  }
  assert.ok(names.includes(`models/${MODEL}`));
});

test('a file is uploaded', async () => {
  const content = new Blob(['Some text'], { type: 'text/plain' });
  const { name, uri, sizeBytes, mimeType } = await files.upload({ file: content });
  assert.deepEqual([Number(sizeBytes), mimeType], [9, 'text/plain']);
  assert.equal((await files.get({ name })).uri, uri);
  await files.delete({ name });
  await assert.rejects(files.get({ name }), { name: 'ApiError' });
});

test('an exhausted quota is an error', async () => {
  await assert.rejects(models.generateContent({ model: MODEL, contents: EXHAUSTED }), {
    name: 'ApiError',
    status: 429,
    message: /RESOURCE_EXHAUSTED/,
  });
});

test('an exhausted quota before a stream is an error', async () => {
  await assert.rejects(models.generateContentStream({ model: MODEL, contents: EXHAUSTED }), {
    name: 'ApiError',
    status: 429,
  });
});

test('a refused request is an error', async () => {
  await assert.rejects(models.generateContent({ model: MODEL, contents: REFUSED }), {
    name: 'ApiError',
    status: 400,
    message: /INVALID_ARGUMENT/,
  });
});

test('a bad key is an error', async () => {
  const stranger = client('BAD_KEY').models;
  await assert.rejects(stranger.generateContent({ model: MODEL, contents: 'Hello' }), {
    name: 'ApiError',
    status: 400,
    message: /API key not valid/,
  });
});

test('the admin key is accepted', async () => {
  const administrator = client('ADMIN_KEY').models;
  const answer = await administrator.generateContent({ model: MODEL, contents: 'Hello' });
  assert.equal(answer.text, ANSWER);
});
