"""A real browser for tests: Chromium without a window, driven over the DevTools protocol through two pipes.

    with chromium(tmp_path) as page:
        page.open("http://127.0.0.1:8080/")
        page.upload("#file", [photo])
        page.run("document.querySelector('#send').click()")
        assert page.wait("document.querySelector('.bar')?.textContent") == "red98.1 %"

Protocol: https://chromedevtools.github.io/devtools-protocol/. Reads and writes only its profile folder; no name but
127.0.0.1 is resolved.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 60  # far beyond what a busy machine needs
FLAGS = [
    "--headless=new",
    "--no-sandbox",  # as root there is none
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


class Page:
    """One tab. `events` are what the browser told meanwhile, as (name, parameters)."""

    def __init__(self, to_browser: int, from_browser: int):
        self.to_browser, self.from_browser = to_browser, from_browser
        self.buffer, self.asked, self.events, self.session = b"", 0, [], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: object) -> dict:
        """The result of one DevTools command."""
        self.asked += 1
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": self.asked, "method": method, "params": params, **session}
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while (reply := self._read()).get("id") != self.asked:
            self.events.append((reply.get("method"), reply.get("params", {})))
        assert "error" not in reply, (method, reply)
        return reply["result"]

    def _read(self) -> dict:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], PATIENCE_S)
            assert ready, "the browser says nothing"
            data = os.read(self.from_browser, 1 << 16)
            assert data, "the browser ended"
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Load the page and wait for it."""
        self.ask("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def run(self, script: str) -> object:
        """The value of a JavaScript expression; a promise is awaited."""
        reply = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def wait(self, script: str) -> object:
        """The value of the expression as soon as it is truthy."""
        until = time.monotonic() + PATIENCE_S
        while not (value := self.run(script)):
            assert time.monotonic() < until, (script, self.run("document.body.innerText"))
            time.sleep(0.02)
        return value

    def upload(self, selector: str, files: list[Path]) -> None:
        """Choose files, as a user does in the dialogue."""
        found = self.ask("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.ask("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found["result"]["objectId"])

    def write(self, selector: str, text: str) -> None:
        """Put the text into an emptied field, as if pasted."""
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.ask("Input.insertText", text=text)

    def requests(self) -> list[str]:
        """The URLs that the browser has asked for."""
        self.run("0")  # takes in what it has told by now
        return [about["request"]["url"] for name, about in self.events if name == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Errors in the console: of scripts, of the security policy."""
        self.run("0")
        told = [about["entry"] for name, about in self.events if name == "Log.entryAdded"]
        thrown = [str(about) for name, about in self.events if name == "Runtime.exceptionThrown"]
        return thrown + [entry["text"] for entry in told if entry["level"] == "error" and entry["source"] != "network"]


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser with one empty tab; it is gone at the end, with all its processes."""
    pipes = [*os.pipe(), *os.pipe()]
    # beyond the numbers 3 and 4 under which the browser wants them
    commands, to_browser, from_browser, answers = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in pipes]
    for fd in pipes:
        os.close(fd)
    program = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", PROGRAM]
    command = [*program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {**os.environ, "HOME": str(profile)}}
    process = subprocess.Popen(command, pass_fds=[commands, answers], start_new_session=True, **quiet)
    os.close(commands)
    os.close(answers)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
