"""Requests per second and processor time per request of `POST /chat`, compared with nginx."""

import json
import re
import statistics
import subprocess
from pathlib import Path

from machine import LOOPBACK, THREADS, Figure, NotMeasured, nginx, post, service

HERE = Path(__file__).resolve().parent
CONNECTIONS = 64
ROUNDS = 5
SECONDS = 5
WARM_UP_SECONDS = 2

TEXT = "The sky is blue because air scatters short waves of light more than long ones. " * 10
ANSWER = json.dumps({
    "candidates": [{
        "content": {"parts": [{"text": TEXT}], "role": "model"},
        "finishReason": "STOP",
        "index": 0,
    }],
    "usageMetadata": {"promptTokenCount": 40, "candidatesTokenCount": 160, "totalTokenCount": 200},
    "modelVersion": "gemini-3.5-flash-lite",
    "responseId": "bench",
})


def measure(binary):
    with (
        nginx(HERE / "upstream.conf", threads=THREADS, answer=ANSWER) as upstream,
        nginx(HERE / "proxy.conf", threads=THREADS, upstream=upstream.port) as proxy,
        service(binary, upstream.port, CONNECTIONS) as gateway,
    ):
        check(gateway, lambda answer: answer["response"])
        check(proxy, lambda answer: answer["candidates"][0]["content"]["parts"][0]["text"])
        for contender in (gateway, proxy):
            load(contender, WARM_UP_SECONDS)
        # They take turns, so that other load on the machine affects both equally.
        rounds = [(load(gateway, SECONDS), load(proxy, SECONDS)) for _ in range(ROUNDS)]
        direct, _ = load(upstream, SECONDS)
    return figures(rounds, direct)


def figures(rounds, direct):
    def median(of):
        return statistics.median(of(ours, nginxs) for ours, nginxs in rounds)

    return [
        Figure("chat: upstream alone", direct, "requests/s", 0),
        Figure("chat: nginx", median(lambda _, nginxs: nginxs[0]), "requests/s", 0),
        Figure("chat: service", median(lambda ours, _: ours[0]), "requests/s", 0),
        Figure("chat: nginx, processor time a request", median(lambda _, n: n[1] * 1e6), "µs", 1),
        Figure("chat: service, processor time a request", median(lambda o, _: o[1] * 1e6), "µs", 1),
        Figure("chat: requests/s, service over nginx",
               median(lambda ours, nginxs: ours[0] / nginxs[0]), at_least=0.5),
        Figure("chat: processor time, service over nginx",
               median(lambda ours, nginxs: ours[1] / nginxs[1])),
    ]


def check(contender, text_of):
    body = json.dumps({"prompt": "Why is the sky blue?"})
    connection = contender.connect()
    if text_of(json.loads(post(connection, "/chat", body))) != TEXT:
        raise NotMeasured("an answer is not the upstream's")
    connection.close()


def load(contender, seconds, script="chat.lua", path="/chat"):
    """Requests per second and processor seconds per request under load."""
    before = contender.cpu_seconds()
    command = ["wrk", f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", HERE / script,
               f"http://{LOOPBACK}:{contender.port}{path}"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = contender.cpu_seconds() - before
    if "Non-2xx" in report or "Socket errors" in report:
        raise NotMeasured(report)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", report)
    requests = re.search(r"(\d+) requests in", report)
    return float(rate[1]), used / int(requests[1])
