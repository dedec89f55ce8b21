"""`python -m benchmarks.kills`: kill every stage of a small project again and again; the results must stay the same.

The graph of `dvc.yaml` runs on a miniature project in two rounds: from nothing to a first champion, and again with
another seed, where there is a champion to compare with. It runs undisturbed once, and then in passes in which every
stage is killed at random moments: the stage alone, one of its ranks, or everything with DVC, by SIGKILL or SIGTERM.
`dvc repro` is then started again, as `make repro` does it. After each kill of a promotion the registry is read as a
consumer reads it. At the end of each round data, weights, loss curves, scores, decisions and the registry must be those
of the undisturbed project, bit by bit; else the exit status is 1.

With `--directory` the undisturbed project and the passes that are done are kept, and the same command continues there.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import report, silence
from clip4vla.config import load_config
from clip4vla.pipeline.dvc_files import repair
from clip4vla.records import TASKS
from clip4vla.registry.registry import Registry
from clip4vla.registry.stored_model import content_hash
from clip4vla.tracking.store import open_client
from clip4vla.utils.files import read_json, write_json
from clip4vla.utils.hashing import hash_file, hash_text
from clip4vla.utils.supervise import kill_process_tree, processes_in, wait_until_none_in
from tests.project import environment, make_project, read_config, write_config

ROUNDS: tuple[dict[str, Any], ...] = ({"seed": 0}, {"seed": 1})
"""What each round changes in params.yaml."""
SETTINGS: dict[str, Any] = {
    "clips": {"workers": 2},
    "pretraining": {"epochs": 4},
    "retrieval": {"epochs": 3},
    "captioning": {"epochs": 3},
    "trainer": {"cpu_ranks": 2, "loader_workers": 1, "checkpoint_every": 2},
    "gates": {task: {"min_clips": 1} for task in TASKS},
}
"""Of both rounds, beside those of every miniature project: steps to be killed among, ranks to be killed."""
RANK = "clip4vla.training.worker"
VICTIMS = ("stage", "rank", "all")
PATIENCE_S = 600.0
"""Time in which everything that was left by a kill must have ended."""
POLL_S = 0.02
SHORTER = 0.8
"""Share of its time that a stage is expected to take after one has ended before it was to be killed."""
UNLIKE = frozenset(("run_id", "dvc_lock", "clips_per_second", "data_wait", "memory_gb", "tflops"))
"""Names in JSON files of what differs between two undisturbed runs: speeds, and random ids (DVC's lock hashes them)."""
fork = multiprocessing.get_context("fork")
"""Slow modules are imported once, before the fork, and this process itself never opens a database."""

Results = dict[str, str]
"""By name of a file, a curve or a version, its hash or its value."""
StageRun = tuple[int, str]
"""Number of a round and name of a stage."""


@dataclass(frozen=True)
class Kill:
    """What was killed, and when."""

    round: int
    stage: str
    victim: str
    signal: str
    after_s: float
    """Since the stage was started."""
    share: float
    """The same, of the time that the stage took undisturbed."""


class Repro:
    """A `dvc repro` in a process group of its own; what it prints goes to a file."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self._output = project.parent / f"{project.name}.log"
        self._read = 0
        self._stage: str | None = None
        repair(project)
        with self._output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro"],
                cwd=project,
                env=environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def output(self) -> str:
        """What was printed so far."""
        return self._output.read_text(errors="replace")

    def stage(self) -> str | None:
        """The stage that was started last; only what was printed since the last call is read."""
        with self._output.open("rb") as file:
            file.seek(self._read)
            lines, end, _ = file.read().rpartition(b"\n")
        self._read += len(lines + end)
        if started := re.findall(rb"^Running stage '([^']+)'", lines, re.MULTILINE):
            self._stage = started[-1].decode()
        return self._stage

    def is_running(self) -> bool:
        """Whether DVC has not ended."""
        return self.process.poll() is None

    def kill(self, victim: str, number: signal.Signals) -> str:
        """Send the signal to the stage's process, one of its ranks, or all, DVC included; what it was sent to."""
        commands = processes_in(self.project)
        ranks = sorted(pid for pid, words in commands.items() if RANK in words)
        stages = sorted(pid for pid, words in commands.items() if words[1:3] == ["-m", "clip4vla"])
        found = {"rank": ranks[-1:], "stage": stages[:1]}.get(victim, [])
        for pid in found:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, number)
            return victim
        if number == signal.SIGKILL:
            kill_process_tree(self.process.pid)
        else:
            os.killpg(self.process.pid, number)
        return "all"

    def wait(self) -> int:
        """Wait until DVC and all that works in the project has ended; DVC's status."""
        status = self.process.wait()
        wait_until_none_in(self.project, PATIENCE_S)
        return status


def run_through(project: Path, round_number: int) -> dict[str, float]:
    """Run a round undisturbed: seconds of each stage, DVC's work for it included.

    Raises:
        RuntimeError: `dvc repro` fails.
    """
    begin(project, round_number)
    repro, started = Repro(project), dict[str, float]()
    while repro.is_running():
        if (stage := repro.stage()) is not None:
            started.setdefault(stage, time.monotonic())
        time.sleep(POLL_S)
    if repro.wait():
        raise RuntimeError(f"undisturbed, `dvc repro` fails:\n{repro.output()[-3000:]}")
    ends = [*list(started.values())[1:], time.monotonic()]
    return {stage: end - start for (stage, start), end in zip(started.items(), ends, strict=True)}


def begin(project: Path, round_number: int) -> None:
    """Write the parameters of a round."""
    config = read_config(project)
    for changes in (SETTINGS, ROUNDS[round_number]):
        config = _merged(config, changes)
    write_config(project, config)
    _resolve_params(project)


def _resolve_params(project: Path) -> None:
    """Do what `make repro` does before `dvc repro`."""
    command = [sys.executable, "-m", "clip4vla", "params"]
    subprocess.run(command, cwd=project, env=environment(), check=True, stdout=sys.stderr)


def _merged(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: _merged(tree[key], value) for key, value in changes.items() if isinstance(value, dict)}
    return {**tree, **changes, **nested}


def kill_round(
    project: Path, round_number: int, wanted: Counter[str], pace: Mapping[str, float], rng: random.Random
) -> tuple[list[Kill], list[str]]:
    """Kill the stages of a round as often as `wanted`, as far as they don't end first, and let it end.

    Returns:
        The kills, and what was wrong after one.
    """
    begin(project, round_number)
    wanted, pace, kills, wrong = Counter(wanted), dict(pace), list[Kill](), list[str]()
    champions = alone(lambda: look(project))
    while True:
        repro, may_fail = Repro(project), False
        while (kill := kill_once(repro, round_number, wanted, pace, rng)) is not None:
            kills.append(kill)
            wanted[kill.stage] -= 1
            may_fail = True
            print(f"kill {len(kills)}: {kill}", file=sys.stderr, flush=True)
            if kill.victim != "rank":  # without a rank, the stage goes on
                break
        status = repro.wait()
        if status and not may_fail:
            return kills, [*wrong, f"`dvc repro` fails in {repro.stage()}: {repro.output()[-2000:]}"]
        if (repro.stage() or "").startswith("promote"):
            now = alone(lambda: look(project))
            wrong += mistakes(champions, now)
            champions = now
        if not status:
            return kills, wrong


def kill_once(
    repro: Repro, round_number: int, wanted: Counter[str], pace: dict[str, float], rng: random.Random
) -> Kill | None:
    """Kill the next stage that is wanted, or the one after it where it ended first; None where DVC has ended.

    Where a stage ended first, `pace` is shortened: the machine is less busy than when it was measured.
    """
    while repro.is_running() and wanted[repro.stage() or ""] <= 0:
        time.sleep(POLL_S)
    share = rng.random() ** 0.5  # the first part of a stage is Python's start
    victim, number = rng.choice(VICTIMS), rng.choice((signal.SIGKILL, signal.SIGTERM))
    started, waited_for = time.monotonic(), repro.stage()
    deadline = started + share * pace.get(waited_for or "", 0.0)
    while repro.is_running() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    stage = repro.stage()
    if stage != waited_for:
        pace.update({name: seconds * SHORTER for name, seconds in pace.items()})
    if not repro.is_running() or stage is None:
        return None
    victim = repro.kill(victim, number)
    return Kill(round_number, stage, victim, number.name, round(time.monotonic() - started, 2), round(share, 2))


def alone(call: Callable[[], Any]) -> Any:
    """What `call` returns, computed in a process of its own.

    Raises:
        RuntimeError: it failed; its output has the reason.
    """
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "answer.json"
        process = fork.Process(target=lambda: answer.write_text(json.dumps(call())))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process that was not killed ended with status {process.exitcode}")
        return json.loads(answer.read_text())


def look(project: Path) -> dict[str, dict[str, Any]]:
    """By registered model: its champion, downloaded and compared with what was registered, and all versions."""
    found, registry, client = {}, Registry(project), open_client(project)
    for task in TASKS:
        name = load_config(project / "params.yaml").gates.of(task).model_name
        versions = {int(v.version): v.tags.get("content") for v in client.search_model_versions(f"name = '{name}'")}
        champion, intact = registry.find_champion(name), True
        if champion is not None:
            registry.scores(name, champion)  # they can be read
            with tempfile.TemporaryDirectory() as folder:
                intact = content_hash(registry.fetch(name, champion, Path(folder))) == versions[int(champion)]
        found[name] = {"champion": champion, "contents": [versions[v] for v in sorted(versions)], "intact": intact}
    return found


def mistakes(before: Mapping[str, dict[str, Any]], now: Mapping[str, dict[str, Any]]) -> list[str]:
    """What is wrong after a kill: the champion must be complete, and that of before or the newest; no model twice."""
    found = []
    for name, state in now.items():
        allowed = (before[name]["champion"], str(len(state["contents"])))
        if state["champion"] not in allowed:
            found.append(f"{name}: after version {allowed[0]}, the champion is {state['champion']}")
        if len(set(state["contents"])) < len(state["contents"]):
            found.append(f"{name}: a model is there twice")
        if not state["intact"]:
            found.append(f"{name}: the champion {state['champion']} is not what was registered")
    return found


def read_results(project: Path) -> Results:
    """Everything that a round leaves and that does not depend on when it ran."""
    found: Results = {}
    for top in ("data", "runs", "metrics"):
        # but hidden files: DVC writes .gitignore, and forgets some of its lines when it is killed
        for path in sorted(path for path in (project / top).rglob("[!.]*") if path.is_file()):
            name = path.relative_to(project).as_posix()
            if path.suffix == ".json":
                found[name] = hash_text(json.dumps(_without_unlike(read_json(path)), sort_keys=True))
            elif ".lance/" not in name:
                found[name] = hash_file(path)
    for path in sorted((project / "data/clips").glob("*/*/*.lance")):
        found[path.relative_to(project).as_posix()] = hash_clips(path)
    for path in sorted((project / "runs").rglob("run.json")):
        found |= {f"{path.parent.name} {name}": values for name, values in curves(project, path).items()}
    return found | {f"registry {name}": json.dumps(state) for name, state in look(project).items()}


def hash_clips(path: Path) -> str:
    """Of all rows of a data set of clips, in their order."""
    import lance  # it must not be there before a fork

    return hash_text(repr(lance.dataset(str(path)).to_table().to_pylist()))


def curves(project: Path, run_file: Path) -> Results:
    """The losses and rates of a training in MLflow: all values that were recorded of each step."""
    client, run_id = open_client(project), read_json(run_file)["run_id"]
    names = [name for name in client.get_run(run_id).data.metrics if name == "lr" or name.startswith("loss")]
    found: Results = {}
    for name in names:
        values: dict[int, set[float]] = {}
        for metric in client.get_metric_history(run_id, name):
            values.setdefault(metric.step, set()).add(metric.value)
        found[name] = str({step: sorted(values[step]) for step in sorted(values)})
    return found


def _without_unlike(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_unlike(value) for key, value in tree.items() if key not in UNLIKE}
    return [_without_unlike(value) for value in tree] if isinstance(tree, list) else tree


def run_undisturbed(directory: Path) -> dict[str, Any]:
    """The seconds of each stage and the results of each round; read from `directory` where they were kept."""
    file = directory / "undisturbed.json"
    if not file.is_file():
        project, pace, results = _new_project(directory, "undisturbed"), [], []
        for number in range(len(ROUNDS)):
            pace.append(run_through(project, number))
            results.append(alone(lambda: read_results(project)))
        write_json(file, {"pace": pace, "results": results})
    return dict(read_json(file))


def run_pass(directory: Path, number: int, kills: int, seed: int) -> dict[str, Any]:
    """Both rounds with about as many `kills`, spread over their stages; read from `directory` where they were kept."""
    file = directory / f"pass-{number}.json"
    if file.is_file():
        return dict(read_json(file))
    undisturbed, rng = run_undisturbed(directory), random.Random(f"{seed} {number}")
    stages = [(index, stage) for index, pace in enumerate(undisturbed["pace"]) for stage in pace]
    wanted = Counter(stages * (kills // len(stages)) + rng.sample(stages, kills % len(stages)))
    project, killed, wrong = _new_project(directory, f"pass-{number}"), list[Kill](), list[str]()
    for index, (pace, expected) in enumerate(zip(undisturbed["pace"], undisturbed["results"], strict=True)):
        of_round = Counter({stage: count for (each, stage), count in wanted.items() if each == index})
        more, mistaken = kill_round(project, index, of_round, pace, rng)
        killed += more
        wrong += mistaken
        wrong += [f"round {index}: {name}" for name in differing(expected, alone(lambda: read_results(project)))]
    done = {"kills": [asdict(kill) for kill in killed], "wrong": wrong}
    if not wrong:  # else it is kept to be looked at
        shutil.rmtree(project)
    write_json(file, done)
    return done


def differing(expected: Results, found: Results) -> list[str]:
    """Names of what isn't the same in both, or is in one only."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _new_project(directory: Path, name: str) -> Path:
    project = directory / name
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    return make_project(project)


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, compare, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-pass", type=int, default=40, help="in a pass through both rounds")
    parser.add_argument("--passes", type=int, help="end after as many more, to continue later; needs --directory")
    parser.add_argument("--directory", type=Path, help="keep there what is done; default: a temporary one")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    settings = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch, silence():
        import clip4vla.inference.pyfunc  # noqa: F401  # MLflow, before the forks

        directory = (settings.directory or Path(scratch)).resolve()
        run_undisturbed(directory)
        passes, more = list[dict[str, Any]](), 0
        while (left := settings.kills - sum(len(done["kills"]) for done in passes)) > 0 and more != settings.passes:
            more += not (directory / f"pass-{len(passes)}.json").is_file()
            passes.append(run_pass(directory, len(passes), min(left, settings.kills_per_pass), settings.seed))
        results = summarise(passes, run_undisturbed(directory))
    settings.directory = None if settings.directory is None else settings.directory.name
    report("kills", torch.device("cpu"), settings, results, packages=("deepspeed", "dvc", "mlflow", "pylance"))
    if results["wrong"]:
        sys.exit(1)


def summarise(passes: Sequence[Mapping[str, Any]], undisturbed: Mapping[str, Any]) -> dict[str, Any]:
    """Kills by stage, victim and signal, what was compared, and what was wrong."""
    kills = [kill for done in passes for kill in done["kills"]]
    return {
        "kills": len(kills),
        "passes": len(passes),
        "by_stage": dict(Counter(kill["stage"] for kill in kills)),
        "by_victim": dict(Counter(f"{kill['victim']} {kill['signal']}" for kill in kills)),
        "compared": [len(results) for results in undisturbed["results"]],
        "wrong": [wrong for done in passes for wrong in done["wrong"]],
        "undisturbed_s": undisturbed["pace"],
    }


if __name__ == "__main__":
    main()
