"""OpenAI's client, with the service at SERVICE_URL in OpenAI's place."""

import json
import os
import unittest

import openai
from openai.types import CreateEmbeddingResponse, EmbeddingCreateParams
from openai.types.chat import ChatCompletion, completion_create_params
from openai.types.shared import ErrorObject
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


class BatchFiles(unittest.TestCase):
    """Lines of OpenAI's batch files, whose bodies and results are of the client's own types."""

    def setUp(self):
        self.client = self.enterContext(openai.OpenAI(**options()))
        self.jobs = os.environ["SERVICE_URL"] + "/jobs"

    def results(self, job):
        url = f"{self.jobs}/{job['job_id']}/results?follow=true"
        lines = self.client.get(url, cast_to=str).splitlines()
        return [json.loads(line) for line in lines]

    def test_a_batch_file_is_a_job(self):
        chat = completion_create_params.CompletionCreateParamsNonStreaming
        bodies = [
            ("/v1/chat/completions", chat(**asking("Hello"))),
            ("/v1/embeddings", EmbeddingCreateParams(model="gemini-embedding-001", input="One")),
            ("/v1/chat/completions", chat(**asking(REFUSED))),
        ]
        lines = [
            {"custom_id": f"request-{index}", "method": "POST", "url": url, "body": body}
            for index, (url, body) in enumerate(bodies)
        ]
        file = "".join(json.dumps(line) + "\n" for line in lines).encode()
        url, headers = self.jobs + "?kind=openai", {"Content-Type": "application/jsonl"}
        as_body = self.client.post(url, cast_to=object, content=file, options={"headers": headers})
        form = {"headers": {"Content-Type": "multipart/form-data"}}
        files = {"file": ("batch.jsonl", file)}
        as_file = self.client.post(url, cast_to=object, files=files, options=form)
        for job in as_body, as_file:
            results = self.results(job)
            names = [result["custom_id"] for result in results]
            self.assertEqual(names, ["request-0", "request-1", "request-2"])
            self.assertTrue(all(result["id"].startswith("batch_req_") for result in results))
            self.assertTrue(all(result["error"] is None for result in results))
            answers = [result["response"] for result in results]
            self.assertEqual([answer["status_code"] for answer in answers], [200, 200, 400])
            self.assertTrue(all(answer["request_id"] for answer in answers))
            completion = ChatCompletion.model_validate(answers[0]["body"])
            self.assertEqual(completion.choices[0].message.content, ANSWER)
            self.assertGreater(completion.usage.total_tokens, 0)
            embeddings = CreateEmbeddingResponse.model_validate(answers[1]["body"])
            self.assertGreater(len(embeddings.data[0].embedding), 0)
            self.assertTrue(ErrorObject.model_validate(answers[2]["body"]["error"]).message)


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
