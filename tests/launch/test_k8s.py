"""The Kubernetes job: legal YAML with and without its choices, and the exit codes of the trainer."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from megaunigame.errors import Interrupted
from tests.multi_process.launcher import REPOSITORY

FILE = REPOSITORY / "launch" / "k8s" / "job.yaml"
SECOND_SIGNAL = (129, 130, 143)
CHOICES = {
    "hostNetwork": "hostNetwork: true",
    "dnsPolicy": "dnsPolicy: ClusterFirstWithHostNet",
    "NCCL_IB_HCA": "{name: NCCL_IB_HCA, value: mlx5}",
    "NCCL_DEBUG": "{name: NCCL_DEBUG, value: INFO}",
    "rdma/hca": "rdma/hca: 8",
    "vpc.amazonaws.com/efa": "vpc.amazonaws.com/efa: 32",
    "securityContext": "securityContext: {capabilities: {add: [IPC_LOCK]}}",
}


def job(text: str) -> dict:
    service, job = yaml.safe_load_all(text)
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    return job["spec"]


def with_choices(*chosen: str) -> str:
    """The file with these choices switched on, as a user edits it: the mark goes away, and a list's item gets its dash."""
    text = FILE.read_text()
    for choice in chosen:
        dash = "- " if choice.startswith("{") else ""
        assert text.count(f"# choice: {choice}") == 1, choice
        text = text.replace(f"# choice: {choice}", f"{dash}{choice}")
    return text


def test_exit_codes_decide_what_follows():
    rules = job(FILE.read_text())["podFailurePolicy"]["rules"]
    by_code = {code: rule["action"] for rule in rules if "onExitCodes" in rule for code in rule["onExitCodes"]["values"]}
    assert by_code == {2: "FailJob", Interrupted.exit_code: "Ignore", **dict.fromkeys(SECOND_SIGNAL, "FailJob")}
    container = job(FILE.read_text())["template"]["spec"]["containers"][0]
    assert all(rule["onExitCodes"]["containerName"] == container["name"] for rule in rules if "onExitCodes" in rule)
    drained = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert rules.index(drained) == 2, "a drain may signal twice: only without one a second signal is somebody's"


@pytest.mark.parametrize(
    "file", ["docs/clusters.md", "docs/reliability.md", "megaunigame/launching.py", "launch/slurm/train.sbatch"]
)
def test_every_list_of_exit_codes_has_all_of_them(file):
    text = (REPOSITORY / file).read_text()
    assert [code for code in (0, 1, 2, Interrupted.exit_code, *SECOND_SIGNAL, 137) if not re.search(rf"\b{code}\b", text)] == []


def test_slurm_tries_again_what_kubernetes_does():
    cases = (REPOSITORY / "launch/slurm/train.sbatch").read_text()
    ends = re.search(r"^ +([\d |]+)\) echo .*not tried again", cases, re.MULTILINE)
    assert ends and [int(code) for code in ends[1].split("|")] == [2, *SECOND_SIGNAL]


def test_the_command_fits_the_job():
    spec = job(FILE.read_text())
    container = spec["template"]["spec"]["containers"][0]
    words = shlex.split(container["args"][0])
    options = dict(zip(words, words[1:], strict=False))
    assert int(options["--nodes"]) == spec["completions"] == spec["parallelism"]
    assert int(options["--ranks"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert options["--node"] == "$JOB_COMPLETION_INDEX" and words[0] == "exec", "signals reach launch/node.py"
    assert options["--address"].split(".") == ["megaunigame-0", "megaunigame"]
    assert all((REPOSITORY / word).is_file() for word in words if word.endswith(".py"))
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 600


@pytest.mark.parametrize("chosen", [*([choice] for choice in CHOICES.values()), list(CHOICES.values())])
def test_every_choice_is_legal_where_it_stands(chosen):
    spec = job(with_choices(*chosen))["template"]["spec"]
    container = spec["containers"][0]
    places = {
        "hostNetwork": spec.get("hostNetwork") is True,
        "dnsPolicy": spec.get("dnsPolicy") == "ClusterFirstWithHostNet",
        "NCCL_IB_HCA": {"name": "NCCL_IB_HCA", "value": "mlx5"} in container["env"],
        "NCCL_DEBUG": {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"],
        "rdma/hca": container["resources"]["limits"].get("rdma/hca") == 8,
        "vpc.amazonaws.com/efa": container["resources"]["limits"].get("vpc.amazonaws.com/efa") == 32,
        "securityContext": container.get("securityContext") == {"capabilities": {"add": ["IPC_LOCK"]}},
    }
    assert {name for name, there in places.items() if there} == {n for n, text in CHOICES.items() if text in chosen}


def test_no_choice_is_forgotten_here():
    marks = re.findall(r"# choice: (?=\S+: |\{)", FILE.read_text())
    assert len(marks) == len(CHOICES)
