"""The policy file: read as TOML reads it, and refused where it is anything but clear."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import UserError
from common.gate_policy import at, broken, read_policy, read_toml
from tests.conftest import ROOT

KEYS = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters='"\\\x7f'), max_size=12)
VALUES = st.one_of(
    TEXT.map(lambda text: f'"{text}"'),
    st.integers(-(2**53), 2**53).map(str),
    st.floats(-1e9, 1e9, allow_nan=False).map(lambda x: f"{x:.4f}"),
    st.sampled_from(["true", "false", "[1, 2]", '["a", "# b"]', "[]"]),
)
LINES = st.tuples(KEYS, VALUES, st.sampled_from(["", " # told", '  # a "word"'])).map(
    lambda t: f"{t[0]} = {t[1]}{t[2]}"
)


@given(st.lists(LINES, max_size=4), st.dictionaries(KEYS, st.lists(LINES, max_size=4), max_size=3))
def test_it_reads_what_the_standard_library_reads(tmp_path_factory, top, sections):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader to compare with")
    text = "\n".join([*top, *(line for name, lines in sections.items() for line in (f"[{name}]", "", *lines))])
    path = tmp_path_factory.mktemp("toml") / "a.toml"
    path.write_text(text, encoding="utf-8")
    try:
        wanted = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(UserError):
            read_toml(path)
    else:
        assert read_toml(path) == wanted


@pytest.mark.parametrize(
    "line",
    ["a", "a =", "a = b", "a = 'b'", "[a.b]", "[[a]]", "a = 1\na = 2", "[a]\n[a]", "a = [1,", "a = {}", "a = null",
     'a = """b"""', "a = NaN", "a = inf", "a = 2020-01-01", "a.b = 1", 'a = "b', "= 1", "a = 1 b"],
)  # fmt: skip
def test_what_it_cannot_read_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "a.toml"
    path.write_text(f"# first\n{line}\n")
    with pytest.raises(UserError, match=r"a\.toml, line [23]: "):
        read_toml(path)


GOOD = 'test_set = "test"\n[quality]\naccuracy = ">= 0.5"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[quality]\na = '>= 1'", "wanted \\[section\\] or KEY"),
        ('[quality]\naccuracy = ">= 0.5"', 'wanted test_set = "NAME"'),
        ('test_set = "test"', "bounds under \\[quality\\]"),
        (GOOD + "[qualty]", "unknown qualty; wanted some of test_set, test_version, quality"),
        (GOOD + "[budget]\np95_ms = 3", r"\[budget\] p95_ms = 3; wanted p99_ms, size_mb, requests"),
        (GOOD + "[budget]\np99_ms = true", r"\[budget\] p99_ms = True"),
        (GOOD + "[card]\ncomplete = 1", r"\[card\] complete = 1"),
        (GOOD + '[calibration]\nece = "< 0.1"', 'wanted a bound such as ">= 0.9"'),
        (GOOD + "[calibration]\nece = 0.1", 'wanted a bound such as ">= 0.9"'),
        (GOOD + '[data]\nx = [">= 1", "<= 1.2.3"]', "is '<= 1.2.3'"),
        (GOOD + "[baseline]\nlevel = 0.2", "level in 0.5 to 1"),
    ],
)
def test_a_policy_that_would_not_hold_is_refused(tmp_path, text, words):
    (tmp_path / "gate.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_policy(tmp_path / "gate.toml")


def test_defaults_are_filled_in(tmp_path):
    (tmp_path / "gate.toml").write_text(GOOD)
    policy = read_policy(tmp_path / "gate.toml")
    assert policy["budget"] == {"p99_ms": math.inf, "size_mb": math.inf, "requests": 200}
    assert policy["provenance"] == {"clean": True, "data_present": True}


@pytest.mark.parametrize(
    ("value", "bounds", "words"),
    [
        (0.7, ">= 0.7", ""),
        (0.69, ">= 0.7", "x is 0.69, wanted >= 0.7"),
        (0.95, [">= 0.8", "<= 0.9"], "x is 0.95, wanted <= 0.9"),
        ([], "<= 0", ""),
        (["leak"], "<= 0", "x is 1, wanted <= 0"),
        (None, "<= 0", "x is None, wanted a number <= 0"),
        ("NaN", "<= 0", "x is 'NaN', wanted a number <= 0"),
        (math.nan, "<= 0", "x is nan, wanted <= 0"),
        (True, "<= 2", "x is True, wanted a number <= 2"),
    ],
)
def test_bounds(value, bounds, words):
    assert broken("x", value, bounds) == words


def test_values_at_a_path():
    tree = {"a": {"b": [{"c": 3}]}, "n": 0}
    assert (at(tree, "a.b.0.c"), at(tree, "n"), at(tree, "a.c.d"), at(tree, "a.b.7")) == (3, 0, None, None)


@pytest.mark.parametrize("path", sorted(ROOT.glob("project_*/gate.toml")), ids=lambda path: path.parent.name)
def test_the_policies_of_the_projects(path):
    assert read_policy(path)["quality"]
