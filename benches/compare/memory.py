"""How much memory a large batch and a long queue use."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from machine import ANSWER_TIMEOUT, Figure, NotMeasured, post, service, simulator

ITEMS = 10_000
ITEM_BYTES = 1024
BATCH_LIMIT = 64
BATCH_LATENCY_MS = 20
WAITING = 10_000
# Long enough that no waiting request starts while the memory is measured.
WAITING_LATENCY_MS = 600_000
# In addition to one file for each connection: listeners, logs, timers.
SPARE_FILES = 200


def measure(binary):
    yield batch(binary)
    yield queue(binary)


def batch(binary):
    prompts = ({"prompt": f"{index} ".ljust(ITEM_BYTES, "x")} for index in range(ITEMS))
    body = json.dumps({"requests": list(prompts)})
    answers = ["--answer-bytes", str(ITEM_BYTES)]
    with (
        simulator(binary, BATCH_LATENCY_MS, *answers) as upstream,
        service(binary, upstream.port, BATCH_LIMIT) as gateway,
    ):
        connection = gateway.connect()
        answer = json.loads(post(connection, "/batch/chat", body))
        succeeded = answer["successful_requests"]
        connection.close()
        if succeeded != ITEMS:
            raise NotMeasured(f"only {succeeded} of {ITEMS} items succeeded")
        peak = gateway.memory_kib("VmHWM") / 1024
    return Figure(f"batch of {ITEMS:,} items of 1 KB: peak memory", peak, "MiB", 1, at_most=150)


def queue(binary):
    allow_files(WAITING + SPARE_FILES)
    with (
        simulator(binary, WAITING_LATENCY_MS) as upstream,
        service(binary, upstream.port, 1, MAX_QUEUED_REQUESTS=2 * WAITING) as gateway,
    ):
        waiting(gateway)
        before = gateway.memory_kib("VmRSS")
        command = [sys.executable, "-B", Path(__file__).with_name("crowd.py")]
        crowd = subprocess.Popen([*command, str(gateway.port), str(WAITING)])
        try:
            deadline = time.monotonic() + ANSWER_TIMEOUT
            # One of them does not wait: it is in flight.
            while waiting(gateway) < WAITING - 1:
                if crowd.poll() is not None or time.monotonic() > deadline:
                    raise NotMeasured(f"only {waiting(gateway)} of {WAITING} requests wait")
                time.sleep(0.2)
            each = (gateway.memory_kib("VmRSS") - before) / WAITING
        finally:
            crowd.kill()
            crowd.wait()
    return Figure(f"{WAITING:,} requests waiting: memory of each", each, "KiB", 1, at_most=20)


def waiting(gateway):
    return gateway.get("/")["concurrency_status"]["waiting"]


def allow_files(count):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < count:
        raise NotMeasured(f"a process may open {most} files; {count} are needed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))
