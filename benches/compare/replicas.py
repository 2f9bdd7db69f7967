"""The cost of sharing limits through Redis, compared with limits in memory."""

import json
import re
import statistics
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import batches
from machine import LOOPBACK, Figure, NotMeasured, free_port, post, running, service, simulator

HERE = Path(__file__).resolve().parent
LATENCY_MS = 50
LIMIT = 20
CONNECTIONS = 64
REPLICAS = 4
ROUNDS = 3
SECONDS = 4
ALONE = 100
AT_HALF_LOAD = 50


def measure(binary):
    redis = free_port()
    url = f"redis://{LOOPBACK}:{redis}"
    server = ["redis-server", "--bind", LOOPBACK, "--port", str(redis), "--save", "",
              "--logfile", "/dev/null"]
    with ExitStack() as stack:
        stack.enter_context(running(server, redis))
        upstream = stack.enter_context(simulator(binary, LATENCY_MS))

        def start(**settings):
            return stack.enter_context(service(binary, upstream.port, LIMIT, **settings))

        own = start()
        # Each has its own prefix, so that gateways that are not measured have no influence.
        one = start(REDIS_URL=url, REDIS_PREFIX="one", REDIS_LEASE_SECONDS=1)
        four = [start(REDIS_URL=url, REDIS_PREFIX="four", REDIS_LEASE_SECONDS=1)
                for _ in range(REPLICAS)]
        for gateway in [own, one, *four]:
            # After a start of Redis nothing is granted for the length of a lease.
            post(gateway.connect(), "/chat", json.dumps({"prompt": "Hello"}))
        rounds = [(load(own), load(one), load(*four)) for _ in range(ROUNDS)]
        yield from throughput(rounds)
        for name, gateway in [("own limits", own), ("Redis", one)]:
            took = batches.batch_seconds(gateway)
            ideal = batches.ITEMS / LIMIT * LATENCY_MS / 1000
            yield Figure(f"{name}: batch of {batches.ITEMS}, time over the ideal", took / ideal)
        yield from latencies(own, one)


def throughput(rounds):
    def median(of):
        return statistics.median(of(*rates) for rates in rounds)

    yield Figure("own limits: chats", median(lambda own, one, four: own), "requests/s", 1)
    yield Figure("Redis, one replica: chats", median(lambda own, one, four: one), "requests/s", 1)
    yield Figure(f"Redis, {REPLICAS} replicas: chats", median(lambda own, one, four: four),
                 "requests/s", 1)
    yield Figure("Redis over own limits, one replica", median(lambda own, one, four: one / own),
                 at_least=0.9)
    yield Figure(f"Redis over own limits, {REPLICAS} replicas",
                 median(lambda own, one, four: four / own), at_least=0.9)


def load(*gateways):
    """Requests per second of all gateways together."""
    each = CONNECTIONS // len(gateways)
    commands = [["wrk", "-t1", f"-c{each}", f"-d{SECONDS}s", "-s", HERE / "chat.lua",
                 f"http://{LOOPBACK}:{gateway.port}/chat"] for gateway in gateways]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    reports = [run.communicate()[0] for run in runs]
    for report in reports:
        if "Non-2xx" in report or "Socket errors" in report:
            raise NotMeasured(report)
    return sum(float(re.search(r"Requests/sec:\s+([\d.]+)", report)[1]) for report in reports)


def latencies(own, one):
    for name, clients, chats in [("alone", 1, ALONE), ("at half load", LIMIT // 2, AT_HALF_LOAD)]:
        # They take turns, so that other load on the machine affects both equally.
        rounds = [(times(own, clients, chats), times(one, clients, chats)) for _ in range(3)]
        for place, contender in [(0, "own limits"), (1, "Redis")]:
            all_times = sorted(seconds for times in rounds for seconds in times[place])
            for part in (50, 99):
                over = all_times[len(all_times) * part // 100] * 1000 - LATENCY_MS
                yield Figure(f"{contender}: chat {name}, p{part} over {LATENCY_MS} ms", over, "ms")


def times(gateway, clients, chats):
    """How long each chat took, in seconds."""
    taken = []

    def work():
        connection = gateway.connect()
        body = json.dumps({"prompt": "Why is the sky blue?"})
        for _ in range(chats):
            started = time.monotonic()
            post(connection, "/chat", body)
            taken.append(time.monotonic() - started)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(taken) < clients * chats:
        raise NotMeasured("a client has got no answer")
    return taken
