"""Trained runs under a name that a server can ask for, in files that never change.

    store = Releases("runs/registry")
    release = store.register("runs/vision")                 # vision@1
    store.promote("vision@1")                               # vision@production, if its gate was passed
    path = store.checkpoint("vision@production")            # runs/registry/files/<sha256>.pt, verified

Writes to the folder: `files/<sha256><suffix>`, a copy of each file under the hash of its content, and the history (see
common.history), from which everything else follows: there is no other state.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from common.amp_ckpt import load_ckpt
from common.ckpt_file import replace_file
from common.cli import UserError
from common.history import History, RegistryError
from common.log import file_sha256
from common.measure import package_of
from common.run_record import read_json

STORE = "runs/registry"
NAME = re.compile(r"(?P<project>[a-z0-9_-]+)@(?P<which>[A-Za-z0-9_.-]+)")
CHECKPOINT = "best.pt"
REQUIRED = (CHECKPOINT, "best.json", "run.json", "metrics.json", "data_manifest.json", "data_files.csv")
FURTHER = ("train.jsonl", "MODEL_CARD.md", "DATA_CARD.md", "croissant.json", "card.json", "eval_rows_*.csv")


class Releases:
    """The registry in one folder."""

    def __init__(self, folder: str | Path = STORE):
        self.folder, self.history = Path(folder), History(folder)

    # -- what there is --

    def all(self) -> list[dict[str, Any]]:
        """The registrations, the oldest first: {"project", "version", "sha256", "files": {name: SHA-256}, ...}."""
        return [entry for entry in self.history.read() if entry["action"] == "register"]

    def stages(self) -> dict[str, dict[str, int]]:
        """{project: {stage: version}} as the last promotions and rollbacks left it."""
        found: dict[str, dict[str, int]] = {}
        for entry in self.history.read():
            if entry["action"] in ("promote", "rollback"):
                found.setdefault(entry["project"], {})[entry["stage"]] = entry["version"]
        return found

    def resolve(self, name: str) -> dict[str, Any]:
        """What was registered as `project@version`, `project@stage` or `project@latest`; RegistryError if nothing."""
        match = NAME.fullmatch(name)
        if not match:
            raise RegistryError(f"{name}: wanted a name such as vision@production or vision@3")
        project, which = match["project"], match["which"]
        own = [entry for entry in self.all() if entry["project"] == project]
        stages = self.stages().get(project, {})
        version = stages.get(which) or (own[-1]["version"] if which == "latest" and own else which)
        for entry in own:
            if str(entry["version"]) == str(version):
                return entry
        there = [f"{project}@{known}" for known in [*stages, *(entry["version"] for entry in own)]]
        raise RegistryError(f"{name}: not in {self.folder}, which has {', '.join(there) or f'nothing of {project}'}")

    def checkpoint(self, name: str) -> Path:
        """The file to load, after its content was found to be what was registered."""
        return self.file(self.resolve(name), CHECKPOINT)

    def file(self, release: dict[str, Any], name: str) -> Path:
        """A verified file of a release; RegistryError where it is gone or was changed."""
        sha256 = release["files"].get(name)
        if sha256 is None:
            raise RegistryError(f"{release['project']}@{release['version']}: was registered without {name}")
        return self.held(sha256, Path(name).suffix)

    def held(self, sha256: str, suffix: str) -> Path:
        """The verified copy with this content."""
        path = self.folder / "files" / f"{sha256}{suffix}"
        if not path.exists():
            raise RegistryError(f"{path}: is gone; put it back from a copy, or roll back")
        if (found := file_sha256(path)) != sha256:
            raise RegistryError(f"{path}: its content has the SHA-256 {found[:12]}…, so it was changed; roll back")
        return path

    # -- what changes it --

    def register(self, run_dir: str | Path) -> dict[str, Any]:
        """Copy a finished, evaluated run in and give it the next version; the same files again keep theirs.

        Raises UserError where a file or an evaluation is missing, or the checkpoint is not the one that its twin and
        record name.
        """
        run_dir = Path(run_dir)
        files = release_files(run_dir)
        ckpt = load_ckpt(run_dir / CHECKPOINT)
        for witness, sha256 in witnesses(run_dir).items():
            if sha256 != files[CHECKPOINT]:
                found = f"has the SHA-256 {files[CHECKPOINT][:12]}…, {witness} names {str(sha256)[:12]}…"
                raise UserError(f"{run_dir}/{CHECKPOINT}: {found}: the files are not of one run; train again")
        if not read_json(run_dir / "metrics.json").get("eval"):
            command = f"python -m {package_of(ckpt['project'])}.eval --ckpt {run_dir / CHECKPOINT}"
            raise UserError(f"{run_dir}/metrics.json: holds no evaluation; run {command}")
        with self.history.locked():
            for entry in self.all():
                if (entry["project"], entry["files"]) == (ckpt["project"], files):
                    return entry
            for name, sha256 in files.items():
                self.keep(run_dir / name, sha256)
            version = 1 + sum(entry["project"] == ckpt["project"] for entry in self.all())
            entry = {"action": "register", "project": ckpt["project"], "version": version, "run": str(run_dir)}
            return self.history.append({**entry, "sha256": files[CHECKPOINT], "files": files})

    def keep(self, path: Path, sha256: str) -> None:
        """Copy a file under its hash; RegistryError where it changed while it was copied."""
        kept = self.folder / "files" / f"{sha256}{path.suffix}"
        if kept.exists() and file_sha256(kept) == sha256:
            return
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "rb") as source:
            replace_file(kept, lambda file: shutil.copyfileobj(source, file))
        kept.chmod(0o444)
        if file_sha256(kept) != sha256:
            kept.unlink()
            raise RegistryError(f"{path}: changed while it was copied; try again")

    def record_gate(self, gate_file: Path, gate: dict[str, Any]) -> dict[str, Any]:
        """Keep the outcome of a gate, passed or not, so that an edited gate.json is worth nothing."""
        with self.history.locked():
            sha256 = file_sha256(gate_file)
            self.keep(gate_file, sha256)
            entry = {key: gate[key] for key in ("project", "sha256", "passed")}
            return self.history.append({"action": "gate", **entry, "gate": sha256})

    def promote(self, name: str, stage: str = "production", override: str = "", policy: str = "") -> dict[str, Any]:
        """Let `stage` point to a release whose gate was passed. policy: SHA-256 that the gate's policy must have.

        Raises RegistryError with every reason why not; `override`, a reason in words, skips the gate and is recorded.
        Files that are not what was registered are refused either way.
        """
        if re.fullmatch(r"[0-9]+|latest", stage):
            raise RegistryError(f"--to {stage}: wanted a word such as production or staging, not a version")
        with self.history.locked():
            release = self.resolve(name)
            for held in release["files"]:
                self.file(release, held)
            reasons = self.why_not(release, stage, policy)
            if reasons and not override:
                raise RegistryError(f"{name} → {stage}: refused: {'; '.join(reasons)}")
            entry = {"action": "promote", "project": release["project"], "stage": stage, "version": release["version"]}
            entry |= {"sha256": release["sha256"], "override": override or None, "refusals": reasons}
            return self.history.append(entry)

    def why_not(self, release: dict[str, Any], stage: str, policy: str) -> list[str]:
        """In words, all that stands against a promotion; empty when the last gate of exactly these files was passed."""
        own = [e for e in self.history.read() if e["action"] == "gate" and e["sha256"] == release["sha256"]]
        if not own:
            return [f"no gate was run for the SHA-256 {release['sha256'][:12]}…"]
        gate = read_json(self.held(own[-1]["gate"], ".json"))
        reasons = [f"{check['name']}: {check['reason']}" for check in gate["checks"] if not check["passed"]]
        judged = gate["files"]
        reasons += [
            f"{name} is not the file that the gate judged"
            for name in sorted(judged.keys() | release["files"].keys())
            if judged.get(name) != release["files"].get(name)
        ]
        if policy and gate["policy"]["sha256"] != policy:
            reasons.append("the gate was run under another policy than the one given")
        version = self.stages().get(release["project"], {}).get(stage)
        if version not in (None, release["version"]):
            incumbent = self.resolve(f"{release['project']}@{version}")["sha256"]
            if gate["baseline"] != incumbent:
                reasons.append(f"the gate compared with {str(gate['baseline'])[:12]}, {stage} is {incumbent[:12]}")
        return reasons

    def rollback(self, project: str, stage: str = "production", reason: str = "") -> dict[str, Any]:
        """Let `stage` point to what it was before its last change; RegistryError where that is nothing, or damaged."""
        with self.history.locked():
            past: list[int] = []
            for entry in self.history.read():
                if entry.get("project") == project and entry.get("stage") == stage:
                    past = past[:-1] if entry["action"] == "rollback" else [*past, entry["version"]]
            if len(past) < 2:
                raise RegistryError(f"{project}@{stage}: there is no release before this one; promote one")
            release = self.resolve(f"{project}@{past[-2]}")
            self.file(release, CHECKPOINT)
            entry = {"action": "rollback", "project": project, "stage": stage, "version": release["version"]}
            return self.history.append(
                {**entry, "sha256": release["sha256"], "was": past[-1], "reason": reason or None}
            )


def release_files(run_dir: Path) -> dict[str, str]:
    """{name: SHA-256} of the files that make a release. UserError where a required one is missing."""
    missing = [name for name in REQUIRED if not (run_dir / name).is_file()]
    if missing:
        raise UserError(f"{run_dir}: lacks {', '.join(missing)}; train and evaluate first")
    further = sorted(path.name for pattern in FURTHER for path in run_dir.glob(pattern))
    return {name: file_sha256(run_dir / name) for name in [*REQUIRED, *further]}


def witnesses(run_dir: Path) -> dict[str, str | None]:
    """{file: the SHA-256 of the checkpoint that it names}."""
    named = {"run.json": read_json(run_dir / "run.json").get("checkpoint", {}).get("sha256")}
    return {**named, "best.json": read_json(run_dir / "best.json").get("sha256")}


def served_file(args: object) -> str:
    """For servers: the file behind --model, looked up anew at every call, or --ckpt where no --model is given."""
    name = getattr(args, "model", "")
    return str(Releases(args.registry).checkpoint(name)) if name else getattr(args, "ckpt", "")
