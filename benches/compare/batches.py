"""How close a batch comes to the time it would take if nothing but the limit held it up."""

import json
import math
import statistics
import time

from machine import Figure, NotMeasured, post, service, simulator

ITEMS = 1000
LATENCY_MS = 50
LIMITS = [15, 64, 256]
ROUNDS = 5
SINGLE_CALLS = 50
KEY = {"x-goog-api-key": "bench"}


def measure(binary):
    with simulator(binary, LATENCY_MS) as upstream:
        latency = single_call_seconds(upstream)
        yield Figure(f"one call at {LATENCY_MS} ms, alone", latency * 1000, "ms", 2)
        for limit in LIMITS:
            with service(binary, upstream.port, limit) as gateway:
                took = batch_seconds(gateway)
            waves = math.ceil(ITEMS / limit)
            name = f"batch of {ITEMS}, limit {limit}: time over the ideal"
            yield Figure(f"{name} at {LATENCY_MS} ms", took / (waves * LATENCY_MS / 1000),
                         at_most=1.03)
            yield Figure(f"{name} at {latency * 1000:.2f} ms", took / (waves * latency))


def single_call_seconds(upstream):
    """What the simulator really takes for a call when nothing stands between."""
    body = json.dumps({"contents": [{"parts": [{"text": "Alone"}]}]})
    connection = upstream.connect()
    path = "/v1beta/models/gemini-2.5-flash:generateContent"
    calls = [timed(lambda: post(connection, path, body, KEY)) for _ in range(SINGLE_CALLS)]
    connection.close()
    return statistics.median(seconds for seconds, _ in calls)


def batch_seconds(gateway):
    body = json.dumps({"requests": [{"prompt": f"Item {index}"} for index in range(ITEMS)]})
    connection = gateway.connect()
    # The first batch makes the connections to the upstream.
    batches = [timed(lambda: post(connection, "/batch/chat", body)) for _ in range(1 + ROUNDS)]
    connection.close()
    for _, answer in batches:
        check(json.loads(answer))
    return statistics.median(seconds for seconds, _ in batches[1:])


def check(batch):
    for index, result in enumerate(batch["results"]):
        if result.get("response") != f"Simulated answer to: Item {index}":
            raise NotMeasured(f"item {index} came back as {result}")
    if batch["successful_requests"] != ITEMS:
        raise NotMeasured(f"{batch['failed_requests']} items failed")


def timed(work):
    started = time.monotonic()
    result = work()
    return time.monotonic() - started, result
