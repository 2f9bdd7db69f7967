"""Processes on this machine, the resources they use, and figures."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
THREADS = len(os.sched_getaffinity(0))

# How long a process may take to listen, and a request to be answered, in seconds.
START_TIMEOUT = 10
ANSWER_TIMEOUT = 60


class NotMeasured(Exception):
    """Something went wrong, so that there is no valid figure."""


@dataclass(frozen=True)
class Figure:
    """One line of the table; `at_most` and `at_least` are its target, if it has one."""

    name: str
    value: float
    unit: str = ""
    digits: int = 3
    at_most: float | None = None
    at_least: float | None = None

    def text(self):
        return f"{self.value:,.{self.digits}f} {self.unit}".strip()

    def target_text(self):
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    def verdict(self):
        if self.at_most is not None:
            return "ok" if self.value <= self.at_most else "NOT"
        if self.at_least is not None:
            return "ok" if self.value >= self.at_least else "NOT"
        return ""


class Process:
    """A process that listens on a port of the loopback address."""

    def __init__(self, popen, port):
        self.popen, self.port = popen, port

    def await_listening(self):
        deadline = time.monotonic() + START_TIMEOUT
        while self.popen.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection((LOOPBACK, self.port), timeout=1).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise NotMeasured(f"{self.popen.args[0]} does not listen")

    def cpu_seconds(self):
        """The processor time of it and its children."""
        ticks = 0
        for pid in self._family():
            # The name, in parentheses, may contain anything; utime and stime are fields 14 and 15.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS_PER_SECOND

    def _family(self):
        pid = self.popen.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *children]

    def memory_kib(self, field):
        """`VmRSS`, resident now, or `VmHWM`, the highest so far."""
        for line in Path(f"/proc/{self.popen.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise NotMeasured(f"/proc shows no {field}")

    def connect(self):
        return http.client.HTTPConnection(LOOPBACK, self.port, timeout=ANSWER_TIMEOUT)

    def get(self, path):
        connection = self.connect()
        try:
            connection.request("GET", path)
            return json.loads(answer(connection))
        finally:
            connection.close()


def post(connection, path, body, headers=()):
    """Sends JSON and returns the raw body of the answer."""
    headers = {"Content-Type": "application/json", **dict(headers)}
    connection.request("POST", path, body, headers)
    return answer(connection)


def answer(connection):
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise NotMeasured(f"an answer has status {response.status}: {body[:300]!r}")
    return body


@contextmanager
def running(command, port, environment=None):
    """Starts a process that will listen on the port, and ends it. Its log is shown on failure."""
    with tempfile.TemporaryFile() as log:
        popen = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=log)
        try:
            process = Process(popen, port)
            process.await_listening()
            yield process
        except Exception:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        finally:
            end(popen)


def end(popen):
    popen.terminate()
    try:
        popen.wait(timeout=5)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


def simulator(binary, latency_ms, *options):
    """The stand-in for Gemini."""
    port = free_port()
    command = [binary, "simulate", "--port", str(port), "--latency-ms", str(latency_ms), *options]
    return running(command, port)


def service(binary, upstream, limit, **settings):
    """The service, with only these settings."""
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOST": LOOPBACK,
        "PORT": str(port),
        "GEMINI_API_KEY": "bench",
        "GEMINI_BASE_URL": f"http://{LOOPBACK}:{upstream}",
        "GEMINI_CONCURRENCY_LIMIT": str(limit),
        "SHUTDOWN_GRACE_SECONDS": "1",
        "RUST_LOG": "warn",
        **{name: str(value) for name, value in settings.items()},
    }
    return running([binary, "serve"], port, environment)


@contextmanager
def nginx(configuration, **values):
    """An nginx with a configuration in which `{{name}}` stands for a value."""
    port = free_port()
    text = Path(configuration).read_text()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in {"port": port, "folder": folder, **values}.items():
            text = text.replace("{{" + name + "}}", str(value))
        path = Path(folder, "nginx.conf")
        path.write_text(text)
        with running(["nginx", "-e", "stderr", "-p", folder, "-c", path], port) as process:
            yield process


def free_port():
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def install(*packages):
    """Installs from the distribution the packages whose program of the same name is missing."""
    missing = [package for package in packages if shutil.which(package) is None]
    if not missing:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quietly = {"check": True, "env": environment, "stdout": subprocess.DEVNULL}
    subprocess.run(["apt-get", "update"], **quietly)
    subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", *missing], **quietly)
    if "nginx" in missing:
        # With a service manager, the package starts it, reachable from the network.
        subprocess.run(["service", "nginx", "stop"], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
