"""A stage as a job of Slurm, on stand-ins for sbatch, scontrol and scancel."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip4vla.utils.variables import SBATCH
from flows import slurm
from flows.slurm import TEMPLATE, run_job, runs_on_slurm

JOB_LOG = "checkpoints/job-7.log"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins that record their arguments; the state of the job is in `state`, and CANCELLED after scancel."""
    bodies = {
        "sbatch": 'echo "7;cluster"',
        "scontrol": f'echo "JobId=7 JobName=clip4vla JobState=$(cat {tmp_path}/state) Reason=None"',
        "scancel": f"echo CANCELLED > {tmp_path}/state",
    }
    (tmp_path / "bin").mkdir()
    for name, body in bodies.items():
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n{body}\n')
        program.chmod(0o755)
    (tmp_path / "state").write_text("COMPLETED")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "POLL_S", 0.05)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def test_the_job_gets_the_options_and_the_template_runs_the_command(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster / JOB_LOG).write_text("Running stage 'pretrain':\nstep 1/2\n")
    assert run_job(["dvc", "repro", "pretrain"], ["--nodes=2"], lambda: False) == "COMPLETED"
    first, second = (cluster / "calls").read_text().splitlines()[:2]
    assert first == f"sbatch --parsable --output=checkpoints/job-%j.log --nodes=2 {TEMPLATE} dvc repro pretrain"
    assert second == "scontrol --oneliner show job 7"
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["job 7: submitted", "job 7: COMPLETED", "Running stage 'pretrain':", "step 1/2"]
    assert not (cluster / JOB_LOG).exists()


def test_a_job_is_cancelled_once_and_followed_to_its_end(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cluster / "state").write_text("RUNNING")
    asked = iter([False, False, True, True, True])
    assert run_job(["true"], [], lambda: next(asked)) == "CANCELLED"
    assert (cluster / "calls").read_text().count("scancel 7") == 1
    assert "job 7: RUNNING\njob 7: CANCELLED\n" in capsys.readouterr().out


def test_a_controller_that_restarts_is_waited_for_and_one_that_is_gone_is_an_error(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = cluster / "bin/scontrol"
    works = scontrol.read_text()
    scontrol.write_text(
        f"#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2\nmv {scontrol}.next {scontrol}\nexit 1"
    )
    Path(f"{scontrol}.next").write_text(works)
    Path(f"{scontrol}.next").chmod(0o755)
    assert run_job(["true"], [], lambda: False) == "COMPLETED"
    scontrol.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2\nexit 1")
    monkeypatch.setattr(slurm, "SILENCE_S", 0.2)
    with pytest.raises(RuntimeError, match="scontrol ended with status 1: slurm_load_jobs error: Unable to contact"):
        run_job(["true"], [], lambda: False)


def test_what_sbatch_refuses_and_where_there_is_none(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cluster / "bin/sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\nexit 1")
    with pytest.raises(RuntimeError, match="sbatch ended with status 1: sbatch: error: invalid partition"):
        run_job(["true"], ["--partition=x"], lambda: False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match="sbatch isn't installed here, but CLIP4VLA_SBATCH is set"):
        run_job(["true"], [], lambda: False)


def test_only_what_trains_runs_on_slurm_and_only_where_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SBATCH, raising=False)
    assert not runs_on_slurm("pretrain")
    monkeypatch.setenv(SBATCH, "")
    assert [stage for stage in ("pretrain", "finetune@captioning", "ablate", "clips@mine", "promote@retrieval")
            if runs_on_slurm(stage)] == ["pretrain", "finetune@captioning", "ablate"]  # fmt: skip


def test_sigterm_cancels_the_job_and_the_state_decides_the_status(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SBATCH, "--nodes=2 --comment='two words'")
    monkeypatch.setenv("PYTHONPATH", str(Path(slurm.__file__).parents[1]))
    (cluster / "state").write_text("RUNNING")
    process = subprocess.Popen([sys.executable, "-m", "flows.slurm", "true"], stderr=subprocess.PIPE, text=True)
    while "scontrol" not in (cluster / "calls").read_text() if (cluster / "calls").exists() else True:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "the job ended as CANCELLED\n"
    assert "--comment=two words" in (cluster / "calls").read_text()
