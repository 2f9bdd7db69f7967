"""The interactions of Google's client google-genai, with the service at SERVICE_URL in Gemini's place."""

import os
import time
import unittest

from google import genai
from google.genai import types

MODEL = "gemini-3.5-flash-lite"
ANSWER = "Simulated answer to: Hello"
EXHAUSTED = "[[simulate:status=429]]"
REFUSED = "[[simulate:status=400]]"
SLOW = "[[simulate:latency_ms=300]]Hello"


def client(key="OWN_KEY"):
    options = types.HttpOptions(base_url=os.environ["SERVICE_URL"])
    return genai.Client(api_key=os.environ[key], http_options=options)


def text(interaction):
    outputs = [step for step in interaction.steps if step.type == "model_output"]
    return "".join(content.text for step in outputs for content in step.content)


class Interactions(unittest.TestCase):
    def setUp(self):
        self.interactions = self.enterContext(client()).interactions

    def test_a_prompt_is_answered(self):
        answer = self.interactions.create(model=MODEL, input="Hello")
        self.assertEqual((answer.status, text(answer)), ("completed", ANSWER))
        self.assertGreater(answer.usage.total_input_tokens, 0)

    def test_a_conversation_goes_on(self):
        first = self.interactions.create(model=MODEL, input="Hi")
        answer = self.interactions.create(
            model=MODEL, input="Hello", previous_interaction_id=first.id
        )
        self.assertEqual(text(answer), ANSWER)
        self.assertEqual(answer.previous_interaction_id, first.id)

    def test_an_answer_is_streamed(self):
        events = list(self.interactions.create(model=MODEL, input="Hello", stream=True))
        deltas = [event.delta for event in events if event.event_type == "step.delta"]
        texts = [delta.text for delta in deltas if delta.type == "text"]
        self.assertGreater(len(texts), 1)
        self.assertEqual("".join(texts), ANSWER)
        self.assertEqual(events[-1].event_type, "interaction.completed")
        self.assertEqual(events[-1].interaction.status, "completed")

    def test_an_agent_answers(self):
        answer = self.interactions.create(agent="deep-research-preview-04-2026", input="Hello")
        self.assertEqual(text(answer), ANSWER)

    def test_a_run_in_the_background_is_polled(self):
        run = self.interactions.create(model=MODEL, input=SLOW, background=True)
        statuses = [run.status]
        while statuses[-1] in ("queued", "in_progress"):
            time.sleep(0.05)
            run = self.interactions.get(run.id)
            statuses.append(run.status)
        self.assertGreater(len(statuses), 1)
        self.assertEqual((run.status, text(run)), ("completed", ANSWER))

    def test_a_run_in_the_background_is_streamed(self):
        run = self.interactions.create(model=MODEL, input=SLOW, background=True)
        events = list(self.interactions.get(run.id, stream=True))
        self.assertEqual(events[-1].event_type, "interaction.completed")

    def test_an_interaction_is_deleted(self):
        answer = self.interactions.create(model=MODEL, input="Hello")
        self.interactions.delete(answer.id)
        with self.assertRaises(Exception) as missing:
            self.interactions.get(answer.id)
        self.assertEqual(missing.exception.status_code, 404)

    def test_a_refused_request_raises_an_error(self):
        with self.assertRaises(Exception) as refusal:
            self.interactions.create(model=MODEL, input=REFUSED)
        self.assertEqual(refusal.exception.status_code, 400)
        self.assertIn("invalid_request", str(refusal.exception.body))

    def test_an_exhausted_quota_raises_an_error(self):
        options = types.HttpOptions(
            base_url=os.environ["SERVICE_URL"],
            retry_options=types.HttpRetryOptions(attempts=1),
        )
        with genai.Client(api_key=os.environ["OWN_KEY"], http_options=options) as impatient:
            with self.assertRaises(Exception) as refusal:
                impatient.interactions.create(model=MODEL, input=EXHAUSTED)
        self.assertEqual(refusal.exception.status_code, 429)

    def test_a_bad_key_raises_an_error(self):
        with client("BAD_KEY") as stranger, self.assertRaises(Exception) as refusal:
            stranger.interactions.create(model=MODEL, input="Hello")
        self.assertEqual(refusal.exception.status_code, 401)

    def test_the_admin_key_is_accepted(self):
        with client("ADMIN_KEY") as administrator:
            answer = administrator.interactions.create(model=MODEL, input="Hello")
        self.assertEqual(text(answer), ANSWER)


if __name__ == "__main__":
    unittest.main()
