"""The sections of a model card and of a data card: each writes to a page what the artefacts say.

    for section in MODEL:
        section(page, found)            # found: what common.generate_model_card collects

Reads nothing by itself. Front matter is YAML written as JSON, which is part of YAML; the Hub's model index:
https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
import shlex

from common.card_figures import MIN_SLICE, headline, lists, slice_table
from common.card_page import Page
from common.rollout import Plan
from common.run_record import scalars

LICENCES = {"mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "gpl-3.0"}
WEAKEST = 40  # slices that are shown
CALIBRATION = ("before_temperature", "after_temperature", "temperature", "intervals", "out_of_scope")
NOT_COUNTS = {"data_version", "roots", "classes", "series", "duplicates", "duplicate_examples", "skipped", "files"}


def front_matter(page: Page, found: dict) -> None:
    """What the Hub reads: licence, tags, and the scores of every evaluation."""
    run, facts = found["run"], found["facts"]
    task = facts.get("task", "other")
    results = [
        {
            "task": {"type": task},
            "dataset": {"type": f"{run['project']}-{name}", "name": f"{run['project']} {name}", "split": name},
            "metrics": [{"type": key, "name": key, "value": value} for key, value in measured(scores).items()],
        }
        for name, scores in run["eval"].items()
        if measured(scores)
    ]
    held = {"library_name": "pytorch", "pipeline_tag": task, "tags": ["ml-e2e", run["project"]]}
    held |= {"language": facts["language"].replace(",", " ").split()} if "language" in facts else {}
    if licence := facts.get("licence"):
        known = licence.lower() in LICENCES
        held |= {"license": licence.lower()} if known else {"license": "other", "license_name": licence}
    held |= {"model-index": [{"name": name_of(run), "results": results}]} if results else {}
    page.lines += ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in held.items()), "---"]
    page.text(f"# {page.say('model card')}: {name_of(run)}")


def measured(scores: dict) -> dict[str, float]:
    """The single scores of an evaluation, without its counts and what was set."""
    return {key: value for key, value in headline(scores).items() if isinstance(value, float) and key != "temperature"}


def name_of(run: dict) -> str:
    """The project and the start of the checkpoint's hash."""
    return f"{run['project']}-{run['checkpoint']['sha256'][:12]}"


def intended(page: Page, found: dict) -> None:
    """What it is for, and what not."""
    page.head("intended")
    for key, toml_key in (("intended", "intended_use"), ("out of scope", "out_of_scope_use"), ("contact", "contact")):
        page.fact(key, found["facts"].get(toml_key), toml_key)
    page.fact("licence", found["facts"].get("licence"), "licence")


def data(page: Page, found: dict) -> None:
    """What it learnt from."""
    run = found["run"]
    page.head("data")
    page.text(f"- {page.say('version')}: `{run['data_version']}`")
    page.text("- " + ", ".join(f"{split}: `{root}`" for split, root in run["data_roots"].items()))
    page.text("- DATA_CARD.md, croissant.json, data_files.csv")
    checks(page, found)


def checks(page: Page, found: dict) -> None:
    """What the training found when it read the data."""
    manifest = found["manifest"]
    page.text(f"- {page.say('checks')}:")
    for key in (
        "duplicate_groups",
        "duplicates",
        "skipped",
        "quarantined",
        "unknown_classes",
        "new_classes",
        "repairs",
        "found",
    ):
        value = manifest.get(key)
        if isinstance(value, list) and key == "duplicates":
            continue  # the groups one by one; their counts are in duplicate_groups
        if key in manifest:
            told = (
                ", ".join(f"{name} {n}" for name, n in scalars(value).items())
                if isinstance(value, dict)
                else len(value)
            )
            page.text(f"  - {key}: {told or page.say('none')}")


def training(page: Page, found: dict) -> None:
    """How it was trained."""
    run = found["run"]
    page.head("training")
    page.text(
        f"- {page.say('command')}: `{command(run)}`"
        if run["module"]
        else "- " + page.say("missing", what="command", next="")
    )
    page.text(
        f"- {page.say('chosen')}: {', '.join(f'{key} {value:.4g}' for key, value in scalars(run['best']).items())}"
    )
    page.text(
        f"- {run['seconds']:.0f} s, {run['host']['cpu']}, {run['host']['threads']} threads, GPU {run['host']['gpu']}"
    )
    page.table(
        ["config", page.say("value")], [[key, value] for key, value in run["config"].items() if value is not None]
    )


def command(run: dict) -> str:
    """The training's command as one would type it."""
    return shlex.join(["python", "-m", run["module"], *run["argv"]])


def metrics(page: Page, found: dict) -> None:
    """The scores of every evaluation, with intervals."""
    page.head("metrics")
    if not found["run"]["eval"]:
        page.miss("metrics", page.say("evaluate", package=found["package"]))
    for name, scores in found["run"]["eval"].items():
        page.text(f"### {name}")
        rows = [[key, value, scores.get(f"{key}_95", "")] for key, value in headline(scores).items()]
        page.table([page.say("metric"), page.say("value"), page.say("interval")], rows)


def slices(page: Page, found: dict) -> None:
    """Scores of parts of the evaluations."""
    page.head("slices")
    if not found["rows"]:
        page.miss("slices", page.say("evaluate", package=found["package"]))
    for name, rows in found["rows"].items():
        table = slice_table(rows)
        if not table:
            page.text(f"- {name}: {page.say('not measured')}")
            continue
        page.text(f"### {name}")
        page.text(page.say("slices text", n=MIN_SLICE))
        score = "accuracy" if "correct" in rows else "loss"
        page.table([page.say("slice"), page.say("examples"), score, page.say("interval")], table[:WEAKEST])
        if len(table) > WEAKEST:
            page.text(page.say("more", n=len(table) - WEAKEST))


def calibration(page: Page, found: dict) -> None:
    """Whether its probabilities or intervals hold."""
    page.head("calibration")
    part(page, found, "calibration", CALIBRATION)


def robustness(page: Page, found: dict) -> None:
    """Scores under damage, or at other times."""
    page.head("robustness")
    part(page, found, "robustness", ("robustness", "backtest"))


def part(page: Page, found: dict, what: str, keys: tuple[str, ...]) -> None:
    """The numbers under some keys of each evaluation."""
    empty = True
    for name, scores in found["run"]["eval"].items():
        numbers = scalars({key: scores[key] for key in keys if key in scores})
        numbers |= {f"{k}.{n}": v for k in keys if isinstance(scores.get(k), dict) for n, v in lists(scores[k]).items()}
        if numbers:
            empty = False
            page.text(f"### {name}")
            page.table([page.say("metric"), page.say("value")], [[key, value] for key, value in numbers.items()])
    if empty:
        page.miss(what, page.say("evaluate", package=found["package"]))


def limits(page: Page, found: dict) -> None:
    """What is known to go wrong: the facts, and the weakest slices."""
    page.head("limits")
    page.fact("limits", found["facts"].get("limits"), "limits")
    for name, rows in found["rows"].items():
        for key, n, value, ends in slice_table(rows)[:3]:
            page.text(f"- {name}, {key}: {value:.3g} ({ends[0]:.3g} – {ends[1]:.3g}, n = {n})")


def monitoring(page: Page, found: dict) -> None:
    """What rings when it is served."""
    page.head("monitoring")
    file = f"{found['package']}/monitoring.json"
    if found["alarms"] is None:
        page.miss("alarm policy", file)
        return
    page.text(page.say("monitoring text", file=file))
    names = ("name", "threshold", "min_samples", "consecutive", "severity", "runbook")
    rows = [[getattr(alarm, name) for name in names] for alarm in found["alarms"]]
    page.table([page.say(f"alarm {name}") for name in names], rows)


def deployment(page: Page, found: dict) -> None:
    """How it gets to users, and back."""
    page.head("deployment")
    run, plan = found["run"], Plan()
    serve = f"python -m {found['package']}.serve --model {run['project']}@production"
    page.text(f"- `{serve} --canary {run['project']}@latest --stages {','.join(map(str, plan.stages))}`")
    page.text(f"- {page.say('stages')}: {', '.join(map(str, plan.stages))} ({page.say('each', n=plan.stage_requests)})")
    page.text(f"- {page.say('guardrails')}: {', '.join(plan.guardrails)}")
    page.text(f"- {page.say('rollback')}: `python -m common.registry rollback {run['project']}`")


def provenance(page: Page, found: dict) -> None:
    """Which code, packages and data."""
    run = found["run"]
    page.head("provenance")
    rows = [["checkpoint", run["checkpoint"]["sha256"]], ["data", run["data_version"]], ["seed", run["seed"]]]
    rows += [["started", run["started"]], ["ended", run["ended"]], ["git commit", run["git"]["commit"]]]
    rows += [
        ["uncommitted changes", run["git"]["dirty"]],
        *([name, version] for name, version in run["packages"].items()),
    ]
    page.table(["", ""], rows)


def reproduce(page: Page, found: dict) -> None:
    """The command that trains it again."""
    page.head("reproduce")
    page.text("`python -m common.registry runs reproduce FOLDER`, " + page.say("this folder"))


def data_title(page: Page, found: dict) -> None:
    """What the data is, and whose."""
    run = found["run"]
    page.text(f"# {page.say('data card')}: {run['project']}-{run['data_version'][:12]}")
    page.head("source")
    page.fact("source", found["facts"].get("data_source"), "data_source")
    page.fact("licence", found["facts"].get("data_licence"), "data_licence")
    page.text(f"- {page.say('version')}: `{run['data_version']}`")
    page.text("- " + ", ".join(f"{split}: `{root}`" for split, root in run["data_roots"].items()))


def counts(page: Page, found: dict) -> None:
    """How much of everything, class by class."""
    manifest = found["manifest"]
    page.head("counts")
    page.table(
        ["", page.say("value")], [[k, v] for k, v in manifest.items() if k not in NOT_COUNTS and v not in ({}, [])]
    )
    classes = manifest.get("classes")
    if classes:
        splits = list(dict.fromkeys(split for row in classes.values() for split in row))
        page.table(
            [page.say("class"), *splits], [[kind, *(row.get(s, 0) for s in splits)] for kind, row in classes.items()]
        )

    series = manifest.get("series")
    if series:
        page.table(["series", *next(iter(series.values()))], [[name, *row.values()] for name, row in series.items()])


def data_checks(page: Page, found: dict) -> None:
    """What was wrong with it."""
    page.head("checks")
    checks(page, found)
    page.text(f"- {page.say('compare')}: `python -m common.registry data diff FOLDER`")


MODEL = (
    front_matter, intended, data, training, metrics, slices, calibration, robustness, limits, monitoring, deployment,
    provenance, reproduce,
)  # fmt: skip
DATA = (data_title, counts, data_checks)
