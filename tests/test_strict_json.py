"""Strict JSON: what is taken, and what is refused and in which words."""

import pytest

from common.http_wire import HttpError
from common.strict_json import load_json


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'"a\x01b"', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'"\xff"', "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "too large"),
        (b"[-1e999]", "too large"),
        (b"[0." + b"1" * 500 + b"]", "too long"),
        (b"9223372036854775808", "64 bits"),
        (b"9" * 5000, "64 bits"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\udc00\\ud800": 1}', "surrogate"),
        (b"[" * 33 + b"]" * 33, "deeper than 32"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper than 32"),
        (b'{"a":' * 100_000, "deeper than 32"),
    ],
)
def test_json_that_is_refused(data, words):
    check_refused(data, words)


def test_a_key_that_comes_again_among_very_many():
    many = ",".join(f'"{n}":0' for n in range(300_000))  # to look at all pairs of them would take an hour
    check_refused(f'{{{many},"7":1}}'.encode(), "'7' appears twice")


def check_refused(data, words):
    with pytest.raises(HttpError, match=words) as refused:
        load_json(data)
    assert refused.value.status == 400
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b' {"a": [1, -2.5e3, true, null, ""]} ', {"a": [1, -2500.0, True, None, ""]}),
        ('"ü\\ud83d\\ude00😀"'.encode(), "ü😀😀"),
        (b'"\\\\ud800"', "\\ud800"),
        (b"-9223372036854775808", -(2**63)),
        (b"[" * 32 + b"]" * 32, None),
        (b"[" + b"[1]," * 1000 + b"[2]]", [[1]] * 1000 + [[2]]),
        (b'"' + b"[" * 100 + b'"', "[" * 100),
    ],
)
def test_json_that_is_taken(data, value):
    assert load_json(data) == value or value is None
