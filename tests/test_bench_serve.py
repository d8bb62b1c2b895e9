"""The serving benchmark and the fuzz in toy sizes: do they run, and do they find what they look for? Never how fast."""

from __future__ import annotations

import json
import shutil
import socket
import threading

import pytest

from common.cli import UserError
from tests.bench import fuzz, loads, serve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def figures(colour_run, tmp_path_factory) -> dict:
    """The JSON of a toy run of every scenario."""
    out = tmp_path_factory.mktemp("bench") / "stdout"
    with pytest.MonkeyPatch.context() as patch, open(out, "w") as stream:
        patch.setattr("sys.stdout", stream)
        serve.main(["--toy", "--json", "--ckpt", str(colour_run / "best.pt")])
    return json.loads(out.read_text().splitlines()[-1])


def test_a_toy_run_gives_the_figures_of_every_scenario(figures):
    whole = {"rps", "p50_ms", "p99_ms", "p50_ms_1_connection", "model_ms_1_item", "model_rps_alone", "ready_s"}
    whole |= {"photo_rps", "photo_limit", "photo_vs_limit", "crowd_goodput_rps", "crowd_vs_peak", "quiet_p99_ms"}
    whole |= {"slow_clients_p99_ms", "slow_clients_vs_quiet", "import_torch_s", "stop_s"}
    assert [name for name in sorted(whole) if not figures[name] > 0] == []
    peers = {"vs_mosec", "vs_litserve", "vs_mosec_2_workers", "vs_mosec_2_each", "p99_ms_mosec", "photo_vs_litserve"}
    assert {name: figures[name] for name in peers} == dict.fromkeys(peers)
    assert figures["skipped"]["mosec"] == figures["skipped"]["litserve"] == "not in a toy run"
    assert figures["conditions"]["torch_threads"]["intent"] == 1


def test_nothing_fails_that_should_not(figures):
    zeros = ["broken", "good_failed", "wrong_passed", "lost", "bad_exits"]
    zeros += ["crowd_5xx", "crowd_broken", "slow_clients_failed"]
    assert {name: figures[name] for name in zeros} == dict.fromkeys(zeros, 0)
    assert figures["good_requests"] == 300
    assert figures["restarts"] == 1
    assert figures["answered"] > 0


@pytest.mark.parametrize("name", ["overload_photo", "overload_intent"])
def test_overload_answers_200_or_429(figures, name):
    found = figures[name]
    assert set(found["statuses"]) <= {"200", "429"}
    assert (found["other_5xx"], found["broken"]) == (0, 0)
    assert 0 < found["offered_rps"] <= found["wanted_rps"] * 1.1
    assert min(found["rss_mb"]) > 0


def test_what_is_missing_or_wrong_is_said_in_words(monkeypatch):
    with pytest.raises(UserError, match=r"speed.*wanted some of throughput"):
        serve.main(["--only", "speed"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install wrk"):
        serve.main([])


@pytest.fixture
def rude_server():
    """A port where the first request is cut off without an answer and the others get a 500."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        for number in range(4):
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(65536)
                if number:
                    client.sendall(b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")

    thread = threading.Thread(target=answer)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_the_generator_counts_what_was_lost_and_what_failed(rude_server, tmp_path, capsys):
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('{"text": "a"}\n{"text": "b"}\n')
    loads.main(["--port", str(rude_server), "--bodies", str(bodies), "--connections", "1", "--count", "3"])
    found = json.loads(capsys.readouterr().out)
    assert (found["sent"], found["statuses"], found["broken"], len(found["unanswered"])) == (3, {"500": 2}, 1, 1)
    assert (found["good_answered"], found["good_failed"]) == (0, 3)


def test_the_fuzz_finds_no_disagreement_and_the_server_survives(capsys):
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["--seconds", "2", "--seed", "1", "--live_every", "20"])
    output = capsys.readouterr().out
    found = json.loads(output.splitlines()[-1])
    assert (ended.value.code, found["disagreements"]) == (0, 0), output
    assert found["cases"] > 100
    assert found["live"] > 5
    assert 0 < found["refused"] < found["cases"]


def test_the_fuzz_reports_a_disagreement_with_its_bytes(monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "STRICTER", [])
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["--seconds", "0.5", "--live_every", "0"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert json.loads(last)["disagreements"] > 0
    assert any("we refuse request" in line for line in lines)
    assert any("pieces: [b'" in line for line in lines)


def test_the_fuzz_notices_another_meaning_and_a_dependence_on_the_pieces(monkeypatch):
    data = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\n\r\nx"
    assert fuzz.compare(data, [data[:9], data[9:]]) == []
    assert "in pieces" in fuzz.compare(data, [data[:-1]])[0]
    monkeypatch.setattr(fuzz, "oracle", lambda data: ([], True))
    assert "h11 reads []" in fuzz.compare(data, [data])[0]
