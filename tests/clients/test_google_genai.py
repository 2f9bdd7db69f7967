"""Google's client google-genai, with the service at SERVICE_URL in Gemini's place."""

import io
import os
import unittest

from google import genai
from google.genai import errors, types
from pydantic import BaseModel

MODEL = "gemini-3.5-flash-lite"
ANSWER = "Simulated answer to: Hello"
EXHAUSTED = "[[simulate:status=429]]"
REFUSED = "[[simulate:status=400]]"


class Person(BaseModel):
    name: str
    age: int


def client(key="OWN_KEY"):
    # The client retries only if configured to.
    options = types.HttpOptions(base_url=os.environ["SERVICE_URL"])
    return genai.Client(api_key=os.environ[key], http_options=options)


class Synchronous(unittest.TestCase):
    def setUp(self):
        self.client = self.enterContext(client())
        self.models = self.client.models

    def test_a_prompt_is_answered(self):
        answer = self.models.generate_content(model=MODEL, contents="Hello")
        self.assertEqual(answer.text, ANSWER)
        self.assertEqual(answer.candidates[0].finish_reason, types.FinishReason.STOP)
        usage = answer.usage_metadata
        self.assertGreater(usage.prompt_token_count, 0)
        self.assertGreater(usage.total_token_count, usage.prompt_token_count)

    def test_an_answer_is_streamed(self):
        chunks = list(self.models.generate_content_stream(model=MODEL, contents="Hello"))
        self.assertGreater(len(chunks), 1)
        self.assertEqual("".join(chunk.text for chunk in chunks), ANSWER)
        self.assertEqual(chunks[-1].candidates[0].finish_reason, types.FinishReason.STOP)

    def test_a_schema_yields_an_object(self):
        config = types.GenerateContentConfig(
            response_mime_type="application/json", response_schema=Person
        )
        answer = self.models.generate_content(model=MODEL, contents="Anna", config=config)
        self.assertIsInstance(answer.parsed, Person)

    def test_a_second_chat_message_is_answered(self):
        chat = self.client.chats.create(model=MODEL)
        chat.send_message("Hi")
        self.assertEqual(chat.send_message("Hello").text, ANSWER)

    def test_a_chat_is_streamed(self):
        chat = self.client.chats.create(model=MODEL)
        chat.send_message("Hi")
        texts = [chunk.text for chunk in chat.send_message_stream("Hello")]
        self.assertGreater(len(texts), 1)
        self.assertEqual("".join(texts), ANSWER)

    def test_a_schema_yields_a_list_of_objects(self):
        config = types.GenerateContentConfig(
            response_mime_type="application/json", response_schema=list[Person]
        )
        answer = self.models.generate_content(model=MODEL, contents="Anna", config=config)
        self.assertTrue(all(isinstance(person, Person) for person in answer.parsed))

    def test_a_pydantic_model_is_accepted_as_schema(self):
        config = types.GenerateContentConfig(
            response_mime_type="application/json",
            response_json_schema=Person.model_json_schema(),
        )
        answer = self.models.generate_content(model=MODEL, contents="Anna", config=config)
        self.assertIsInstance(Person.model_validate_json(answer.text), Person)

    def test_tokens_are_counted(self):
        answer = self.models.count_tokens(model=MODEL, contents="Hello")
        self.assertGreater(answer.total_tokens, 0)

    def test_embeddings_are_returned(self):
        answer = self.models.embed_content(model="gemini-embedding-001", contents=["One", "Two"])
        self.assertEqual(len(answer.embeddings), 2)
        for embedding in answer.embeddings:
            self.assertGreater(len(embedding.values), 0)

    def test_models_are_listed(self):
        self.assertIn(f"models/{MODEL}", [model.name for model in self.models.list()])

    def test_a_file_is_uploaded(self):
        content = io.BytesIO(b"Some text")
        file = self.client.files.upload(file=content, config={"mime_type": "text/plain"})
        self.assertEqual((file.size_bytes, file.mime_type), (9, "text/plain"))
        self.assertEqual(self.client.files.get(name=file.name).uri, file.uri)
        self.client.files.delete(name=file.name)
        with self.assertRaises(errors.ClientError):
            self.client.files.get(name=file.name)

    def test_an_exhausted_quota_raises_an_error(self):
        with self.assertRaises(errors.ClientError) as refusal:
            self.models.generate_content(model=MODEL, contents=EXHAUSTED)
        self.assertEqual(refusal.exception.code, 429)
        self.assertEqual(refusal.exception.status, "RESOURCE_EXHAUSTED")

    def test_a_refused_request_raises_an_error(self):
        with self.assertRaises(errors.ClientError) as refusal:
            self.models.generate_content(model=MODEL, contents=REFUSED)
        self.assertEqual(refusal.exception.code, 400)
        self.assertEqual(refusal.exception.status, "INVALID_ARGUMENT")

    def test_a_bad_key_raises_an_error(self):
        with client("BAD_KEY") as stranger, self.assertRaises(errors.ClientError) as refusal:
            stranger.models.generate_content(model=MODEL, contents="Hello")
        self.assertEqual(refusal.exception.code, 400)
        self.assertEqual(refusal.exception.status, "INVALID_ARGUMENT")
        self.assertIn("API key not valid", refusal.exception.message)

    def test_the_admin_key_is_accepted(self):
        with client("ADMIN_KEY") as administrator:
            answer = administrator.models.generate_content(model=MODEL, contents="Hello")
        self.assertEqual(answer.text, ANSWER)


class Asynchronous(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        asynchronous = await self.enterAsyncContext(client().aio)
        self.models = asynchronous.models

    async def test_a_prompt_is_answered(self):
        answer = await self.models.generate_content(model=MODEL, contents="Hello")
        self.assertEqual(answer.text, ANSWER)

    async def test_an_answer_is_streamed(self):
        stream = await self.models.generate_content_stream(model=MODEL, contents="Hello")
        texts = [chunk.text async for chunk in stream]
        self.assertGreater(len(texts), 1)
        self.assertEqual("".join(texts), ANSWER)

    async def test_an_exhausted_quota_raises_an_error_before_a_stream(self):
        with self.assertRaises(errors.ClientError) as refusal:
            stream = await self.models.generate_content_stream(model=MODEL, contents=EXHAUSTED)
            await anext(stream)
        self.assertEqual(refusal.exception.code, 429)


if __name__ == "__main__":
    unittest.main()
