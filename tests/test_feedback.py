"""Labels that come late: each finds its answer once, is scored if it can be, and is refused if it is wrong."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from common.feedback import Feedback
from common.monitor_pages import best, truths


def test_feedback_finds_its_answer_once():
    feedback = Feedback(prefix="me-")
    feedback.remember([("me-1", [{"pred": 4, "label": "mug"}, ValueError("bad"), {"pred": 1, "label": "cup"}])])
    assert feedback.join({"req_id": "me-1", "label": "mug"}) == "joined"
    assert feedback.join({"req_id": "me-1", "label": "mug"}) == "duplicate"
    assert feedback.join({"req_id": "me-1", "label": "mug", "item": 1}) == "duplicate"
    assert feedback.join({"req_id": "me-1", "label": 2, "item": 2}) == "joined"
    assert feedback.join({"req_id": "me-9", "label": "mug"}) == "late"
    assert feedback.join({"req_id": "you-9", "label": "mug"}) == "unknown"
    assert feedback.state()["accuracy"] == {"value": 0.5, "n": 2}
    for truth, words in (({"item": 7, "label": "mug"}, "item is 7"), ({"item": 2, "value": 1.0}, None)):
        if words:
            with pytest.raises(ValueError, match=words):
                feedback.join({"req_id": "me-1", **truth})
    feedback.remember([("me-2", [{"pred": 4, "label": "mug"}])])
    with pytest.raises(ValueError, match="these answers are classes; wanted label"):
        feedback.join({"req_id": "me-2", "value": 1.0})


def test_a_label_that_is_no_class_is_not_scored():
    feedback, model = Feedback(), SimpleNamespace(classes=["mug", "cup"], oos_label="oos")
    feedback.remember([("1", [{"pred": 0, "label": "mug"}] * 3)])
    for label in ("Mug", "999", 2, 999):
        assert feedback.join({"req_id": "1", "label": label}, model) == "unknown_label"
    assert feedback.join({"req_id": "1", "label": "oos"}, model) == "joined"
    assert feedback.means() == {}  # as out of scope as nothing is on validation
    assert feedback.join({"req_id": "1", "label": "cup", "item": 1}, model) == "joined"
    assert feedback.join({"req_id": "1", "label": 0, "item": 2}, model) == "joined"
    assert feedback.means() == {"accuracy": {"value": 0.5, "n": 2}}


def test_labels_are_checked_by_the_hundred_however_they_come():
    feedback = Feedback()
    feedback.remember([("1", [{"pred": 0, "label": "mug"}] * 450)])
    for item in range(450):
        feedback.join({"req_id": "1", "label": "cup" if item < 100 else "mug", "item": item})
    assert [(check["accuracy"]["n"], check["accuracy"]["value"]) for check in feedback.checks] == [
        (100, 0), (200, 0.5), (300, pytest.approx(2 / 3)), (400, 0.75),
    ]  # fmt: skip


def test_feedback_scores_forecasts():
    feedback = Feedback()
    one, two = {"pred": 2.0, "lower": 1.0, "upper": 3.0}, {"pred": [1, 2], "lower": [0, 0], "upper": [3, 3]}
    feedback.remember([("1", [one, two])])
    assert feedback.join({"req_id": "1", "value": 2.5}) == "joined"
    with pytest.raises(ValueError, match="found 1 numbers, wanted the 2 of the forecast"):
        feedback.join({"req_id": "1", "value": 2.5, "item": 1})
    with pytest.raises(ValueError, match="these answers have none; wanted value"):
        feedback.join({"req_id": "1", "label": "mug", "item": 1})
    assert feedback.join({"req_id": "1", "value": [4, 2], "item": 1}) == "joined"
    state = feedback.state()
    assert state["error"] == {"value": pytest.approx((0.5 + 1.5) / 2), "n": 2}
    assert state["coverage"] == {"value": pytest.approx((1 + 0.5) / 2), "n": 2}


def test_feedback_forgets_the_oldest():
    feedback = Feedback(most=100, prefix="a-")
    for n in range(1000):
        feedback.remember([(f"a-{n}", [{"pred": n, "label": str(n)}])])
    assert feedback.state()["remembered"] == 100
    assert feedback.join({"req_id": "a-899", "label": "899"}) == "late"
    assert feedback.join({"req_id": "a-900", "label": "900"}) == "joined"


def test_feedback_finds_the_newest_of_an_id_however_seldom_it_is_asked():
    feedback = Feedback(most=10, prefix="a-")
    for n in range(100):
        feedback.remember([(f"a-{n}", [{"pred": 0, "label": "old"}]), ("again", [{"pred": n, "label": str(n)}])])
        if n % 7 == 0:  # the index is behind, or has been thrown away since
            assert feedback.join({"req_id": "again", "label": str(n)}) == "joined"
            assert feedback.join({"req_id": f"a-{n}", "label": "old"}) == "joined"
            assert feedback.join({"req_id": f"a-{n - 5}", "label": "old"}) == "late"
            assert feedback.join({"req_id": f"a-{n}", "label": "old"}) == "duplicate"
    assert feedback.state()["accuracy"]["value"] == 1.0
    assert len(feedback._index) <= 30


def test_of_several_workers_one_knows():
    found = [
        {"joined": 1, "duplicate": 0, "unknown_label": 0, "late": 1, "unknown": 2},
        {"joined": 0, "duplicate": 1, "unknown_label": 1, "late": 0, "unknown": 2},
    ]
    assert best(found) == {"joined": 1, "duplicate": 1, "unknown_label": 1, "late": 1, "unknown": 0}
    assert best(found[:1]) == found[0]


@pytest.mark.parametrize(
    "body",
    ["{}", "[]", '{"req_id": "1"}', '{"req_id": 1, "label": "a"}', '{"req_id": "1", "label": "a", "value": 1}',
     '{"req_id": "1", "label": "a", "item": -1}', '{"req_id": "1", "label": 1.5}', '{"req_id": "1", "value": "1"}',
     '{"req_id": "1", "value": 1e301}', '{"req_id": "1", "label": 1000001}',
     '{"req_id": "1", "value": []}', '{"items": []}', '{"items": [1]}', '{"req_id": "1", "label": true}'],
)  # fmt: skip
def test_wrong_feedback_is_refused(body):
    with pytest.raises(Exception, match="wanted") as refused:
        truths(body.encode())
    assert refused.value.status == 400


def test_json_has_one_kind_of_number():
    assert truths(b'{"req_id": "1", "label": 3.0, "item": 2.0}') == [{"req_id": "1", "label": 3, "item": 2}]
