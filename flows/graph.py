"""The graph of `dvc.yaml`: its stages in an order in which they can run, and what each of them depends on.

In: the project in the working directory. Out: stage names. DVC itself reads the file, templates included.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from clip4vla.pipeline.dvc_files import repair

EDGE = re.compile(r'"([^"]+)" -> "([^"]+)"')
NODE = re.compile(r'^\s*"([^"]+)";?$', re.MULTILINE)


@dataclass(frozen=True)
class Graph:
    """Stages and their dependencies."""

    parents: dict[str, frozenset[str]]
    """The stages that each stage directly depends on, in the order of `dvc dag`."""

    @property
    def order(self) -> tuple[str, ...]:
        """All stages, each after those that it depends on."""
        return tuple(TopologicalSorter(self.parents).static_order())

    def upstream(self, target: str) -> tuple[str, ...]:
        """`target` and all stages that it depends on, in order.

        Raises:
            ValueError: there is no such stage.
        """
        if target not in self.parents:
            raise ValueError(f"dvc.yaml has no stage {target!r}; it has {', '.join(self.order)}")
        wanted, waiting = set[str](), [target]
        while waiting:
            stage = waiting.pop()
            if stage not in wanted:
                wanted.add(stage)
                waiting += self.parents[stage]
        return tuple(stage for stage in self.order if stage in wanted)

    def matching(self, step: str) -> tuple[str, ...]:
        """The stages of one step, such as `clips@...`, in order."""
        return tuple(stage for stage in self.order if stage.partition("@")[0] == step)


def current_graph() -> Graph:
    """The graph of the project in the working directory, after the stage `params`, which decides what stages there are.

    Raises:
        ValueError: that stage fails, or DVC can't read the graph; the message is theirs.
    """
    repair()
    command = [sys.executable, "-m", "dvc", "repro", "params"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for _ in range(2):  # when the stages change, it fails once
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path})
        if done.returncode == 0:
            return read_graph()
    raise ValueError(f"`dvc repro params` failed: {done.stderr.strip()}")


def read_graph() -> Graph:
    """The graph of the project in the working directory, as it is.

    Raises:
        ValueError: DVC can't read it; the message is DVC's.
    """
    command = [sys.executable, "-m", "dvc", "dag", "--dot"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"`dvc dag` failed: {done.stderr.strip()}")
    return parse_graph(done.stdout)


def parse_graph(dot: str) -> Graph:
    """The graph that `dvc dag --dot` prints: an edge leads from a stage to one that depends on it."""
    parents: dict[str, set[str]] = {name: set() for name in NODE.findall(dot)}
    for before, after in EDGE.findall(dot):
        parents.setdefault(before, set())
        parents.setdefault(after, set()).add(before)
    return Graph({stage: frozenset(before) for stage, before in sorted(parents.items())})
