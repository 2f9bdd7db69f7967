"""Live sessions of Google's client google-genai, with the service at SERVICE_URL in Gemini's place.

The client speaks TLS there, whatever the URL says.
"""

import os
import unittest

from google import genai
from google.genai import errors, types

MODEL = "gemini-3.8-live"
CONFIG = {"response_modalities": ["TEXT"]}


def connect(key="OWN_KEY", model=MODEL):
    options = types.HttpOptions(base_url=os.environ["SERVICE_URL"])
    client = genai.Client(api_key=os.environ[key], http_options=options)
    return client.aio.live.connect(model=model, config=CONFIG)


async def ask(session, text):
    turn = types.Content(role="user", parts=[types.Part(text=text)])
    await session.send_client_content(turns=turn)
    return [message async for message in session.receive()]


class Live(unittest.IsolatedAsyncioTestCase):
    async def test_a_session_has_several_turns(self):
        async with connect() as session:
            for text in ("Hello", "Ciao"):
                messages = await ask(session, text)
                answer = "".join(message.text or "" for message in messages)
                self.assertEqual(answer, f"Simulated answer to: {text}")
                self.assertGreater(messages[-1].usage_metadata.response_token_count, 0)

    async def test_the_admin_key_pays(self):
        async with connect("ADMIN_KEY") as session:
            self.assertTrue(await ask(session, "Hello"))

    async def test_a_bad_key_is_refused(self):
        with self.assertRaises(errors.APIError) as refusal:
            async with connect("BAD_KEY"):
                pass
        self.assertEqual(refusal.exception.code, 1008)
        self.assertIn("API key not valid", str(refusal.exception))

    async def test_an_unknown_model_is_refused(self):
        with self.assertRaises(errors.APIError) as refusal:
            async with connect(model="no-such-model"):
                pass
        self.assertEqual(refusal.exception.code, 1008)
        self.assertIn("model_not_found", str(refusal.exception))

    async def test_an_exhausted_quota_ends_a_session(self):
        async with connect() as session:
            with self.assertRaises(errors.APIError) as refusal:
                await ask(session, "[[simulate:status=429]]")
        self.assertEqual(refusal.exception.code, 1011)
