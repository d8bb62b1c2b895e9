"""python -m common.generate_model_card --run_dir runs/vision

Writes MODEL_CARD.md, DATA_CARD.md and croissant.json to the run folder, from its artefacts alone: run.json, best.json,
metrics.json, the rows of its evaluations, the data's manifest, the project's alarm policy. What no measurement can tell
(intended use, licence, source of the data) is read from card.toml: the project's own, then --facts, else the one in the
run folder, else the one beside the data. It is kept in card.json. What is not known is named as missing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import card_sections
from common.amp_ckpt import load_ckpt
from common.card_page import Page
from common.card_words import LANGUAGES
from common.ckpt_file import replace_file
from common.cli import UserError, command_parser, run
from common.croissant import croissant
from common.data_versions import read_manifest
from common.eval_rows import read_rows
from common.gate_policy import read_toml
from common.measure import CODE, package_of
from common.policy import make_alarms, read_policy
from common.reference import thresholds
from common.run_record import read_json, read_run, write_json

FACTS = ("task", "intended_use", "out_of_scope_use", "limits", "licence", "contact", "data_source", "data_licence")
FACTS += ("language",)  # of the texts, by the Hub's names: "en, ko"


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("--run_dir", default="runs/vision", help="folder of a finished training")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the cards")
    parser.add_argument("--facts", help="card.toml to read in place of the one in the run folder or beside the data")
    args = parser.parse_args(argv)
    run_dir = Path(args.run_dir)
    facts = find_facts(read_run(run_dir), args.facts)
    write_json(run_dir / "card.json", {"lang": args.lang, "facts": facts})
    for name, text in cards(run_dir)[0].items():
        replace_file(run_dir / name, lambda file, text=text: file.write(text.encode("utf-8", "backslashreplace")))
    missing = cards(run_dir)[1]
    print(f"{run_dir}: MODEL_CARD.md, DATA_CARD.md, croissant.json")
    if missing:
        print(f"missing, and named so in the cards: {', '.join(missing)}")


def find_facts(record: dict[str, Any], given: str | None) -> dict[str, str]:
    """The project's facts, and over them those of one further card.toml. UserError for an unknown or a wrong one."""
    roots = [Path(root) for root in record["data_roots"].values()]
    beside = [
        folder / "card.toml" for root in roots for folder in ((root, root.parent) if root.is_dir() else (root.parent,))
    ]
    own = (
        [Path(given)] if given else [path for path in (Path(record["dir"], "card.toml"), *beside) if path.exists()][:1]
    )
    facts: dict[str, str] = {}
    for path in [path for path in [CODE / package_of(record["project"]) / "card.toml"] if path.exists()] + own:
        held = read_toml(path)
        wrong = [
            key for key, value in held.items() if key not in FACTS or not isinstance(value, str) or not value.strip()
        ]
        if wrong:
            raise UserError(f'{path}: {", ".join(wrong)}: wanted KEY = "text" with {", ".join(FACTS)}')
        facts |= held
    return facts


def collect(run_dir: Path) -> dict[str, Any]:
    """All that cards are made of."""
    record = read_run(run_dir)
    package = package_of(record["project"])
    rows = {}
    for name, scores in record["eval"].items():
        if isinstance(scores.get("rows"), dict) and (run_dir / scores["rows"]["file"]).exists():
            rows[name] = read_rows(run_dir / scores["rows"]["file"])
    watched = CODE / package / "monitoring.json"
    policy = read_policy(watched) if watched.exists() else None
    return {
        "run": record,
        "package": package,
        "manifest": read_manifest(run_dir),
        "rows": rows,
        "alarms": policy and make_alarms(policy, thresholds(load_ckpt(run_dir / "best.pt")["reference"], policy)),
        **read_json(run_dir / "card.json"),
    }


def cards(run_dir: Path) -> tuple[dict[str, str], list[str]]:
    """({file: text}, [what is missing]) from the artefacts as they are now."""
    found = collect(run_dir)
    pages = {"MODEL_CARD.md": card_sections.MODEL, "DATA_CARD.md": card_sections.DATA}
    texts, missing = {}, []
    for name, sections in pages.items():
        page = Page(found["lang"])
        for section in sections:
            section(page, found)
        texts[name] = page.finished()
        missing += [what for what in page.missing if what not in missing]
    texts["croissant.json"] = json.dumps(croissant(run_dir, found), indent=1, ensure_ascii=False) + "\n"
    return texts, missing


def card_problems(run_dir: Path, optional: tuple[str, ...] = ()) -> list[str]:
    """For the gate: why the cards in a run folder are not complete, or not of its files; empty where they are.

    optional: what may be missing, as long as the card says so.
    """
    if not (run_dir / "card.json").exists():
        return [f"there is no card: python -m common.generate_model_card --run_dir {run_dir}"]
    texts, missing = cards(run_dir)
    missing = [what for what in missing if what not in optional]
    problems = [f"missing: {', '.join(missing)}; {run_dir}/MODEL_CARD.md says how to come by it"] if missing else []
    for name, text in texts.items():
        path = run_dir / name
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
            problems.append(f"{name} was edited, or is of other files than those here: generate it again")
    return problems


if __name__ == "__main__":
    run(main)
