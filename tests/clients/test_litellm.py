"""The interactions of litellm, with the service at SERVICE_URL in Google's place."""

import os
import time
import unittest

# Otherwise it fetches a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from litellm import interactions

MODEL = "gemini/gemini-3.5-flash-lite"
ANSWER = "Simulated answer to: Hello"
EXHAUSTED = "[[simulate:status=429]]"
REFUSED = "[[simulate:status=400]]"
SLOW = "[[simulate:latency_ms=300]]Hello"

litellm.telemetry = False
litellm.suppress_debug_info = True


def options(key="OWN_KEY"):
    return {"api_base": os.environ["SERVICE_URL"], "api_key": os.environ[key]}


def create(key="OWN_KEY", **request):
    return interactions.create(**{"model": MODEL, "input": "Hello", **options(key), **request})


def text(interaction):
    steps = interaction.model_dump()["steps"]
    outputs = [step for step in steps if step["type"] == "model_output"]
    return "".join(content["text"] for step in outputs for content in step["content"])


class Interactions(unittest.TestCase):
    def test_a_prompt_is_answered(self):
        answer = create()
        self.assertEqual((answer.status, text(answer)), ("completed", ANSWER))
        self.assertGreater(answer.usage["total_input_tokens"], 0)

    def test_a_conversation_goes_on(self):
        first = create(input="Hi")
        self.assertEqual(text(create(previous_interaction_id=first.id)), ANSWER)

    def test_an_answer_is_streamed(self):
        events = [event.model_dump() for event in create(stream=True)]
        deltas = [event["delta"] for event in events if event["event_type"] == "step.delta"]
        texts = [delta["text"] for delta in deltas if delta["type"] == "text"]
        self.assertGreater(len(texts), 1)
        self.assertEqual("".join(texts), ANSWER)
        self.assertEqual(events[-1]["event_type"], "interaction.completed")

    def test_a_run_in_the_background_is_polled(self):
        run = create(input=SLOW, background=True)
        statuses = [run.status]
        while statuses[-1] in ("queued", "in_progress"):
            time.sleep(0.05)
            run = interactions.get(interaction_id=run.id, **options())
            statuses.append(run.status)
        self.assertGreater(len(statuses), 1)
        self.assertEqual((run.status, text(run)), ("completed", ANSWER))

    def test_an_interaction_is_deleted(self):
        answer = create()
        interactions.delete(interaction_id=answer.id, **options())
        with self.assertRaises(Exception) as missing:
            interactions.get(interaction_id=answer.id, **options())
        self.assertEqual(missing.exception.status_code, 404)

    def test_a_refused_request_raises_an_error(self):
        with self.assertRaises(Exception) as refusal:
            create(input=REFUSED)
        self.assertEqual(refusal.exception.status_code, 400)

    def test_an_exhausted_quota_raises_an_error(self):
        with self.assertRaises(Exception) as refusal:
            create(input=EXHAUSTED, num_retries=0)
        self.assertEqual(refusal.exception.status_code, 429)

    def test_a_bad_key_raises_an_error(self):
        with self.assertRaises(Exception) as refusal:
            create(key="BAD_KEY")
        self.assertEqual(refusal.exception.status_code, 401)

    def test_the_admin_key_is_accepted(self):
        self.assertEqual(text(create(key="ADMIN_KEY")), ANSWER)


if __name__ == "__main__":
    unittest.main()
