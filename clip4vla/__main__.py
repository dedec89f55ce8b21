"""`clip4vla COMMAND`: every command of the project, those of the stages in `dvc.yaml` included.

Run it in the project's folder. A mistake of the user's ends a command with one to three lines and exit status 1.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import clip4vla
from clip4vla.records import MODALITIES, SPLITS, TASKS, TaskName
from clip4vla.utils.threads import spin_briefly
from clip4vla.utils.variables import warn_of_unread

if TYPE_CHECKING:
    from clip4vla.inference.embedder import Embedder
    from clip4vla.inference.index import Index

INDEX = Path("data/index")
BENCHMARKS = Path("runs/benchmarks")
TOP = 10
KEEP = 10
PORT = 8000
LINES = 3
"""Most lines of an error message."""
STAGE_VARIABLE = "DVC_STAGE"
"""Set by DVC for the command of a stage."""

app = typer.Typer(
    name="clip4vla",
    help="CLIP extended with hearing: train, evaluate, promote, and search your own media.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
benchmark = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
STAGES, MODELS = "Stages of dvc.yaml", "Models"
CorpusName = Annotated[
    str,
    typer.Argument(
        metavar="CORPUS",
        help="A key of `corpora` in params.yaml, or the name of a DVC stage that ends with it, such as clips@mine.",
        callback=lambda name: name.rpartition("@")[2],
    ),
]

Task = StrEnum("Task", list(TASKS))  # type: ignore[misc]  # typer takes choices from an enumeration
Model = StrEnum("Model", ["pretraining", *TASKS])  # type: ignore[misc]
By = StrEnum("By", list(MODALITIES))  # type: ignore[misc]
SplitOption = StrEnum("SplitOption", list(SPLITS))  # type: ignore[misc]
Listen = StrEnum("Listen", ["sound", "speech", "picture"])

IndexOption = Annotated[Path, typer.Option("--index", help="Directory of the index.")]
BenchmarkedModel = Annotated[
    str | None, typer.Option("--model", help="models:/NAME@ALIAS or models:/NAME/VERSION; default: the champion.")
]
RegisteredModel = Annotated[
    str | None, typer.Argument(help="Name of the registered model; default: gates.retrieval.model_name.")
]


@app.command(rich_help_panel=STAGES)
def params() -> None:
    """Resolve params.yaml and its presets into params.resolved.yaml, which DVC reads."""
    from clip4vla.pipeline.dvc_files import repair
    from clip4vla.pipeline.params import write_resolved

    if STAGE_VARIABLE not in os.environ:
        repair()
    write_resolved(dvc_has_read_it=STAGE_VARIABLE in os.environ)


@app.command(rich_help_panel=STAGES)
def fetch() -> None:
    """Fetch Debian's package of stamps, with its version and SHA-256."""
    from clip4vla.pipeline.data import fetch_stamps

    fetch_stamps()


@app.command(rich_help_panel=STAGES)
def corpus() -> None:
    """Compose StampScenes from the package of stamps."""
    from clip4vla.pipeline.data import compose_corpus

    compose_corpus()


@app.command(rich_help_panel=STAGES)
def clipart() -> None:
    """Fetch Debian's package of clip art, with its version and SHA-256."""
    from clip4vla.pipeline.data import fetch_clipart

    fetch_clipart()


@app.command(rich_help_panel=STAGES)
def unseen() -> None:
    """Compose test clips of StampScenes with voices, sounds and pictures that training never has."""
    from clip4vla.pipeline.data import compose_unseen_clips

    compose_unseen_clips()


@app.command(rich_help_panel=STAGES)
def listing(name: CorpusName) -> None:
    """List the media of a corpus with `track: listing`: path, size and time of each file."""
    from clip4vla.pipeline.data import write_corpus_listing

    write_corpus_listing(name)


@app.command(rich_help_panel=STAGES)
def manifest(name: CorpusName) -> None:
    """Write the manifest of a corpus: its accepted records, and the rejected ones with reasons."""
    from clip4vla.pipeline.data import write_corpus_manifest

    write_corpus_manifest(name)


@app.command(rich_help_panel=STAGES)
def clips(name: CorpusName) -> None:
    """Decode the records of a corpus into clips: frames, sound and sentences."""
    from clip4vla.pipeline.data import ingest_corpus

    ingest_corpus(name)


@app.command(rich_help_panel=STAGES)
def pretrain() -> None:
    """Pretrain contrastively on the pretraining corpora."""
    from clip4vla.pipeline import pretrain

    pretrain.pretrain()


@app.command(rich_help_panel=STAGES)
def finetune(task: Task) -> None:
    """Fine-tune the pretrained model for a task."""
    from clip4vla.pipeline import finetune

    finetune.finetune(_task(task))


@app.command(rich_help_panel=STAGES)
def ablate() -> None:
    """Compare fusions and audio tokens by short fine-tunings."""
    from clip4vla.pipeline import ablate

    ablate.ablate()


@app.command(rich_help_panel=STAGES)
def evaluate(model: Model) -> None:
    """Score a model on the test clips and write a report."""
    from clip4vla.pipeline import evaluate

    evaluate.evaluate(next(name for name in evaluate.MODELS if name == model.value))


@app.command(rich_help_panel=STAGES)
def promote(task: Task) -> None:
    """Register a task's model and let its gate decide whether it becomes champion."""
    from clip4vla.pipeline import promote

    promote.promote(_task(task))


@app.command(rich_help_panel=MODELS)
def doctor() -> None:
    """Say what is missing here for the chosen parameters, before anything runs; exit status 1 where something is."""
    from clip4vla.pipeline.doctor import examine, report

    if not report(examine()):
        raise typer.Exit(1)


@app.command(rich_help_panel=MODELS)
def rehearse(
    presets: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET]...", help="Default: those that params.yaml names.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="New directory for the scratch project, which stays there.")] = None,
    clips: Annotated[
        int | None,
        typer.Option(min=2, help="Training clips of each corpus; default: as few as make a step."),
    ] = None,
) -> None:
    """Run all stages at full size on a few made clips, elsewhere, and say what the real corpora will take."""
    from clip4vla.rehearsal.rehearse import rehearse

    rehearse(presets or [], keep, clips)


@app.command(rich_help_panel=MODELS)
def summary() -> None:
    """Print the scores and decisions of the last run, and where MLflow compares them."""
    from rich.console import Console

    from clip4vla.pipeline.summary import comparison_links, project_summary
    from clip4vla.reports.tables import to_terminal

    Console().print(to_terminal(project_summary()))
    for task, link in comparison_links().items():
        print(f"Compare the {task} runs in MLflow (`make ui`): {link}")


@app.command(rich_help_panel=MODELS)
def champion(model: RegisteredModel = None) -> None:
    """Print the version that is champion, and its scores."""
    from rich.console import Console

    from clip4vla.registry.local import read_champion
    from clip4vla.registry.registry import Registry
    from clip4vla.reports.tables import comparison_table, to_terminal

    name = _model_name(model)
    found = read_champion(Path.cwd(), name)
    if found is None:
        registry = Registry(Path.cwd())
        version = registry.champion_version(name)
        try:
            found = version, registry.scores(name, version)
        except ValueError as error:
            print(f"{name}: version {version} is the champion. The next promotion measures it again: {error}")
            return
    version, scores = found
    Console().print(to_terminal(comparison_table({f"version {version}": scores}, f"{name}, champion")))


@app.command(rich_help_panel=MODELS)
def rollback(model: RegisteredModel = None) -> None:
    """Make the version that the champion replaced the champion again."""
    from clip4vla.registry.registry import Registry

    name = _model_name(model)
    registry = Registry(Path.cwd())
    replaced = registry.last_champion(name)
    print(f"{name}: version {registry.rollback(name)} is the champion again; version {replaced} is rolled back")


@app.command(rich_help_panel=MODELS)
def prune(
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions of each model stay.")] = KEEP,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it. Without: only say what it is.")] = False,
) -> None:
    """Remove old versions, left-over checkpoints and unused data of DVC's cache."""
    from clip4vla.pipeline.prune import prune
    from clip4vla.utils.numbers import format_size

    size = 0
    for removal in prune(keep, carry_out=yes):
        print(f"{removal.what}: {format_size(removal.size)}", flush=True)
        size += removal.size
    total = format_size(size)
    print(f"{total} removed" if yes else f"{total} could be removed: `clip4vla prune --keep {keep} --yes`")


@app.command(rich_help_panel=MODELS)
def index(
    folder: Annotated[Path, typer.Argument(help="Folder of media files.")],
    index: IndexOption = INDEX,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.5, max=86_400, help="Longest clip; a longer file becomes several. Default: as in training."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the registered model; default: gates.retrieval.model_name.")
    ] = None,
) -> None:
    """Bring the index of a folder of media up to date with the champion."""
    from clip4vla.inference.index import IndexedModel, build
    from clip4vla.registry.registry import Registry
    from clip4vla.registry.stored_model import content_hash, read_version_inference

    name = _model_name(model)
    registry = Registry(Path.cwd())
    version = registry.champion_version(name)
    with tempfile.TemporaryDirectory() as scratch:
        directory = registry.fetch(name, version, Path(scratch))
        inference = read_version_inference(directory)
        indexed = IndexedModel(
            name=name,
            version=version,
            content=content_hash(directory),
            inference=inference,
            clip_seconds=inference.clips.max_seconds if seconds is None else seconds,
        )
        done = build(folder, index, directory, indexed)
    print(f"{done.clips:,} clips in {index}, by {name} version {version}")
    print(f"files: {done.added:,} added, {done.kept:,} kept, {done.removed:,} removed, {len(done.rejects):,} left out")
    for path, reason in list(done.rejects.items())[:TOP]:
        print(f"  left out {path}: {reason}")


@app.command(rich_help_panel=MODELS)
def search(
    sentence: Annotated[str | None, typer.Argument(help="Left out: asked for, one after the other.")] = None,
    index: IndexOption = INDEX,
    top: Annotated[int, typer.Option(min=1, help="Number of clips.")] = TOP,
    by: Annotated[By, typer.Option(help="The modality that must match the sentence.")] = By.both,  # type: ignore[attr-defined]
    listen: Annotated[
        Listen | None, typer.Option(help="The one thing to compare, in place of what the sentence asks for.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with pictures and sound.")] = None,
) -> None:
    """Find clips by a sentence."""
    from clip4vla.inference.index import Index

    opened = Index(index)
    if sentence is not None:
        _answer(opened, sentence, top, by.value, listen and listen.value, html)
        return
    while typed := _ask():
        _answer(opened, typed, top, by.value, listen and listen.value, html)


@app.command("app", rich_help_panel=MODELS)
def serve_app(
    index: IndexOption = INDEX,
    captions: Annotated[
        str | None,
        typer.Option(help="Model that captions examples, as in clip4vla.load; default: the project's champion."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address or name; who reaches it may search and play.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = PORT,
) -> None:
    """Serve a page to search with: by a sentence, or by a sound, a picture or a video."""
    from clip4vla.app.server import create_app, serve
    from clip4vla.inference.index import Index

    opened = Index(index)
    captioner = _champion_captioner() if captions is None else clip4vla.load(captions)
    page = create_app(opened, captioner, hosts=[host])
    print(f"{len(opened):,} clips by {opened.model.name} version {opened.model.version} at http://{host}:{port}")
    serve(page, host, port)


@app.command(rich_help_panel=MODELS)
def export(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    directory: Annotated[Path, typer.Argument(help="Where it goes: a new folder, or that of an earlier export.")],
    license: Annotated[str | None, typer.Option(help="Licence of the weights, such as mit.")] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also upload it to this repository of the Hugging Face Hub.")
    ] = None,
) -> None:
    """Write a registered model as a folder for others, with a model card and its towers for open_clip."""
    from clip4vla.registry.registry import Registry
    from clip4vla.release.export import export_version
    from clip4vla.release.hub import push, require_token

    if push_to_hub is not None:
        require_token()
    name, version = Registry(Path.cwd()).resolve(model.removeprefix(clip4vla.REGISTRY_PREFIX))
    export_version(Path.cwd(), name, version, directory, license)
    print(f"{name} version {version}: {directory}")
    if push_to_hub is not None:
        print(push(directory, push_to_hub))


app.add_typer(benchmark, name="benchmark", help="Score a registered model on others' data.", rich_help_panel=MODELS)


@benchmark.command("mteb")
def benchmark_mteb(
    tasks: Annotated[str, typer.Option(help="Names of MTEB's tasks, separated by commas.")],
    model: BenchmarkedModel = None,
    out: Annotated[Path, typer.Option(help="Directory for MTEB's result files.")] = BENCHMARKS / "mteb",
) -> None:
    """Run tasks of MTEB, which downloads their data; needs the extra `mteb`."""
    from clip4vla.pipeline.benchmark import run_mteb
    from clip4vla.utils.numbers import format_score

    scores = run_mteb(_reference(model), [name.strip() for name in tasks.split(",")], out)
    for name, score in scores.items():
        print(f"{name}: {format_score(name, score)}")
    print(f"results: {out}")


@benchmark.command("classification")
def benchmark_classification(
    annotations: Annotated[Path, typer.Argument(help="Directory of the tables: `path` and `text`, the label.")],
    media: Annotated[Path, typer.Argument(help="Directory of the sounds.")],
    model: BenchmarkedModel = None,
    adapter: Annotated[str, typer.Option(help="Name of the adapter that reads the tables.")] = "folder",
    name: Annotated[str, typer.Option(help="Name of the data set in MLflow.")] = "classification",
    split: Annotated[SplitOption | None, typer.Option(help="Classify these clips only; default: all.")] = None,
    prompt: Annotated[str, typer.Option(help="The sentence of a label.")] = "the sound of {}",
) -> None:
    """Classify sounds by the sentences of their labels: accuracy and mean average precision."""
    from rich.console import Console

    from clip4vla.pipeline.benchmark import classify_folder
    from clip4vla.reports.tables import Table, score_cell, to_terminal

    only = next((known for known in SPLITS if split is not None and known == split.value), None)
    scores = classify_folder(_reference(model), name, adapter, annotations, media, only, prompt, BENCHMARKS / name)
    rows = [[score, score_cell(scores, score)] for score in scores.values]
    Console().print(to_terminal(Table(name, ["score", "per cent"], rows)))


@app.command("check-corpus", rich_help_panel=MODELS)
def check_corpus(
    adapter: Annotated[str, typer.Argument(help="Name of the adapter, such as msrvtt or folder.")],
    annotations: Annotated[Path, typer.Option(help="Directory of the published annotation files.")],
    media: Annotated[Path, typer.Option(help="Directory of the media files.")],
    out: Annotated[Path, typer.Option(help="Directory for manifest.parquet and rejects.parquet.")],
) -> None:
    """Write the manifest and the rejects of any corpus, without params.yaml and DVC."""
    from clip4vla.pipeline.data import write_any_manifest

    write_any_manifest(adapter, annotations, media, out)


@app.command(rich_help_panel=MODELS)
def inspect(
    files: Annotated[list[Path], typer.Argument(help="Media files.", metavar="FILE...")],
) -> None:
    """Print what the pipeline makes of media files, as JSON lines."""
    from clip4vla.pipeline.data import inspect_files

    for found in inspect_files(files):
        print(json.dumps(found, allow_nan=False), flush=True)


@app.command("import-checkpoint", rich_help_panel=MODELS)
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="`pytorch_model.bin*` of the published code.")],
    directory: Annotated[Path, typer.Argument(help="Where model.safetensors and config.json go.")],
    tiles: Annotated[int, typer.Option(min=1, help="Most log-mel tiles of a clip.")] = 6,
) -> None:
    """Convert a checkpoint of the published code to a model directory."""
    from clip4vla.model.published import convert

    converted = convert(checkpoint, directory, tiles)
    print(f"left out: {', '.join(converted.unused) or 'nothing'}")
    print(f"kept as initialised: {', '.join(converted.missing) or 'nothing'}")


def _ask() -> str:
    try:
        return input("search: ").strip()
    except EOFError:
        return ""


def _answer(opened: "Index", sentence: str, top: int, by: Any, listen: Any, html: Path | None) -> None:
    from rich.console import Console

    from clip4vla.reports.pages import write_page
    from clip4vla.reports.search_report import hits_table, search_page
    from clip4vla.reports.tables import to_terminal
    from clip4vla.utils.numbers import format_weights

    start = time.perf_counter()
    hits = opened.search(sentence, top, by, listen)
    seconds = time.perf_counter() - start
    title = f"“{sentence}” in {len(opened):,} clips, by {opened.model.name} version {opened.model.version}"
    Console().print(to_terminal(hits_table(title, hits)))
    if weights := opened.listens_for(sentence, listen):
        print(f"listened for: {format_weights(weights)}")
    print(f"in {seconds:.2f} s", file=sys.stderr)
    if html is not None:
        write_page(search_page(sentence, hits, opened, listen), html)
        print(f"with pictures and sound: {html}")


def _champion_captioner() -> "Embedder | None":
    """The champion of the captioning models; None, with the reason printed, where there is none."""
    from clip4vla.config import load_config

    try:
        return clip4vla.load(f"{clip4vla.REGISTRY_PREFIX}{load_config().gates.captioning.model_name}@champion")
    except (ValueError, FileNotFoundError) as error:
        print(f"no captions of examples: {error}")
        return None


def _reference(model: str | None) -> str:
    """The version that is named by `models:/...`, or the project's champion."""
    return f"{_model_name(None)}@champion" if model is None else model.removeprefix(clip4vla.REGISTRY_PREFIX)


def _task(task: Task) -> TaskName:
    return next(name for name in TASKS if name == task.value)


def _model_name(model: str | None) -> str:
    """The registered model that is named, or the project's."""
    if model is not None:
        return model
    from clip4vla.config import load_config

    return load_config().gates.retrieval.model_name


def _use_project_code() -> None:
    """In a stage of DVC, run the package of the working directory: `dvc exp run --queue` works in a copy of it."""
    here = Path.cwd()
    is_elsewhere = Path(clip4vla.__file__).resolve().parents[1] != here.resolve()
    if STAGE_VARIABLE in os.environ and is_elsewhere and (here / "clip4vla" / "__main__.py").is_file():
        os.environ["PYTHONPATH"] = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
        os.execv(sys.executable, [sys.executable, "-m", "clip4vla", *sys.argv[1:]])


def _check_settings() -> None:
    """In a stage of DVC, refuse settings that DVC has not read, which is possible under `dvc repro --single-item`."""
    if os.environ.get(STAGE_VARIABLE) not in (None, "params"):
        from clip4vla.pipeline.dvc_files import keep_lock
        from clip4vla.pipeline.params import check_resolved

        check_resolved()
        keep_lock()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    if arguments is None:
        _use_project_code()
    spin_briefly()
    warn_of_unread()
    try:
        _check_settings()
        app(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"clip4vla: {_brief(str(error))}")
    except Exception as error:
        # MLflow takes a second to import: an error of its own class, or of its database's, has imported it
        if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy"):
            raise
        sys.exit(f"clip4vla: MLflow: {_brief(str(error), 1)}")


def _brief(message: str, most: int = LINES) -> str:
    """The first lines of a message, and how many more there were."""
    lines = [line for line in message.splitlines() if line.strip()]
    if len(lines) <= most:
        return "\n".join(lines)
    return "\n".join([*lines[: most - 1], f"{lines[most - 1]} (and {len(lines) - most} more lines)"])


if __name__ == "__main__":
    main()
