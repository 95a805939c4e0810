"""The batch script, with Slurm's commands replaced by scripts that note what they are asked."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.multi_process.launcher import REPOSITORY

JOB = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "n[0-3]",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NTASKS": "8",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_GPUS_ON_NODE": "2",
    "CHECK_DISK_GB": "0",
}
FAKES = {
    "scontrol": """
case "$1 $2" in
    "show hostnames") printf 'n0\\nn1\\nn2\\nn3\\n' ;;
    "show job") echo "JobId=17 JobName=x"; echo "   JobState=$(cat state) Reason=None"; echo "   ExcNodeList=$(cat excluded)" ;;
    update*) echo "scontrol $*" >>asked; [[ $(grep -c update asked) -gt ${REFUSED:-0} ]] ;;
    *) echo "scontrol $*" >>asked ;;
esac
""",
    "srun": """
if [[ $* == *check_node.sh* ]]; then
    for node in n0 n1 n2 n3; do
        [[ " ${SILENT:-} " == *" $node "* ]] || SLURMD_NODENAME=$node bash launch/slurm/check_node.sh
    done
    exit 0
fi
echo "srun $*" >>asked
echo "$MASTER_ADDR $MASTER_PORT $WORLD_SIZE" >place
# As the real one: a signal that ends srun kills its tasks, USR1 is passed on to them (src/srun/signals.c).
trap 'echo "tasks killed" >>asked; exit 137' TERM HUP QUIT
trap '[[ -z ${UNREADY:-} ]] || exit 138; sleep 0.5; echo "tasks got USR1" >>asked; exit 75' USR1
touch running
[[ ${ENDS:-} != never ]] || for _ in $(seq 200); do sleep 0.05; done
exit "${ENDS:-0}"
""",
    "python": """
[[ " ${BROKEN:-} " != *" $SLURMD_NODENAME "* ]] || { echo "Traceback" >&2; echo "it has 1 GPUs instead of $3" >&2; exit 1; }
""",
}


@pytest.fixture
def job(tmp_path):
    """`job(ENDS=..., ...)`: the finished batch script; `asked(...)` tells what Slurm was asked."""
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, text in FAKES.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (commands / name).chmod(0o755)
    (tmp_path / "launch").symlink_to(REPOSITORY / "launch")
    (tmp_path / "state").write_text("RUNNING")
    (tmp_path / "excluded").write_text("(null)")
    return tmp_path


def started(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "asked").write_text("")
    (folder / "running").unlink(missing_ok=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return subprocess.Popen(
        ["bash", str(REPOSITORY / "launch/slurm/train.sbatch"), *(arguments or ("recipe.yaml", "a=b c"))],
        cwd=folder,
        env={**inherited, **JOB, "SLURM_SUBMIT_DIR": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(folder: Path, **environment: str) -> tuple[int, str, list[str]]:
    """Exit code, output, and what Slurm was asked, the run itself left out."""
    process = started(folder, **environment)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output, asked(folder)


def asked(folder: Path) -> list[str]:
    return [line for line in (folder / "asked").read_text().splitlines() if not line.startswith("srun")]


def test_the_run_gets_its_arguments_and_its_place(job):
    code, _, requeues = ended(job, SRUN_OPTIONS="--mpi=none --label")
    assert code == 0 and requeues == []
    run = (job / "asked").read_text()
    assert "--kill-on-bad-exit=0 --wait=60 --mpi=none --label bash -c" in run and run.endswith("train recipe.yaml a=b c\n")
    assert (job / "place").read_text() == "n0 20017 8\n"


def test_without_a_recipe_nothing_starts(tmp_path):
    done = subprocess.run(["bash", REPOSITORY / "launch/slurm/train.sbatch"], capture_output=True, text=True)
    assert done.returncode == 2 and "No recipe given" in done.stderr


@pytest.mark.fault(
    "time limit or preemption on Slurm", does="saved; the job is requeued, as often as it happens", lost="nothing"
)
def test_an_interrupted_run_is_requeued_without_end(job):
    for _ in range(5):
        assert ended(job, ENDS="75")[::2] == (75, ["scontrol requeue 17"])


@pytest.mark.fault("a crash on Slurm", does="the job is requeued, at most 3 times in a row", lost="steps since the checkpoint")
def test_a_crash_is_tried_again_a_few_times(job):
    assert [ended(job, ENDS="1", MAX_RETRIES="2")[::2] for _ in range(2)] == [(1, ["scontrol requeue 17"])] * 2
    code, output, requeues = ended(job, ENDS="137", MAX_RETRIES="2")
    assert code == 137 and requeues == [] and "given up after 2 retries" in output


def test_a_saved_run_starts_the_count_of_crashes_again(job):
    for code in ("1", "75", "1", "1"):
        assert ended(job, ENDS=code, MAX_RETRIES="2")[2] == ["scontrol requeue 17"]
    assert ended(job, ENDS="1", MAX_RETRIES="2")[2] == []


@pytest.mark.parametrize("code", ["0", "2", "129", "130", "143"])
def test_success_errors_of_the_user_and_second_signals_are_final(job, code):
    assert ended(job, ENDS=code)[::2] == (int(code), [])


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PREEMPTED"])
def test_a_job_that_slurm_ends_is_not_brought_back(job, state):
    (job / "state").write_text(state)
    code, output, requeues = ended(job, ENDS="75")
    assert requeues == [] and f"the job is {state}" in output


def signaled(job: Path, number: signal.Signals, **environment: str) -> tuple[int, str, list[str]]:
    """What `ended` returns, of a script that gets a signal while the run is going on."""
    process = started(job, ENDS="never", **environment)
    until = time.monotonic() + 30
    while not (job / "running").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    return process.returncode, output, asked(job)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_tasks_as_usr1_and_the_save_is_waited_for(job, number):
    code, output, requeues = signaled(job, number)
    assert (code, requeues) == (75, ["tasks got USR1", "scontrol requeue 17"]), output


def test_a_signal_before_the_tasks_listen_is_not_a_crash(job):
    code, output, requeues = signaled(job, signal.SIGTERM, UNREADY="yes", MAX_RETRIES="0")
    assert (code, requeues) == (75, ["scontrol requeue 17"]) and "Interrupted and saved; requeued." in output


@pytest.mark.fault("a node that fails its check on Slurm", does="excluded; the job is requeued on others", lost="nothing")
@pytest.mark.parametrize("failing, reason", [("BROKEN", "bad n2: it has 1 GPUs instead of 2"), ("SILENT", "Bad nodes: n2")])
def test_a_bad_node_is_excluded(job, failing, reason):
    code, output, requeues = ended(job, **{failing: "n2"})
    assert code == 1 and reason in output
    assert requeues == ["scontrol requeue 17", "scontrol update JobId=17 ExcNodeList=n2"]
    assert not (job / "running").exists(), "the run does not begin"


def test_nodes_that_were_excluded_before_stay_excluded(job):
    (job / "excluded").write_text("n7,n9")
    assert ended(job, BROKEN="n1 n3")[2][-1] == "scontrol update JobId=17 ExcNodeList=n7,n9,n1,n3"


def test_excluding_is_tried_again_until_the_job_is_pending(job):
    updates = ended(job, BROKEN="n1", REFUSED="1")[2][1:]
    assert updates == ["scontrol update JobId=17 ExcNodeList=n1"] * 2


def test_bad_nodes_count_as_crashes(job):
    assert ended(job, BROKEN="n1", MAX_RETRIES="1")[2]
    assert ended(job, BROKEN="n1", MAX_RETRIES="1")[::2] == (1, [])


def test_when_most_nodes_fail_none_is_excluded(job):
    code, output, requeues = ended(job, BROKEN="n0 n1 n2")
    assert code == 1 and requeues == [] and "Most nodes failed the check (n0,n1,n2)" in output


def test_the_check_can_be_left_out(job):
    assert ended(job, BROKEN="n0 n1 n2 n3", CHECK_NODES="no")[0] == 0


@pytest.mark.parametrize(
    "environment, said",
    [
        ({}, "ok n5"),
        ({"CHECK_DISK_GB": "999999999"}, "GB are free for"),
        ({"CHECK_STARTED": "1000"}, "its clock is "),
        ({"CHECK_GPUS": "2", "BROKEN": "n5"}, "bad n5: it has 1 GPUs instead of 2"),
    ],
)
def test_what_the_check_of_a_node_finds(job, environment, said):
    base = {"SLURMD_NODENAME": "n5", "CHECK_GPUS": "0", "CHECK_DISK_GB": "0", "CHECK_STARTED": str(int(time.time()))}
    path = f"{job / '.venv' / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "launch/slurm/check_node.sh"],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": path, **base, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and said in done.stdout and done.stdout.count("\n") == 1
