"""Where the stages keep their files in the project, which is the working directory."""

from pathlib import Path

from clip4vla.config import Config, Role
from clip4vla.records import Split

ROOT = Path()
LISTINGS = Path("data/listings")
MANIFESTS = Path("data/manifests")
CLIPS = Path("data/clips")
RUNS = Path("runs")
EVALUATIONS = RUNS / "evaluations"
CHECKPOINTS = Path("checkpoints")
METRICS = Path("metrics")
"""The few numbers of each stage that DVC compares, and that are committed with `dvc.lock`."""
REPORT_FILE = "report.html"


def listing_file(corpus: str) -> Path:
    """Where the listing of a corpus' media is, with `track: listing`."""
    return LISTINGS / f"{corpus}.csv"


def clips_directory(config: Config, corpus: str) -> Path:
    """Where the clips of a corpus are."""
    return CLIPS / config.corpora[corpus].role / corpus


def find_clips(config: Config, role: Role, split: Split) -> list[Path]:
    """The clips of `split` of every corpus of `role` in params.yaml.

    Raises:
        ValueError: there are none.
    """
    names = [name for name, corpus in config.corpora.items() if corpus.role == role]
    found = [path for name in names if (path := clips_directory(config, name) / f"{split}.lance").is_dir()]
    if not found:
        raise ValueError(
            f"no corpus of the role {role} has {split} clips: run `dvc repro clips`, or give some clips that split in "
            "the annotations"
        )
    return found


def find_unseen_clips(config: Config) -> dict[str, Path]:
    """The test clips of every corpus of the role `unseen` in params.yaml.

    Raises:
        ValueError: one has none.
    """
    found = {
        name: clips_directory(config, name) / "test.lance"
        for name, corpus in config.corpora.items()
        if corpus.role == "unseen"
    }
    for name, path in found.items():
        if not path.is_dir():
            raise ValueError(f"the corpus {name} has no test clips: run `dvc repro clips`")
    return found
