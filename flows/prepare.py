"""Flow `prepare`: bring the data up to date by `dvc repro` of the data stages, which need no Prefect themselves."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.stage import reproduce


def count_rejects() -> list[dict[str, str | int]]:
    """Rejected clips by corpus, stage and reason."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for path in sorted(Path("data").glob("*/**/rejects.parquet")):
        for reason in pq.read_table(path, columns=["reason"]).column("reason").to_pylist():
            counts[path.parent.name, path.parts[1], reason] += 1
    return [{"corpus": c, "stage": s, "reason": r, "clips": n} for (c, s, r), n in sorted(counts.items())]


@flow(name="prepare", log_prints=True)
def prepare(force: bool = False) -> None:
    """Reproduce the stage `clips` of every corpus and what it depends on; shows the rejects as a table."""
    task(name="dvc repro clips")(reproduce)("clips", force)
    create_table_artifact(count_rejects(), key="rejects", description="Clips left out, by corpus, stage and reason")


if __name__ == "__main__":
    prepare()
