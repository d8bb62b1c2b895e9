"""The real Alertmanager, where it is installed (Debian: prometheus-alertmanager), to send alerts to."""

import json
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path

from tests.tiny_server import PATIENCE_S, wait_until

ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")


class Alertmanager:
    """The real one, on a free port, with one receiver that goes nowhere."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        config = folder / "alertmanager.yml"
        config.write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
        flags = [f"--config.file={config}", f"--storage.path={folder}", "--cluster.listen-address="]
        flags.append(f"--web.listen-address={self.url.removeprefix('http://')}")
        self.log = open(folder / "alertmanager.log", "wb")  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen([ALERTMANAGER, *flags], stdout=self.log, stderr=self.log)
        wait_until(self.ready, "Alertmanager is ready")

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def alerts(self) -> list[dict]:
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self.log.close()
