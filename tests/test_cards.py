"""Cards: from the artefacts alone, readable for the Hub and for Croissant, and open about what is missing."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from common import generate_model_card
from common.card_words import LANGUAGES, WORDS
from common.cli import UserError
from common.generate_model_card import card_problems, cards
from common.rollout import Plan
from common.run_record import read_run
from tests.conftest import FACTS, ROOT, python


@pytest.fixture
def run(scored_run, tmp_path):
    return shutil.copytree(scored_run, tmp_path / "run")


def test_the_hub_reads_the_card(run):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    card = hub.ModelCard.load(run / "MODEL_CARD.md")
    scores = read_run(run)["eval"]["test"]
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["accuracy"].metric_value == scores["accuracy"]
    assert results["macro_f1"].metric_value == scores["macro_f1"]
    assert results["accuracy"].task_type == "image-classification"
    assert (results["accuracy"].dataset_name, results["accuracy"].dataset_split) == ("vision test", "test")
    assert card.data.license == "mit"
    assert card.data.model_name == f"vision-{read_run(run)['checkpoint']['sha256'][:12]}"
    assert hub.repocard_data.model_index_to_eval_results(card.data.to_dict()["model-index"])[0] == card.data.model_name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # rdflib's, of its own classes
def test_croissant_is_valid_and_gives_the_files(run):
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    dataset = mlcroissant.Dataset(jsonld=run / "croissant.json")
    assert dataset.metadata.issues.errors == set()
    records = list(dataset.records(record_set="files"))
    assert len(records) == 84
    assert {record["files/split"] for record in records} == {b"train", b"val"}
    assert "CC0-1.0" in str(dataset.metadata.license)


def test_every_number_is_that_of_an_artefact(run):
    text, found = (run / "MODEL_CARD.md").read_text(), read_run(run)
    scores = found["eval"]["test"]
    assert f"| accuracy | {scores['accuracy']:.4g} | {scores['accuracy_95'][0]:.4g}, " in text
    assert f"| after_temperature.ece | {scores['after_temperature']['ece']:.4g} |" in text
    assert f"| robustness.mean_corruption_accuracy | {scores['robustness']['mean_corruption_accuracy']:.4g} |" in text
    assert found["checkpoint"]["sha256"] in text
    assert f"`python -m project_vision_cls.train --train_root {found['config']['train_root']}" in text
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    wanted = (
        "intended data training metrics slices calibration robustness limits monitoring deployment provenance reproduce"
    )
    assert heads == [WORDS[key][0] for key in wanted.split()]
    policy = json.loads((ROOT / "project_vision_cls" / "monitoring.json").read_text())
    assert f"| drift_label | {policy['drift']['label']['effect']} | " in text
    assert f"| accuracy_drop | {policy['levels']['accuracy_drop']['threshold']} | " in text
    assert f" --canary vision@latest --stages {','.join(map(str, Plan().stages))}`" in text
    assert "`python -m common.registry rollback vision`" in text
    data = (run / "DATA_CARD.md").read_text()
    assert "| red | 20 | 8 |" in data
    assert found["data_version"] in data
    assert "drawn by the tests" in data


def test_what_is_not_known_is_named_and_not_made_up(run):
    (run / "card.toml").unlink()
    held = json.loads((run / "metrics.json").read_text())
    del held["eval"]
    (run / "metrics.json").write_text(json.dumps(held))
    done = python("common.generate_model_card", "--run_dir", run)
    assert done.returncode == 0, done.stderr
    missing = set(cards(run)[1])
    assert {"licence", "contact", "data_source", "data_licence", "metrics", "slices", "robustness"} <= missing
    assert "licence" in done.stdout.splitlines()[1]
    text = (run / "MODEL_CARD.md").read_text()
    assert '**Missing: licence.** Write it to card.toml as `licence = "…"`, and generate the card again.' in text
    assert "model-index" not in text
    assert "license" not in text
    assert "**Missing: metrics.** Evaluate (`python -m project_vision_cls.eval`" in text
    (reason,) = card_problems(run, optional=("robustness",))
    assert ("missing: " in reason, "metrics" in reason, "robustness" in reason) == (True, True, False)


def test_korean(run):
    generate_model_card.main(["--run_dir", str(run), "--lang", "ko"])
    text = (run / "MODEL_CARD.md").read_text()
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads[0] == "사용 목적"
    assert all(re.search("[가-힣]", head) for head in heads)
    assert "language:" not in text  # of the model, which nobody told
    assert "# 데이터 카드" in (run / "DATA_CARD.md").read_text()
    assert card_problems(run) == []  # judged in the language it was written in
    assert len(LANGUAGES) == 2
    for key, (english, korean) in WORDS.items():
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", korean)), key


def test_facts_beside_the_data_and_given_ones(run, tmp_path, colour_photos):
    (run / "card.toml").unlink()
    given = tmp_path / "given.toml"
    given.write_text('limits = "only colours"\nlanguage = "en, ko"\n')
    generate_model_card.main(["--run_dir", str(run), "--facts", str(given)])
    facts = json.loads((run / "card.json").read_text())["facts"]
    assert facts["limits"] == "only colours"
    front = (run / "MODEL_CARD.md").read_text().split("---")[1]
    assert 'language: ["en", "ko"]' in front
    assert '"type": "accuracy"' in front
    assert '"type": "temperature"' not in front
    assert facts["task"] == "image-classification"  # of the project
    assert not FACTS.keys() & facts.keys()
    beside = colour_photos / "card.toml"
    beside.write_text('contact = "of the data"\n')
    try:
        generate_model_card.main(["--run_dir", str(run)])
    finally:
        beside.unlink()
    assert json.loads((run / "card.json").read_text())["facts"]["contact"] == "of the data"
    given.write_text('licence = ""\nlicense = "MIT"\n')
    with pytest.raises(UserError, match=r'given\.toml: licence, license: wanted KEY = "text" with task, intended_use'):
        generate_model_card.main(["--run_dir", str(run), "--facts", str(given)])
