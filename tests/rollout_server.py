"""A server with a stable model and a candidate whose faults a test chooses, and traffic for it."""

import http.client
import json
import threading
import time
from pathlib import Path

from tests.tiny_server import PATIENCE_S, TOKEN, Tiny, wait_until

SCRIPT = """
import argparse, json, os, sys, time
from common.server_microbatch import Route, add_server_flags, run_server

class Predictor:
    example = "2"
    def __init__(self, args):
        self.held = json.load(open(args.ckpt))
        self.model_id, self.seen = self.held["id"], 0
        if self.held.get("replaced"):
            with open(args.ckpt, "a") as file:
                file.write(" ")
    def decode(self, item):
        if not isinstance(item, str) or not item.isdigit() or self.now("refuse"):
            raise ValueError("wanted digits")
        return item
    def now(self, fault):
        return self.held.get("fault") == fault and self.seen > self.held.get("after", 100)
    def predict_rows(self, rows):
        self.seen += len(rows)
        if self.now("raise"):
            raise RuntimeError("broken")
        while self.now("hang"):
            time.sleep(0.01)
        time.sleep(self.held.get("slow", 0))
        if self.now("leak"):
            time.sleep(min(1.0, 0.002 * (self.seen - self.held.get("after", 100))))
        value = float("nan") if self.now("nan") else self.held.get("gain", 2)
        wrong = self.held.get("wrong", 0)
        return [{"pred": int(row) * value, "label": "ab"[(int(row) + wrong) % 2], "prob": 0.9} for row in rows]
    def check_golden(self):
        pass

parser = argparse.ArgumentParser()
parser.add_argument("--ckpt")
add_server_flags(parser, 8080)
args = parser.parse_args()
sys.exit(run_server(lambda: Predictor(args), Route("/predict", "x", "xs"), args))
"""


class Two(Tiny):
    """A server with a stable model, "old", and a candidate, "new"."""

    script_text, model_id = SCRIPT, "old"

    def __init__(self, folder: Path, *flags: str, candidate: dict | str, model_id: str = "old"):
        self.folder, self.model_id = folder, model_id
        (folder / "old.json").write_text('{"id": "old"}')
        held = candidate if isinstance(candidate, str) else json.dumps({"id": "new", **candidate})
        (folder / "new.json").write_text(held)
        (folder / "token").write_text(TOKEN)
        files = ["--ckpt", folder / "old.json", "--canary", folder / "new.json", "--admin_token_file", folder / "token"]
        usual = ["--request_log", folder / "log", "--canary_patience_ms", "300"]
        super().__init__(folder, *map(str, [*files, *usual]), *flags)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rollout(self) -> dict:
        return self.ask("GET", "/rollout")[2]

    def order(self, verb: str, token: str = TOKEN):
        return self.ask("POST", f"/rollout/{verb}", b"", {"Authorization": f"Bearer {token}"})

    def loaded(self) -> "Two":
        """When the candidate gets its first request."""
        wait_until(lambda: any(answer[2].get("arm") for answer in load(self, 8)), "the candidate is loaded")
        return self

    def decisions(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "rollout.jsonl").read_text().splitlines()]

    def log(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    def metrics(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return text


def load(server: Tiny, requests: int, threads: int = 4, headers: dict | None = None) -> list[tuple[int, int, dict]]:
    """(item, status, answer) of so many requests over a few connections."""
    answers, numbers = [], iter(range(requests))

    def run():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        for number in numbers:
            connection.request("POST", "/predict", json.dumps({"x": str(number)}), headers or {})
            answer = connection.getresponse()
            answers.append((number, answer.status, json.loads(answer.read())))
        connection.close()

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(answers) == requests
    return answers


def load_until_ended(server: Two, requests: int = 50, threads: int = 4) -> list[tuple[int, int, dict]]:
    """Traffic until the rollout has ended."""
    answers, until = [], time.monotonic() + PATIENCE_S
    while server.rollout()["status"] == "running":
        assert time.monotonic() < until, server.rollout()
        answers += load(server, requests, threads)
    return answers
