"""OpenAI's client, with the service at SERVICE_URL in OpenAI's place."""

import os
import unittest

import openai
from pydantic import BaseModel

MODEL = "gemini-3.5-flash-lite"
ANSWER = "Simulated answer to: Hello"
EXHAUSTED = "[[simulate:status=429]]"
REFUSED = "[[simulate:status=400]]"


class Person(BaseModel):
    name: str
    age: int


def options(key="OWN_KEY"):
    base_url = os.environ["SERVICE_URL"] + "/v1"
    return {"base_url": base_url, "api_key": os.environ[key], "max_retries": 0}


def asking(prompt):
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


class Synchronous(unittest.TestCase):
    def setUp(self):
        self.client = self.enterContext(openai.OpenAI(**options()))
        self.completions = self.client.chat.completions

    def test_a_prompt_is_answered(self):
        answer = self.completions.create(**asking("Hello"))
        self.assertEqual(answer.choices[0].message.content, ANSWER)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertGreater(answer.usage.prompt_tokens, 0)
        self.assertGreater(answer.usage.total_tokens, answer.usage.prompt_tokens)

    def test_an_answer_is_streamed(self):
        usage = {"include_usage": True}
        stream = self.completions.create(**asking("Hello"), stream=True, stream_options=usage)
        chunks = list(stream)
        texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        self.assertGreater(len([text for text in texts if text]), 1)
        self.assertEqual("".join(texts), ANSWER)
        self.assertGreater(chunks[-1].usage.total_tokens, 0)

    def test_an_object_is_streamed(self):
        with self.completions.stream(**asking("Anna"), response_format=Person) as stream:
            kinds = [event.type for event in stream]
            person = stream.get_final_completion().choices[0].message.parsed
        self.assertGreater(kinds.count("content.delta"), 1)
        self.assertIsInstance(person, Person)

    def test_a_schema_yields_an_object(self):
        answer = self.completions.parse(**asking("Anna"), response_format=Person)
        self.assertIsInstance(answer.choices[0].message.parsed, Person)

    def test_embeddings_are_returned(self):
        answer = self.client.embeddings.create(model="gemini-embedding-001", input=["One", "Two"])
        self.assertEqual([embedding.index for embedding in answer.data], [0, 1])
        for embedding in answer.data:
            self.assertGreater(len(embedding.embedding), 0)

    def test_models_are_listed(self):
        self.assertIn(f"models/{MODEL}", [model.id for model in self.client.models.list()])

    def test_an_exhausted_quota_raises_an_error(self):
        with self.assertRaises(openai.RateLimitError) as refusal:
            self.completions.create(**asking(EXHAUSTED))
        self.assertEqual(refusal.exception.status_code, 429)

    def test_a_refused_request_raises_an_error(self):
        with self.assertRaises(openai.BadRequestError) as refusal:
            self.completions.create(**asking(REFUSED))
        self.assertEqual(refusal.exception.status_code, 400)

    def test_unsupported_endpoints_raise_an_error(self):
        with self.assertRaises(openai.NotFoundError) as refusal:
            self.client.responses.create(model=MODEL, input="Hello")
        self.assertEqual(refusal.exception.code, "not_found")
        with self.assertRaises(openai.NotFoundError) as refusal:
            self.client.audio.transcriptions.create(model=MODEL, file=("a.wav", b"RIFF"))
        self.assertEqual(refusal.exception.code, "not_found")

    def test_a_bad_key_raises_an_error(self):
        stranger = self.enterContext(openai.OpenAI(**options("BAD_KEY")))
        with self.assertRaises(openai.AuthenticationError) as refusal:
            stranger.chat.completions.create(**asking("Hello"))
        self.assertEqual(refusal.exception.code, "invalid_api_key")

    def test_the_admin_key_is_accepted(self):
        administrator = self.enterContext(openai.OpenAI(**options("ADMIN_KEY")))
        answer = administrator.chat.completions.create(**asking("Hello"))
        self.assertEqual(answer.choices[0].message.content, ANSWER)


class Asynchronous(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        client = await self.enterAsyncContext(openai.AsyncOpenAI(**options()))
        self.completions = client.chat.completions

    async def test_a_prompt_is_answered(self):
        answer = await self.completions.create(**asking("Hello"))
        self.assertEqual(answer.choices[0].message.content, ANSWER)

    async def test_an_answer_is_streamed(self):
        stream = await self.completions.create(**asking("Hello"), stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        self.assertGreater(len([text for text in texts if text]), 1)
        self.assertEqual("".join(texts), ANSWER)

    async def test_an_exhausted_quota_raises_an_error_before_a_stream(self):
        with self.assertRaises(openai.RateLimitError):
            await self.completions.create(**asking(EXHAUSTED), stream=True)


if __name__ == "__main__":
    unittest.main()
