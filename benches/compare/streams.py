"""The cost of a relayed call compared with a chat, and the delay and memory of a stream."""

import json
import socket
import statistics
import time

from chat import ANSWER, CONNECTIONS, HERE, SECONDS, WARM_UP_SECONDS, load
from machine import LOOPBACK, THREADS, Figure, NotMeasured, nginx, service, simulator
from memory import SPARE_FILES, allow_files

MODEL = "/v1beta/models/gemini-3.5-flash-lite"
GENERATE = f"{MODEL}:generateContent"
STREAM = f"{MODEL}:streamGenerateContent?alt=sse"
BODY = json.dumps({"contents": [{"parts": [{"text": "Why is the sky blue?"}]}]})
HEADERS = {"Content-Type": "application/json", "x-goog-api-key": "bench"}
ROUNDS = 3
FIRST_BYTES = 2000
OPEN = 1000
# Each sends one event a second while the memory is measured.
OPEN_LATENCY_MS = 600_000
OPEN_CHUNKS = 600


def measure(binary):
    yield from forwarded(binary)
    yield from first_bytes(binary)
    yield open_streams(binary)


def forwarded(binary):
    """Processor time of the service for a relayed call, relative to a chat."""
    paths = {"chat": ("chat.lua", "/chat"), "call": ("native.lua", GENERATE),
             "stream": ("native.lua", STREAM)}
    with (
        nginx(HERE / "upstream.conf", threads=THREADS, answer=ANSWER) as upstream,
        service(binary, upstream.port, CONNECTIONS) as gateway,
    ):
        for target in paths.values():
            load(gateway, WARM_UP_SECONDS, *target)
        rounds = [{name: load(gateway, SECONDS, *target) for name, target in paths.items()}
                  for _ in range(ROUNDS)]
    for name in ("call", "stream"):
        cpu = statistics.median(each[name][1] / each["chat"][1] for each in rounds)
        rate = statistics.median(each[name][0] / each["chat"][0] for each in rounds)
        yield Figure(f"forwarded {name}: processor time over a chat's", cpu)
        yield Figure(f"forwarded {name}: requests/s over chat's", rate)


def first_bytes(binary):
    """What the service adds to the time to a stream's first byte, one stream at a time."""
    with simulator(binary, 0) as upstream, service(binary, upstream.port, 1) as gateway:
        connections = [upstream.connect(), gateway.connect()]
        # They take turns.
        times = [[first_byte(connection) for connection in connections]
                 for _ in range(FIRST_BYTES)]
    direct, through = ([seconds * 1000 for seconds in each] for each in zip(*times))
    yield Figure("stream: time to the first byte, upstream alone", statistics.median(direct),
                 "ms", 2)
    added = statistics.median(through) - statistics.median(direct)
    yield Figure("stream: added to it by the service, median", added, "ms", 2, at_most=1)
    added = statistics.quantiles(through, n=100)[98] - statistics.quantiles(direct, n=100)[98]
    yield Figure("stream: added to it by the service, p99", added, "ms", 2)


def first_byte(connection):
    began = time.perf_counter()
    connection.request("POST", STREAM, BODY, HEADERS)
    response = connection.getresponse()
    if response.status != 200 or not response.read(1):
        raise NotMeasured(f"a stream has status {response.status}")
    took = time.perf_counter() - began
    response.read()
    return took


def open_streams(binary):
    allow_files(2 * OPEN + SPARE_FILES)
    options = ["--answer-bytes", str(10 * OPEN_CHUNKS), "--stream-chunks", str(OPEN_CHUNKS)]
    with (
        simulator(binary, OPEN_LATENCY_MS, *options) as upstream,
        service(binary, upstream.port, OPEN) as gateway,
    ):
        gateway.get("/")
        before = gateway.memory_kib("VmRSS")
        streams = [stream(gateway) for _ in range(OPEN)]
        for each in streams:
            if not each.recv(1024).startswith(b"HTTP/1.1 200"):
                raise NotMeasured("a stream was refused")
        memory = (gateway.memory_kib("VmRSS") - before) / OPEN
        if gateway.get("/")["concurrency_status"]["in_flight"] != OPEN:
            raise NotMeasured(f"fewer than {OPEN} streams are open")
        for each in streams:
            each.close()
    return Figure(f"{OPEN:,} streams open at once: memory of each", memory, "KiB", 1)


def stream(gateway):
    connection = socket.create_connection((LOOPBACK, gateway.port))
    connection.sendall(
        f"POST {STREAM} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n{BODY}".encode())
    return connection
