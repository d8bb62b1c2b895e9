"""The manifests for Argo Rollouts and Flagger: they parse, refer to each other, and ask for metrics that exist."""

import re
import shutil
import subprocess

import pytest
import yaml

from common.metrics import KINDS
from tests.conftest import ROOT

FILES = sorted([*(ROOT / "deploy" / "argo-rollouts").glob("*.yaml"), *(ROOT / "deploy" / "flagger").glob("*.yaml")])
DOCUMENTS = [document for path in FILES for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def of_kind(kind: str) -> dict[str, dict]:
    return {document["metadata"]["name"]: document for document in DOCUMENTS if document["kind"] == kind}


def queries() -> list[str]:
    metrics = [metric for one in of_kind("AnalysisTemplate").values() for metric in one["spec"]["metrics"]]
    argo = [metric["provider"]["prometheus"]["query"] for metric in metrics]
    return argo + [one["spec"]["query"] for one in of_kind("MetricTemplate").values()]


def test_queries_ask_for_metrics_and_labels_that_the_server_has():
    assert len(queries()) == 6
    for query in queries():
        names = set(re.findall(r"([a-z_]+)\{", query))
        assert names
        assert {re.sub("_bucket$", "", name) for name in names} <= KINDS.keys()
        labels = set(re.findall(r'([a-z_]+)=~?"', query))
        assert labels <= {"path", "status", "stage", "namespace", "pod", "rollouts_pod_template_hash"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_parses_the_queries(tmp_path):
    for query in queries():
        filled = re.sub(r"\[\{\{ ?interval ?\}\}\]", "[10m]", query)
        filled = re.sub(r"\{\{.*?\}\}", "x", filled)
        rules = {"groups": [{"name": "queries", "rules": [{"record": "it", "expr": filled}]}]}
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
        done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yaml")], capture_output=True)
        assert done.returncode == 0, done.stdout


def test_references_are_there():
    (rollout,) = of_kind("Rollout").values()
    steps = [step["analysis"] for step in rollout["spec"]["strategy"]["canary"]["steps"] if "analysis" in step]
    assert len(steps) == 2
    for step in steps:
        (template,) = [of_kind("AnalysisTemplate")[one["templateName"]] for one in step["templates"]]
        wanted = {arg["name"] for arg in template["spec"]["args"] if "value" not in arg}
        assert wanted == {arg["name"] for arg in step["args"]}
    (canary,) = of_kind("Canary").values()
    assert {metric["templateRef"]["name"] for metric in canary["spec"]["analysis"]["metrics"]} == set(
        of_kind("MetricTemplate")
    )


def test_the_container_command_is_one_of_ours():
    (rollout,) = of_kind("Rollout").values()
    (container,) = rollout["spec"]["template"]["spec"]["containers"]
    assert (ROOT / (container["args"][2].replace(".", "/") + ".py")).exists()
    assert [port["containerPort"] for port in container["ports"]] == [8080]
