"""What code, data and machine a run came from.

In: the project's directory. Out: tags of an MLflow run, and fields of `run.json`. They are taken once, when a training
run is created; whoever works on the run later records its own under a prefix (see `run`).
"""

import getpass
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from clip4vla.utils.hashing import hash_file

_DIRTY = "-dirty"


def provenance(root: Path) -> dict[str, str]:
    """`git_revision`, `dvc_lock` (its hash) and `hardware` of the project at `root`, as of now."""
    return {"git_revision": git_revision(root), "dvc_lock": dvc_lock_hash(root), "hardware": hardware()}


def source_tags(root: Path, revision: str) -> dict[str, str]:
    """Tags that fill MLflow's columns Source, Version and User: this command, `revision` and the account.

    Args:
        root: the project's directory; a script inside it is named relative to it.
        revision: as `git_revision` gives it; `unknown` leaves the version out.
    """
    tags = {"mlflow.source.name": _command(root), "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    if revision != "unknown":
        tags["mlflow.source.git.commit"] = revision.removesuffix(_DIRTY)
        tags["mlflow.source.git.dirty"] = str(revision.endswith(_DIRTY)).lower()
    return tags


def git_revision(root: Path) -> str:
    """Commit of the code at `root`, with `-dirty` where tracked files differ from it; `unknown` outside git."""
    revision = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    if revision is None:
        return "unknown"
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return f"{revision}{_DIRTY}" if changed else revision


def dvc_lock_hash(root: Path) -> str:
    """SHA-256 of `dvc.lock`, which pins data and stages; `none` before the first `dvc repro`."""
    lock = root / "dvc.lock"
    return hash_file(lock) if lock.is_file() else "none"


def hardware() -> str:
    """Processor, cores and GPUs of this machine, such as `2 x AMD EPYC 7B13, 1 x NVIDIA H100`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    gpus = (_output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]) or "").splitlines()
    counted = [f"{gpus.count(name)} x {name}" for name in sorted(set(gpus))]
    return ", ".join([f"{os.cpu_count()} x {processor}", *counted])


def _command(root: Path) -> str:
    """This process's command, such as `clip4vla evaluate retrieval`."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        name = script.parent.name
    elif script.suffix == ".py" and script.resolve().is_relative_to(root.resolve()):
        name = script.resolve().relative_to(root.resolve()).as_posix()
    else:
        name = script.name
    return shlex.join([name, *sys.argv[1:]])[:500]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id that has no account
        return str(os.getuid())


def _output(command: Sequence[str]) -> str | None:
    """Standard output of `command`, or None where it isn't installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
