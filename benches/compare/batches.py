"""How close a batch comes to the time that its concurrency limit alone would allow."""

import json
import math
import statistics
import subprocess
import time
from pathlib import Path

from machine import LOOPBACK, Figure, NotMeasured, post, service, simulator

ROOT = Path(__file__).resolve().parents[2]
GENERATE = "/v1beta/models/gemini-3.5-flash-lite:generateContent"

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
            bare = bare_seconds(upstream, limit)
            with service(binary, upstream.port, limit) as gateway:
                took = batch_seconds(gateway)
            waves = math.ceil(ITEMS / limit)
            name = f"batch of {ITEMS}, limit {limit}: time over the ideal"
            yield Figure(f"{name} at {LATENCY_MS} ms", took / (waves * LATENCY_MS / 1000),
                         at_most=1.03)
            yield Figure(f"{name} at {latency * 1000:.2f} ms", took / (waves * latency))
            yield Figure(f"calls of a bare client, {limit} at once: time over the ideal",
                         bare / (waves * LATENCY_MS / 1000))
            yield Figure(f"batch of {ITEMS}, limit {limit}: time over the bare client's",
                         took / bare, at_most=1.03)


def bare_seconds(upstream, limit):
    """How long the same number of calls takes a bare client, without the service."""
    url = f"http://{LOOPBACK}:{upstream.port}{GENERATE}"
    command = ["cargo", "bench", "--quiet", "--locked", "--bench", "bare", "--", url]
    command += [str(ITEMS), str(limit), str(ROUNDS)]
    run = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return float(run.stdout)


def single_call_seconds(upstream):
    """How long the simulator takes for a call without the service."""
    body = json.dumps({"contents": [{"parts": [{"text": "Alone"}]}]})
    connection = upstream.connect()
    calls = [timed(lambda: post(connection, GENERATE, body, KEY)) for _ in range(SINGLE_CALLS)]
    connection.close()
    return statistics.median(seconds for seconds, _ in calls)


def batch_seconds(gateway):
    body = json.dumps({"requests": [{"prompt": f"Item {index}"} for index in range(ITEMS)]})
    connection = gateway.connect()
    # The first batch opens the connections to the upstream.
    batches = [timed(lambda: post(connection, "/batch/chat", body)) for _ in range(1 + ROUNDS)]
    connection.close()
    for _, answer in batches:
        check(json.loads(answer))
    return statistics.median(seconds for seconds, _ in batches[1:])


def check(batch):
    for index, result in enumerate(batch["results"]):
        if result.get("response") != f"Simulated answer to: Item {index}":
            raise NotMeasured(f"item {index} was answered with {result}")
    if batch["successful_requests"] != ITEMS:
        raise NotMeasured(f"{batch['failed_requests']} items failed")


def timed(work):
    started = time.monotonic()
    result = work()
    return time.monotonic() - started, result
