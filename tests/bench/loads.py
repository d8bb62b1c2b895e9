"""python -m tests.bench.loads --port 8081 --bodies BODIES --connections 8 --seconds 5

A load generator in plain Python, for what wrk cannot tell: latencies by status, which request failed, and what became
of the requests under way when a server stops. BODIES holds one JSON body a line; they are sent in turn. Without --rate
each connection sends again once it has its answer; with it, requests keep to a clock as long as a connection is free.
The last line is one JSON object; `unanswered` are the times (CLOCK_MONOTONIC) at which requests without an answer were
sent to their end.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

PATIENCE_S = 10  # how long requests under way are waited for at the end


@dataclass
class Client:
    """One connection, and its request under way."""

    fresh: bool  # a new connection for every request
    socket: socket.socket | None = None
    sent_at: float = 0.0  # when all of the request had been sent; 0: nothing is under way
    good: bool = True
    received: bytes = b""


class Load:
    """All connections, and the tally."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.selector = args, selectors.DefaultSelector()
        self.good = cycle([as_request(line, args.path) for line in _lines(args.bodies)])
        self.wrong = cycle([as_request(line, args.path) for line in _lines(args.wrong)]) if args.wrong else None
        self.clients = [Client(fresh=number < args.fresh) for number in range(args.connections)]
        self.idle = [client for client in self.clients if self.connect(client)]
        self.sent, self.latencies, self.statuses = 0, defaultdict(list), Counter()
        self.good_answered = self.good_failed = self.wrong_passed = 0
        self.unanswered: list[float] = []

    def run(self) -> dict:
        """Send until the time, the count or the connections are used up; wait for what is under way."""
        start = time.monotonic()
        until = start + self.args.seconds
        while True:
            now = time.monotonic()
            sending = now < until and self.sent < self.args.count
            due = self.args.count
            if sending:
                due = min(due, int((now - start) * self.args.rate) + 1) if self.args.rate else due
                while self.idle and self.sent < due:
                    self.send(self.idle.pop())
            elif len(self.idle) == len(self.open_clients()) or now > until + PATIENCE_S:
                break
            if not self.open_clients():
                break
            for key, _ in self.selector.select(min(0.05, 1 / self.args.rate) if self.args.rate else 0.05):
                self.receive(key.data)
        seconds = min(time.monotonic(), until) - start
        self.unanswered += [client.sent_at for client in self.clients if client.sent_at]
        for client in self.open_clients():
            client.socket.close()
        self.selector.close()
        return self.tally(seconds)

    def open_clients(self) -> list[Client]:
        return [client for client in self.clients if client.socket]

    def connect(self, client: Client) -> bool:
        try:
            client.socket = socket.create_connection(("127.0.0.1", self.args.port), timeout=PATIENCE_S)
        except OSError:
            if self.args.until_closed:  # the server is gone, which is what we wait for
                return False
            raise
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.selector.register(client.socket, selectors.EVENT_READ, client)
        return True

    def send(self, client: Client) -> None:
        self.sent += 1
        client.good = not (self.wrong and self.sent % self.args.every == 0)
        try:
            client.socket.sendall(next(self.good if client.good else self.wrong))
            client.sent_at = time.monotonic()
        except OSError:
            self.good_failed += client.good
            self.closed(client)

    def receive(self, client: Client) -> None:
        try:
            data = client.socket.recv(262144)
        except OSError:
            data = b""
        if not data:
            self.closed(client)
            return
        client.received += data
        head, end, body = client.received.partition(b"\r\n\r\n")
        head = head.lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if not end or len(body) < length:
            return
        self.answered(client, int(head.split(None, 2)[1]))
        if client.fresh or b"\r\nconnection: close" in head:
            self.closed(client)
        else:
            self.idle.append(client)

    def answered(self, client: Client, status: int) -> None:
        self.statuses[status] += 1
        self.latencies[status].append(time.monotonic() - client.sent_at)
        self.good_answered += client.good and status == 200
        self.good_failed += client.good and status != 200
        self.wrong_passed += status == 200 and not client.good
        client.sent_at, client.received = 0.0, b""

    def closed(self, client: Client) -> None:
        """Connect again, unless the server is gone."""
        if client.sent_at:
            self.unanswered.append(client.sent_at)
            self.good_failed += client.good
        self.selector.unregister(client.socket)
        client.socket.close()
        client.socket, client.sent_at, client.received = None, 0.0, b""
        if client in self.idle:
            self.idle.remove(client)
        if self.connect(client):
            self.idle.append(client)

    def tally(self, seconds: float) -> dict:
        every = sorted(latency for part in self.latencies.values() for latency in part)
        return {
            "seconds": seconds,
            "sent": self.sent,
            "broken": len(self.unanswered),
            "p50_ms": quantile_ms(every, 0.5),
            "p99_ms": quantile_ms(every, 0.99),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "p99_ms_by_status": {str(status): quantile_ms(part, 0.99) for status, part in self.latencies.items()},
            "good_answered": self.good_answered,
            "good_failed": self.good_failed,
            "wrong_passed": self.wrong_passed,
            "unanswered": self.unanswered,
        }


def as_request(body: bytes, path: str = "/predict") -> bytes:
    """The bytes of one POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def quantile_ms(seconds: list[float], share: float) -> float | None:
    """Of latencies in seconds; None of none."""
    return 1000 * sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] if seconds else None


def _lines(path: str) -> list[bytes]:
    return Path(path).read_bytes().splitlines()


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--port", type=int, required=True, help="port of the server, on 127.0.0.1")
    add("--path", default="/predict", help="where requests go")
    add("--bodies", required=True, help="file of good bodies, one a line")
    add("--wrong", default="", help="file of bodies that must be refused, one a line")
    add("--every", type=int, default=16, help="with --wrong: every so manieth request is a wrong one")
    add("--connections", type=int, default=8, help="open connections")
    add("--fresh", type=int, default=0, help="of these, so many connect anew for every request")
    add("--rate", type=float, default=0.0, help="requests a second; 0: as fast as the answers come")
    add("--seconds", type=float, default=5.0, help="time to send")
    add("--count", type=int, default=sys.maxsize, help="requests to send, at most")
    add("--until_closed", action="store_true", help="end when the server has closed every connection and its port")
    print(json.dumps(Load(parser.parse_args(argv)).run()))


if __name__ == "__main__":
    main()
