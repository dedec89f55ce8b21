"""The ranks of one node: torchrun's agent starts them and ends them all when one fails.

In: a spec file, and the node's place among those of the training. Out: the model directory of the spec. On one node
`launch` calls this; on several, Slurm or pdsh starts `python -m clip4vla.training.node SPEC ...` on each of them. The
first that fails leaves the reason beside the spec: Slurm and pdsh pass on no more than an exit status.
"""

import io
import json
import os
import signal
import sys
import tempfile
from argparse import ArgumentParser
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from torch.distributed import PrefixStore
from torch.distributed.elastic import multiprocessing
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from clip4vla.training.network import LOOPBACK, open_store
from clip4vla.training.worker import REFUSED, STOPPED

RANK_MODULE = "clip4vla.training.worker"
RENDEZVOUS = "one-address"
"""Name under which torchrun's agent finds `OneAddressRendezvous`."""
NODE_VARIABLE = "SLURM_NODEID"
FAILURE_FILE = "failure.json"
"""Beside the spec of a training on several nodes: the reason why it failed."""
AGENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What the agent passes on to the ranks, which have its 30 s to write a checkpoint."""


@dataclass(frozen=True)
class Node:
    """One of the nodes of a training; the default is the only one."""

    index: int = 0
    count: int = 1
    address: str = LOOPBACK
    """IPv4 address of the first node, in the network that all nodes share."""
    port: int = 0
    """Of the store on the first node; 0, a free one, is for a single node."""


class OneAddressRendezvous(StaticTCPRendezvous):
    """torchrun's rendezvous of a fixed number of nodes, with a store that listens on one address only."""

    def get_backend(self) -> str:
        """The name that torchrun's agent asked for."""
        return RENDEZVOUS

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other nodes at the store, which the first one serves."""
        store = open_store(self.master_addr, self.master_port, hosts=self.rank == 0)
        meeting = RendezvousStoreInfo(self.master_addr, store.port)
        return RendezvousInfo(PrefixStore(self.run_id, store), self.rank, self.world_size, meeting)


def _create_rendezvous(parameters: RendezvousParameters) -> RendezvousHandler:
    address, port = parse_rendezvous_endpoint(parameters.endpoint, default_port=0)
    node, timeout_s = int(parameters.config["rank"]), int(parameters.config["timeout"])
    return OneAddressRendezvous(address, port, node, parameters.max_nodes, parameters.run_id, timeout_s)


rendezvous_handler_registry.register(RENDEZVOUS, _create_rendezvous)


def _stop_once(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """The agent's signal handler: its exception ends the ranks, and a second signal doesn't interrupt that.

    An exception raised inside `Popen.poll` can leave its lock held; the agent would then wait forever for ranks that
    have ended. `timeout` and schedulers send two signals within a millisecond.
    """
    for other in AGENT_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise SignalException(f"got {signal.Signals(signum).name}", signal.Signals(signum))


multiprocessing.api._terminate_process_handler = _stop_once


def run_ranks(spec_file: Path, ranks: int, node: Node) -> None:
    """Train `spec_file` with `ranks` processes on this node, and wait for them. Each node's first rank prints.

    Raises:
        ValueError: a rank can't train by the spec, or a loss isn't finite.
        RuntimeError: a rank failed; the message names the one that failed first and its last words.
        SystemExit: this process was asked to stop; the ranks were, too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the agent passes lines on and doesn't flush
    with tempfile.TemporaryDirectory() as logs:
        try:
            agent = elastic_launch(_agent_config(ranks, node, logs), sys.executable)
            agent("-m", RANK_MODULE, str(spec_file))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode == STOPPED:  # the signal reached a rank of another node first
                raise SystemExit(STOPPED) from None
            how = failure.signal_name() if failure.exitcode < 0 else f"exit status {failure.exitcode}"
            words = _last_words(Path(logs), failure.local_rank)
            if failure.exitcode == REFUSED:
                raise ValueError(words) from None
            words = f"Its last words: {words}" if words else "It left no word"
            raise RuntimeError(f"the training failed: rank {rank} ended first, by {how}. {words}") from None
        except SignalException as stopped:
            raise SystemExit(128 + stopped.sigval) from None


def _agent_config(ranks: int, node: Node, logs: str) -> LaunchConfig:
    """`ranks` ranks on this node; the first prints, each leaves its output under `logs`."""
    return LaunchConfig(
        min_nodes=node.count,
        max_nodes=node.count,
        nproc_per_node=ranks,
        run_id="training",  # a store is of one training
        rdzv_backend=RENDEZVOUS,
        rdzv_endpoint=f"{node.address}:{node.port}",
        rdzv_configs={"rank": node.index},
        local_addr=node.address,
        max_restarts=0,
        log_line_prefix_template=" ",  # an empty one would mean torchrun's own
        logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.ALL, tee=Std.ALL, local_ranks_filter={0}),
    )


def _last_words(logs: Path, local_rank: int) -> str:
    """The last line that a rank of this node wrote to its errors; empty where there is none."""
    for log in logs.glob(f"*/attempt_0/{local_rank}/stderr.log"):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()
    return ""


def forget_failure(spec_file: Path) -> None:
    """Remove what an earlier attempt left."""
    (spec_file.parent / FAILURE_FILE).unlink(missing_ok=True)


def failure_of_nodes(spec_file: Path) -> ValueError | RuntimeError | None:
    """Why the nodes failed, as the first of them left it; None where none did."""
    file = spec_file.parent / FAILURE_FILE
    if not file.is_file():
        return None
    failure = json.loads(file.read_text(encoding="utf-8"))
    return (ValueError if failure["refused"] else RuntimeError)(failure["message"])


def _leave_failure(spec_file: Path, error: Exception, message: str) -> None:
    with suppress(FileExistsError), (spec_file.parent / FAILURE_FILE).open("x", encoding="utf-8") as file:
        json.dump({"refused": isinstance(error, ValueError), "message": message}, file)


def main() -> None:
    """Run the ranks of the node that this process was started on."""
    parser = ArgumentParser(prog="python -m clip4vla.training.node", description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument(
        "--ranks", type=int, nargs="+", required=True, help="processes of each node, or of all the same"
    )
    index = os.environ.get(NODE_VARIABLE)
    parser.add_argument("--index", type=int, default=index, required=index is None, help="of this node; Slurm sets it")
    parser.add_argument("--environment", type=Path, help="JSON file of variables to set")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--address", required=True, help="IPv4 address of the first node")
    parser.add_argument("--port", type=int, required=True, help="of the store on the first node")
    given = parser.parse_args()
    node = Node(given.index, given.nodes, given.address, given.port)
    try:
        if given.environment is not None:
            os.environ.update(json.loads(given.environment.read_text(encoding="utf-8")))
        run_ranks(given.spec, given.ranks[node.index % len(given.ranks)], node)
    except (ValueError, RuntimeError, OSError) as error:
        message = f"node {node.index}: {error}"
        _leave_failure(given.spec, error, message)
        sys.exit(message)


if __name__ == "__main__":
    main()
