"""The registry: which versions of a model exist, how well each does, and which one is the champion.

In: a run result with its scores, and a decision. Out: a version in MLflow's registry, and the champion's scores
for the next decision. Consumers load `models:/<name>@champion` and see nothing else: a version is complete before
it exists, and becomes the champion by one alias that moves last, so there is one champion at every moment.

Every step may be killed and done again. A version is known by the hash of its model (tag `content`), so the same
run result is never registered twice; what is missing is added.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import clip4vla
from clip4vla.embedding import Outlook
from clip4vla.evaluation.scores import Scores
from clip4vla.model.checkpoints import CONFIG_FILE, WEIGHTS_FILE
from clip4vla.params import ClipsParams, SearchParams, TrainingParams
from clip4vla.records import Decision
from clip4vla.tracking import is_local, open_client, store_lock, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, PREVIOUS = "champion", "previous"
CONTENT, SCORES_PATH, REPLACES, ROLLED_BACK = "content", "scores", "replaces", "rolled_back"
CLAIM = "promotion"
CLAIM_S = 2.0
"""Time that a claim on a server must stand: much longer than its answers take."""

PACKAGE = Path(clip4vla.__file__).parent
RUN_FILE = "run.json"

REQUIREMENTS = (
    *("mlflow", "torch", "torchvision", "torchaudio", "open_clip_torch", "safetensors"),
    *("av", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml"),
)
"""What serving needs; each is pinned to the release that is installed when a version is registered."""


class Registry:
    """The registry of the project at `root`; see `tracking` for where it is."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._uri = tracking_uri(root)
        self._client = open_client(root)

    def register(
        self,
        run_id: str,
        run_directory: Path,
        scores: Scores,
        name: str,
        clips: ClipsParams,
        training: TrainingParams,
        search: SearchParams | None = None,
    ) -> str:
        """Make a version of the run result, or find the one that there is, and give it `scores`.

        Registering the same model again with other scores is how a champion is evaluated anew.

        Args:
            run_id: the MLflow run that trained the model.
            run_directory: holds the model and `run.json`.
            name: of the registered model; made if there is none.
            clips: how clips were stored, so that the served model sees files in the same way.
            training: whose frames and words the served model takes, and whose modalities where it writes captions.
            search: how it then looks for the best caption; needed where it writes captions.

        Returns:
            The version. No consumer sees it before `promote`.

        Raises:
            ValueError: the run result isn't complete.
        """
        content = content_hash(run_directory)
        with self._one_at_a_time():
            if not self._exists(name):
                self._client.create_registered_model(name)
            found = self._find(name, content)
            run_of_scores = run_id if found is None else _run_of(found)
            tags = {**_headlines(scores), SCORES_PATH: self._keep_scores(run_of_scores, scores)}
            if found is None:
                model_id = self._log_model(run_id, run_directory, content, Outlook.of(clips, training, search))
                found = self._make_version(name, model_id, run_id, content, tags)
            else:
                self._set_tags(name, found.version, tags)
        return str(found.version)

    def champion(self, name: str) -> tuple[str, Scores] | None:
        """Version and scores of the champion; None while there is none.

        Raises:
            ValueError: its scores are damaged.
        """
        version = self._alias(name, CHAMPION)
        return None if version is None else (version, self.scores(name, version))

    def champion_version(self, name: str) -> str:
        """Version of the champion.

        Raises:
            ValueError: there is none yet.
        """
        version = self._alias(name, CHAMPION)
        if version is None:
            raise ValueError(f"{name} has no champion yet: `dvc repro` trains one, and the gate decides")
        return version

    def scores(self, name: str, version: str) -> Scores:
        """The latest scores of `version`, per-query results included.

        Raises:
            ValueError: they are missing or damaged.
        """
        found = self._version(name, version)
        with tempfile.TemporaryDirectory() as folder:
            path = self._client.download_artifacts(_run_of(found), found.tags[SCORES_PATH], folder)
            return Scores.read(Path(path))

    def fetch(self, name: str, version: str, folder: Path) -> Path:
        """The run result of `version` as a directory under `folder`, such as to evaluate it on another test set.

        Raises:
            ValueError: what MLflow has isn't what was registered.
        """
        import mlflow

        found = self._version(name, version)
        folder.mkdir(parents=True, exist_ok=True)
        with self._default_store():
            path = mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(folder))
        run_directory = Path(path) / "artifacts"
        if content_hash(run_directory) != found.tags[CONTENT]:
            raise ValueError(f"the artifacts of {name} version {version} are not those that were registered")
        return run_directory

    def promote(self, name: str, version: str, decision: Decision, against: str | None) -> Decision:
        """Write `decision` on the version and, where it says so, make the version the champion.

        Of two promotions at once, one is carried out and the other is told that the champion has changed.

        Args:
            against: the champion that the decision compared with, None where there was none.

        Returns:
            The decision as carried out: a version that was rolled back stays where it is, the champion stays
            the champion, and nobody replaces a champion that the decision knows nothing of.
        """
        with self._one_at_a_time(name):
            found = self._version(name, version)
            champion = self._alias(name, CHAMPION)
            if champion == version:
                return Decision(True, (f"pass: version {version} is the champion already",))
            decision = _bar_other_champion(_bar_rolled_back(found, decision), against, champion)
            self._write_decision(name, version, decision)
            if decision.promote:
                self._crown(name, version, champion)
            return decision

    def rollback(self, name: str) -> str:
        """Make the version that the champion replaced the champion again; return it.

        The deposed version is tagged `rolled_back` and can't be promoted again until the tag is removed.

        Raises:
            ValueError: there is no champion, or none before it.
        """
        with self._one_at_a_time(name):
            champion, previous = self._alias(name, CHAMPION), self._alias(name, PREVIOUS)
            if champion is None or previous is None:
                raise ValueError(f"{name} has no champion before version {champion} to go back to")
            if champion != previous:  # equal after a rollback that was killed half-way
                self._set_tags(name, champion, {ROLLED_BACK: _now()})
                self._client.set_registered_model_alias(name, CHAMPION, previous)
            self._point_previous(name, self._version(name, previous).tags.get(REPLACES))
            return previous

    def _crown(self, name: str, version: str, champion: str | None) -> None:
        """Move the aliases; the one that consumers follow comes last."""
        if champion is not None:
            self._set_tags(name, version, {REPLACES: champion})
        self._point_previous(name, champion)
        self._client.set_registered_model_alias(name, CHAMPION, version)

    def _point_previous(self, name: str, version: str | None) -> None:
        if version is not None:
            self._client.set_registered_model_alias(name, PREVIOUS, version)
        elif self._alias(name, PREVIOUS) is not None:
            self._client.delete_registered_model_alias(name, PREVIOUS)

    def _write_decision(self, name: str, version: str, decision: Decision) -> None:
        word = "promoted" if decision.promote else "rejected"
        lines = [f"**{word}** on {_now()}", "", *(f"- {reason}" for reason in decision.reasons)]
        self._client.update_model_version(name, version, description="\n".join(lines))
        self._set_tags(name, version, {"decision": word})

    def _log_model(self, run_id: str, run_directory: Path, content: str, outlook: Outlook) -> str:
        """The model as MLflow keeps it, which an attempt that was killed may have finished already; its id."""
        experiment = self._client.get_run(run_id).info.experiment_id
        same = self._client.search_logged_models([experiment], filter_string=f"tags.{CONTENT} = '{content}'")
        for model in (model for model in same if model.source_run_id == run_id):
            if model.status == "READY":
                return str(model.model_id)
            self._client.delete_logged_model(model.model_id)
        model = self._client.create_logged_model(experiment, "clip4vla", run_id, tags={CONTENT: content})
        with tempfile.TemporaryDirectory() as folder:
            save_pyfunc(Path(folder) / "model", run_directory, outlook, model.model_id)
            self._client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _make_version(
        self, name: str, model_id: str, run_id: str, content: str, tags: Mapping[str, str]
    ) -> "ModelVersion":
        revision = self._client.get_run(run_id).data.tags.get("git_revision", "unknown")
        all_tags = {CONTENT: content, "git_revision": revision, **tags}
        with self._default_store():
            return self._client.create_model_version(
                name, f"models:/{model_id}", run_id, tags=all_tags, model_id=model_id
            )

    def _keep_scores(self, run_id: str, scores: Scores) -> str:
        """Put `scores` among the run's artifacts, under their digest; nothing that is there is overwritten."""
        with tempfile.TemporaryDirectory() as folder:
            scores.write(Path(folder))
            digest = _hash_files(sorted(Path(folder).iterdir()))[:16]
            path = f"scores/{digest}"
            self._client.log_artifacts(run_id, folder, path)
        return path

    def _find(self, name: str, content: str) -> "ModelVersion | None":
        found = self._client.search_model_versions(f"name = '{name}' and tags.{CONTENT} = '{content}'")
        return min(found, key=lambda version: int(version.version)) if found else None

    def _version(self, name: str, version: str) -> "ModelVersion":
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version(name, version)
        except MlflowException as error:
            raise ValueError(f"{name} has no version {version}: {error}") from error

    def _exists(self, name: str) -> bool:
        return bool(self._client.search_registered_models(f"name = '{name}'"))

    def _alias(self, name: str, alias: str) -> str | None:
        if not self._exists(name):
            return None
        version = self._client.get_registered_model(name).aliases.get(alias)
        return None if version is None else str(version)

    def _set_tags(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(name, version, key, value)

    @contextmanager
    def _one_at_a_time(self, name: str | None = None) -> Iterator[None]:
        """A lock on the project's own store; on a server, a claim to the model `name`, whose versions are to move.

        Registering needs no claim there: the same model registered twice at once becomes two versions, no harm.
        """
        if is_local(self._uri):
            with store_lock(self._root):
                yield
        else:
            if name is not None:
                self._claim(name)
            yield

    def _claim(self, name: str) -> None:
        """Say that a version of `name` is about to move, and see that nobody says so after us.

        MLflow's server knows no locks: of two claims the later one stands, and who comes when the earlier one has
        been looked at finds the champion changed.

        Raises:
            ValueError: somebody else is at it.
        """
        if not self._exists(name):
            return
        token = uuid4().hex
        self._client.set_registered_model_tag(name, CLAIM, token)
        time.sleep(CLAIM_S)
        if self._client.get_registered_model(name).tags.get(CLAIM) != token:
            raise ValueError(f"another promotion or rollback of {name} is under way: judge again when it is done")

    @contextmanager
    def _default_store(self) -> Iterator[None]:
        """Makes ours the default store for a while, because there MLflow looks up `models:/`, whatever the client's."""
        import mlflow

        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self._uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it, the variable included


def content_hash(run_directory: Path) -> str:
    """SHA-256 of the model in `run_directory`: the same weights and config are the same model.

    Raises:
        ValueError: a file of the run result is missing.
    """
    for file in (WEIGHTS_FILE, CONFIG_FILE, RUN_FILE):
        if not (run_directory / file).is_file():
            raise ValueError(f"{run_directory} is no run result: {file} is missing")
    return _hash_files([run_directory / WEIGHTS_FILE, run_directory / CONFIG_FILE])


def read_outlook(run_directory: Path) -> Outlook:
    """How the model that `Registry.fetch` put into `run_directory` was shown clips and texts."""
    from mlflow.models import Model

    stored = Model.load(str(run_directory.parent))
    return Outlook.model_validate(stored.flavors["python_function"]["config"])


def save_pyfunc(path: Path, run_directory: Path, outlook: Outlook, model_id: str | None = None) -> None:
    """Write the run result to `path` as an MLflow model that serves itself: code, weights, requirements."""
    import mlflow
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        path=str(path),
        python_model=str(PACKAGE / "serving.py"),
        code_paths=[str(PACKAGE)],
        artifacts={file: str(run_directory / file) for file in (WEIGHTS_FILE, CONFIG_FILE, RUN_FILE)},
        model_config=outlook.model_dump(mode="json"),
        pip_requirements=[f"{package}=={installed_version(package)}" for package in REQUIREMENTS],
        mlflow_model=Model(model_id=model_id),
        signature=_signature(writes=outlook.writing is not None),
        input_example=_input_example(writes=outlook.writing is not None),
    )


def _signature(writes: bool) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType

    text, media = (ColSpec(DataType.string, name, required=False) for name in ("text", "media"))
    embedding = ColSpec(Array(DataType.double), "embedding", required=False)
    caption, error = (ColSpec(DataType.string, name, required=False) for name in ("caption", "error"))
    answer = caption if writes else embedding
    return ModelSignature(inputs=Schema([media] if writes else [text, media]), outputs=Schema([answer, error]))


def _input_example(writes: bool) -> Any:
    import pandas as pd  # type: ignore[import-untyped]

    if writes:
        return pd.DataFrame({"media": ["/videos/dog.mp4"]})
    return pd.DataFrame({"text": ["a dog barks", None], "media": [None, "/videos/dog.mp4"]})


def _run_of(version: "ModelVersion") -> str:
    if version.run_id is None:
        raise ValueError(
            f"version {version.version} of {version.name} was not registered by this project: it has no run"
        )
    return str(version.run_id)


def _bar_rolled_back(version: "ModelVersion", decision: Decision) -> Decision:
    when = version.tags.get(ROLLED_BACK)
    if when is None or not decision.promote:
        return decision
    reason = f"FAIL: version {version.version} was rolled back on {when}; remove its tag {ROLLED_BACK} to let it return"
    return Decision(False, (*decision.reasons, reason))


def _bar_other_champion(decision: Decision, against: str | None, champion: str | None) -> Decision:
    if champion == against or not decision.promote:
        return decision
    compared = "none" if against is None else f"version {against}"
    reason = f"FAIL: version {champion} has become the champion meanwhile, and this was judged against {compared}"
    return Decision(False, (*decision.reasons, f"{reason}; judge again"))


def _headlines(scores: Scores) -> dict[str, str]:
    """Tags to be read in the registry: the test set, every R@1 and CIDEr. MLflow allows no `@` in a tag's name."""
    shown = {name: value for name, value in scores.values.items() if name.endswith(("/R@1", "/CIDEr"))}
    return {"test_set": scores.test_set} | {name.replace("@", "_at_"): f"{value:.2f}" for name, value in shown.items()}


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(f"{path.name}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
