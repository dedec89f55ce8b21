"""The flows: each walks a part of the graph of `dvc.yaml` in order, a Prefect task for each stage.

`prefect.yaml` deploys them. Every flow ends with a table of its stages: state, duration, headline score. `prune` alone
is no part of the graph: it cleans up after it.
"""

from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State

from clip4vla.records import TASKS, TaskName
from clip4vla.training.spec import TrainingName
from flows.graph import Graph, current_graph
from flows.stages import FAILED, StageResult, run_stage


@flow(name="pretrain", log_prints=True)
def pretrain(downstream: bool = False, force: bool = False, retries: int = 0) -> None:
    """Pretrain.

    Args:
        downstream: continue with everything that follows in the graph, up to a judged candidate of each task.
        force: pretrain even if nothing changed.
        retries: how often a failed stage is tried again.
    """
    graph = current_graph()
    walk(graph, graph.order if downstream else graph.upstream("pretrain"), ["pretrain"] if force else [], retries)


@flow(name="finetune", log_prints=True)
def finetune(task: TaskName = "retrieval", force: bool = False, retries: int = 0) -> None:
    """Fine-tune for a task; `force` does so even if nothing changed."""
    _walk_to(f"finetune@{task}", force, retries)


@flow(name="ablate", log_prints=True)
def ablate(force: bool = False, retries: int = 0) -> None:
    """Compare fusions and audio tokens; `force` does so even if nothing changed."""
    _walk_to("ablate", force, retries)


@flow(name="evaluate", log_prints=True)
def evaluate(model: TrainingName = "retrieval", force: bool = False, retries: int = 0) -> None:
    """Score a model on the test clips; `force` does so even if nothing changed."""
    _walk_to(f"evaluate@{model}", force, retries)


@flow(name="promote", log_prints=True)
def promote(task: TaskName = "retrieval", force: bool = False, retries: int = 0) -> None:
    """Judge a task's model against its champion; `force` judges again even if nothing changed."""
    _walk_to(f"promote@{task}", force, retries)


@flow(name="prepare", log_prints=True)
def prepare(force: bool = False, retries: int = 0) -> None:
    """Bring the clips of every corpus up to date, and show the rejected ones as a table."""
    from clip4vla.pipeline.summary import rejected_clips

    graph = current_graph()
    clips = graph.matching("clips")
    wanted = {stage for target in clips for stage in graph.upstream(target)}
    walk(graph, [stage for stage in graph.order if stage in wanted], clips if force else [], retries)
    create_table_artifact(rejected_clips(), key="rejects", description="Rejected clips by corpus, stage and reason")


@flow(name="prune", log_prints=True)
def prune(keep: int = 10, remove: bool = False) -> None:
    """Show what nothing needs any more as a table, and with `remove` remove it; `keep` versions of each model stay."""
    from clip4vla.pipeline import prune
    from clip4vla.utils.numbers import format_size

    removals = list(prune.prune(keep, carry_out=remove))
    rows = [{"what": removal.what, "size": format_size(removal.size)} for removal in removals]
    done = "removed" if remove else "could be removed"
    create_table_artifact(rows, key="prune", description=f"What {'was' if remove else 'could be'} removed")
    print(f"{format_size(sum(removal.size for removal in removals))} {done}")


def _walk_to(target: str, force: bool, retries: int) -> None:
    graph = current_graph()
    walk(graph, graph.upstream(target), [target] if force else [], retries)


def walk(graph: Graph, stages: Sequence[str], forced: Sequence[str], retries: int) -> None:
    """Run `stages` one after the other, up to the first that fails, then show the table of all of them.

    Raises:
        RuntimeError: a stage failed; the message names it.
    """
    states: dict[str, State[Any]] = {}
    results: list[StageResult] = []
    failed: State[Any] | None = None
    for stage in stages:
        state = run_stage(stage, [states[before] for before in graph.parents[stage] if before in states],
                          stage in forced, retries)  # fmt: skip
        states[stage] = state
        if not state.is_completed():
            failed = state
            results.append(StageResult(stage, FAILED, 0.0, ""))
            break
        results.append(_result_of(state))
    create_markdown_artifact(summary_table(results), key="summary", description="Stages of this run")
    if failed is not None:
        raise RuntimeError(f"stage {results[-1].stage} failed: {failed.message}")


def _result_of(state: State[Any]) -> StageResult:
    result: Any = state.result()
    assert isinstance(result, StageResult)
    return result


def summary_table(results: Sequence[StageResult]) -> str:
    """Markdown: a row per stage with state, duration and headline score, and a link to the comparison in MLflow."""
    rows = [f"| {r.stage} | {r.state.lower()} | {_duration(r.seconds)} | {r.headline} |" for r in results]
    table = "\n".join(["| stage | state | duration | headline |", "| --- | --- | ---: | --- |", *rows])
    judged = {r.stage.removeprefix("promote@") for r in results if r.stage.startswith("promote@") and r.state != FAILED}
    return "\n\n".join([table, *(_comparison(task) for task in TASKS if task in judged)])


def _comparison(task: TaskName) -> str:
    from clip4vla.pipeline.summary import comparison_link

    return f"[Compare the {task} runs in MLflow]({comparison_link(task)})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
