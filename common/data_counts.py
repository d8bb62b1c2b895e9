"""What the manifests of two runs count, side by side: texts, their lengths, rows, ranges of stamps.

    moved(counts(manifest_a), counts(manifest_b))   # {"texts.train": [1000, 1200], "words.train": [[1, 6, 20], ...]}

For data of one file a split, where "the file changed" says nothing.
"""

from __future__ import annotations

COUNTED = ("texts", "words", "out_of_scope", "quarantined", "duplicates", "scripts")  # of texts; classes go beside it
COUNTED += ("series", "pieces", "step", "found", "windows")
WORDS = "least, median, most"


def counts(manifest: dict) -> dict[str, object]:
    """{"<what>.<of which>": value} of all that is counted in a data_manifest.json; values: numbers, lists or words."""
    return {name: value for key in COUNTED if key in manifest for name, value in _flat(key, manifest[key])}


def _flat(name: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(f"{name}.{key}", inner)]
    return [(name, value)]


def moved(a: dict[str, object], b: dict[str, object]) -> dict[str, list]:
    """{name: [in a, in b]} where they differ, None for what a side has not; empty where a side counted nothing."""
    if not a or not b:
        return {}
    return {name: [a.get(name), b.get(name)] for name in {**a, **b} if a.get(name) != b.get(name)}


def told(found: dict[str, list], most: int) -> list[str]:
    """`moved`'s answer, a line each, `most` of a kind."""
    lines, kinds = [], {}
    for name, (was, now) in found.items():
        kinds.setdefault(name.split(".")[0], []).append(f"{name}: {_shown(was)} → {_shown(now)}")
    for kind, of_kind in kinds.items():
        of_kind[0] += f" ({WORDS})" if kind == "words" else ""
        rest = [f"{kind}: {len(of_kind) - most} more changes; --json has all"] if len(of_kind) > most else []
        lines += [*of_kind[:most], *rest]
    return lines


def _shown(value: object) -> str:
    return "none" if value is None else "/".join(map(str, value)) if isinstance(value, list) else str(value)
