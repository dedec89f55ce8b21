"""The registry: which versions of a model exist, how well each does, and which one is the champion.

In: a run result with its scores, and a decision. Out: a version in MLflow's registry, and the champion's scores
for the next decision. Consumers load `models:/<name>@champion` and see nothing else: a version is complete before
it exists, and becomes the champion by one alias that moves last, so there is one champion at every moment.

Every step may be killed and done again. A version is known by the hash of its model (tag `content`), so the same
run result is never registered twice; what is missing is added.
"""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from clip4vla.config import MODEL_NAME, BeamSearchConfig, InferenceConfig
from clip4vla.evaluation.scores import Scores, is_headline
from clip4vla.records import WEIGHTS_FILE, Decision
from clip4vla.registry.stored_model import (
    FETCHED,
    RUN_RESULT,
    content_hash,
    inference_of,
    read_version_inference,
    save_pyfunc,
)
from clip4vla.tracking.store import URI_VARIABLE, is_local, open_client, shown_uri, store_lock, tracking_uri
from clip4vla.utils.hashing import hash_files
from clip4vla.utils.numbers import format_score

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

    from clip4vla.inference.embedder import Embedder

log = logging.getLogger(__name__)

CHAMPION, PREVIOUS = "champion", "previous"
CONTENT, SCORES_PATH, REPLACES, ROLLED_BACK = "content", "scores", "replaces", "rolled_back"
DECISION, DECISION_SCORES = "decision", "decision_scores"
"""Tags: what was decided about a version, and the scores by which."""
PROMOTED = "promoted"
CORPUS = "corpus."
"""Begins the tags that describe the corpora of a version."""
REASON = "- "
"""Begins a reason in the description of a version."""
MODELS = "models:/"
"""Begins the source of a version: the address of the model that MLflow keeps."""
CLAIM = "promotion"
CLAIM_S = 5.0
"""Time that a claim on a server must stand: much longer than its answers take."""

REGISTRY_VARIABLE = "MLFLOW_REGISTRY_URI"
REFERENCE = re.compile(rf"({MODEL_NAME})(?:@([A-Za-z][A-Za-z0-9_-]*)|/([1-9][0-9]*))")
"""`NAME@ALIAS` or `NAME/VERSION`."""

CorpusFacts = Mapping[str, str | None]
"""What is known of a corpus, by FACTS; None is unknown."""
FACTS = ("role", "version", "license", "source")


@dataclass(frozen=True)
class VersionRecord:
    """A version as the registry describes it."""

    name: str
    version: str
    run_id: str
    """The MLflow run that trained it."""
    description: str
    """The decision about it, in Markdown; empty before there is one."""
    corpora: Mapping[str, CorpusFacts]
    """The corpora that it was trained on, by name; empty for a version that was registered without."""


@dataclass(frozen=True)
class OldVersion:
    """A version that nothing needs any more."""

    name: str
    version: str
    size: int
    """Bytes of its model."""


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
        beam_search: BeamSearchConfig | None = None,
        corpora: Mapping[str, CorpusFacts] = {},
        evaluation: Path | None = None,
    ) -> str:
        """Make a version of the run result, or find the one that there is, and give it `scores`.

        Registering the same model again with other scores replaces its scores.

        Args:
            run_id: the MLflow run that trained the model.
            run_directory: holds the model, with how it reads media, and `run.json`.
            scores: of the model on the test set.
            name: of the registered model; made if there is none.
            beam_search: how the served model generates captions; None keeps what it was trained with.
            corpora: what the model was trained on, by the name of the corpus.
            evaluation: a directory that may hold the `reference.json` of the test set, with which a served model
                compares what it sees.

        Returns:
            The version. No consumer sees it before `promote`.

        Raises:
            ValueError: the run result isn't complete, its weights aren't finite, or it does not record how the model
                reads media.
        """
        from clip4vla.model.pretrained import read_weights

        content = content_hash(run_directory)
        read_weights(run_directory / WEIGHTS_FILE)
        inference = inference_of(run_directory, beam_search)
        with self._one_at_a_time():
            if self._model(name) is None:
                self._client.create_registered_model(name)
            found = self._find(name, content)
            tags = self._tags_of(run_id if found is None else _run_of(found), scores)
            tags |= {f"{CORPUS}{corpus}": json.dumps(dict(facts)) for corpus, facts in corpora.items()}
            if found is None:
                model_id = self._log_model(run_id, run_directory, content, inference, evaluation)
                found = self._make_version(name, model_id, run_id, content, tags)
            else:
                self._set_tags(name, found.version, tags)
        return str(found.version)

    def champion_version(self, name: str) -> str:
        """Version of the champion.

        Raises:
            ValueError: there is none yet, or its version is gone.
        """
        version = self.find_champion(name)
        if version is None:
            raise ValueError(f"{name} has no champion yet: `dvc repro` trains one, and the gate decides")
        return version

    def find_champion(self, name: str) -> str | None:
        """The champion's version; None while there is none. Where the alias is gone, the tag of the model names it.

        Raises:
            ValueError: the version is gone.
        """
        model = self._model(name)
        last = None if model is None else _champion_of(model)
        if model is None or last is None or CHAMPION in model.aliases:
            return last
        if not self._is_there(name, last):
            raise ValueError(
                f"version {last}, the champion of {name}, was deleted: `clip4vla rollback {name}` goes back to the one "
                f"before it; without one, remove the tag {CHAMPION!r} of the model in MLflow"
            )
        log.warning("%s has lost its alias %r: version %s was the last", name, CHAMPION, last)
        return last

    def last_champion(self, name: str) -> str | None:
        """The version that is, or was last, the champion, whether or not it still exists."""
        model = self._model(name)
        return None if model is None else _champion_of(model)

    def champion_run(self, name: str) -> str | None:
        """MLflow run that trained the champion; None while there is none."""
        version = self.find_champion(name)
        return None if version is None else _run_of(self._version(name, version))

    def resolve(self, reference: str) -> tuple[str, str]:
        """Name and version of `NAME@ALIAS` or `NAME/VERSION`.

        Raises:
            ValueError: it is neither, or there is no such model, version or alias.
        """
        found = REFERENCE.fullmatch(reference)
        if found is None:
            raise ValueError(f"models:/{reference} is neither models:/NAME@ALIAS nor models:/NAME/VERSION")
        name, alias, version = found.groups()
        if self._model(name) is None:
            raise ValueError(f"the registry at {shown_uri(self._uri)} has no model {name}")
        if alias is None:
            return name, str(self._version(name, version).version)
        version = self.find_champion(name) if alias == CHAMPION else self._alias(name, alias)
        if version is None:
            raise ValueError(f"{name} has no version with the alias {alias}")
        return name, version

    def describe(self, name: str, version: str) -> VersionRecord:
        """What the registry knows of `version`.

        Raises:
            ValueError: there is no such version, it has no run, or a tag that describes a corpus is damaged.
        """
        found = self._version(name, version)
        corpora = {tag.removeprefix(CORPUS): _facts_in(found, tag) for tag in found.tags if tag.startswith(CORPUS)}
        return VersionRecord(name, version, _run_of(found), found.description or "", corpora)

    def scores(self, name: str, version: str) -> Scores:
        """The latest scores of `version`, per-query results included.

        Raises:
            ValueError: they are gone or damaged.
        """
        from mlflow.exceptions import MlflowException

        found = self._version(name, version)
        where = found.tags.get(SCORES_PATH)
        if where is None:
            raise ValueError(f"the scores of {name} version {version} are gone: its tag {SCORES_PATH!r} is missing")
        with tempfile.TemporaryDirectory() as folder:
            try:
                return Scores.read(Path(self._client.download_artifacts(_run_of(found), where, folder)))
            except (MlflowException, OSError, ValueError) as error:
                raise ValueError(f"the scores of {name} version {version} are gone or damaged: {error}") from error

    def replace_scores(self, name: str, version: str, scores: Scores) -> None:
        """Give `version` new scores, such as of another test set, or where its own are gone.

        Raises:
            ValueError: there is no such version.
        """
        found = self._version(name, version)
        self._set_tags(name, version, self._tags_of(_run_of(found), scores))

    def fetch(self, name: str, version: str, folder: Path) -> Path:
        """The run result of `version` as a directory under `folder`, such as to evaluate it on another test set.

        Raises:
            ValueError: what was registered is gone, or what MLflow has isn't it.
        """
        import mlflow
        from mlflow.exceptions import MlflowException

        found = self._version(name, version)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._default_store():
                for part in FETCHED:
                    mlflow.artifacts.download_artifacts(f"{MODELS}{name}/{version}/{part}", dst_path=str(folder))
            content = content_hash(folder / RUN_RESULT)
        except (MlflowException, OSError, ValueError) as error:
            raise ValueError(f"the artifacts of {name} version {version} are gone or damaged: {error}") from error
        if CONTENT not in found.tags:
            log.warning("%s version %s has lost its tag %r: its artifacts can't be checked", name, version, CONTENT)
        elif content != found.tags[CONTENT]:
            raise ValueError(f"the artifacts of {name} version {version} are not those that were registered")
        return folder / RUN_RESULT

    def promote(self, name: str, version: str, decision: Decision, against: str | None) -> Decision:
        """Write `decision` on the version and, where it is to promote, make the version the champion.

        Of two promotions at once, one is carried out and the other is refused, because the champion has changed.

        Args:
            against: the champion that the decision compared with, None where there was none.

        Returns:
            The decision as carried out: a version that was rolled back stays where it is, the champion stays
            the champion, and a champion that the decision was not compared with is not replaced. Where the version was
            made the champion by these very scores, it is the decision of that time: a promotion that was killed before
            its reasons were written down gives them when it is done again.

        Raises:
            ValueError: there is no such version, or its model is gone, damaged or not finite; nothing has changed then.
        """
        if _bar_rolled_back(self._version(name, version), decision).promote and self.find_champion(name) != version:
            self._check_model(name, version)  # takes long, so not while others wait
        with self._one_at_a_time(name) as confirm:
            found = self._version(name, version)
            champion = self.find_champion(name)
            if champion == version:
                self._move_champion(name, version)  # where the alias was lost
                return _recorded(found) or Decision(True, (f"pass: version {version} is the champion already",))
            decision = _bar_other_champion(_bar_rolled_back(found, decision), against, champion)
            confirm()
            self._write_decision(name, version, decision)
            if decision.promote:
                self._crown(name, version, champion)
            return decision

    def rollback(self, name: str) -> str:
        """Make the version that the champion replaced the champion again; return it.

        The version that was champion is tagged `rolled_back` and can't be promoted again until the tag is removed.

        Raises:
            ValueError: there is no champion before the current one, or its model is gone or damaged; nothing has
                changed then.
        """
        if (checked := self._previous(name)) is not None:
            self._check_model(name, checked)  # takes long, so not while others wait
        with self._one_at_a_time(name) as confirm:
            champion, previous = self.last_champion(name), self._previous(name)
            if previous is None:
                raise ValueError(f"{name} has no champion before version {champion} to go back to")
            if previous != checked:
                raise ValueError(f"the champion of {name} has changed meanwhile: run the command again")
            confirm()
            before = self._version(name, previous).tags.get(REPLACES)
            before = before if before is not None and self._is_there(name, before) else None
            # equal after a rollback that was killed half-way
            if champion not in (None, previous) and self._is_there(name, str(champion)):
                self._set_tags(name, str(champion), {ROLLED_BACK: _now()})
            self._move_champion(name, previous)
            self._point_previous(name, before)
            return previous

    def old_versions(self, name: str, keep: int) -> list[OldVersion]:
        """The versions that `remove_old_versions` removes, oldest first.

        Args:
            name: of the registered model.
            keep: how many of the newest versions stay. Those that have an alias, such as the champion and the one
                before it, and those that were rolled back, which must not be promoted again, stay as well.
        """
        model = self._model(name)
        if model is None:
            return []
        found = self._client.search_model_versions(f"name = '{name}'")
        oldest_first = sorted(found, key=lambda version: int(version.version))
        needed = {*map(str, model.aliases.values()), _champion_of(model), self._previous(name)}
        needed |= {str(version.version) for version in oldest_first[max(0, len(oldest_first) - keep) :]}
        return [
            OldVersion(name, str(version.version), self._size_of_model(version))
            for version in oldest_first
            if str(version.version) not in needed and ROLLED_BACK not in version.tags
        ]

    def remove_old_versions(self, name: str, keep: int) -> list[OldVersion]:
        """Remove `old_versions` with their models; the runs that trained them stay, with metrics and reports.

        A version goes after its model, so that what a kill leaves is removed the next time.
        """
        if self._model(name) is None:
            return []
        with self._one_at_a_time(name):
            removed = self.old_versions(name, keep)
            for old in removed:
                self._remove_model(self._version(name, old.version))
                self._client.delete_model_version(name, old.version)
        return removed

    def _remove_model(self, version: "ModelVersion") -> None:
        """Remove what MLflow keeps of a version's model; all of it may be gone already."""
        with self._default_store():
            repository, model_id = self._model_files(version), _model_of(version)
            if repository is not None and model_id is not None:
                repository.delete_artifacts()
                self._client.delete_logged_model(model_id)

    def _size_of_model(self, version: "ModelVersion") -> int:
        """Bytes of a version's model; 0 where it is gone."""
        with self._default_store():
            repository = self._model_files(version)
            if repository is None:
                return 0
            waiting, size = repository.list_artifacts(), 0
            while waiting:
                entry = waiting.pop()
                size += entry.file_size or 0
                waiting += repository.list_artifacts(entry.path) if entry.is_dir else []
            return size

    def _model_files(self, version: "ModelVersion") -> Any:
        """MLflow's repository of the files of a version's model; None where MLflow has no such model."""
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        model_id = _model_of(version)
        if model_id is None:
            return None
        try:
            return get_artifact_repository(self._client.get_logged_model(model_id).artifact_location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _previous(self, name: str) -> str | None:
        """The champion before the current one; None where there is none, or it was deleted."""
        previous, champion = self._alias(name, PREVIOUS), self.last_champion(name)
        if previous is None and champion is not None and self._is_there(name, champion):
            previous = self._version(name, champion).tags.get(REPLACES)
        return previous if previous is not None and self._is_there(name, previous) else None

    def _move_champion(self, name: str, version: str) -> None:
        """Move the alias that consumers follow, and note the version on the model, for when the alias gets lost."""
        self._client.set_registered_model_alias(name, CHAMPION, version)
        self._client.set_registered_model_tag(name, CHAMPION, version)

    def _check_model(self, name: str, version: str) -> None:
        """Read a version's model as a consumer would.

        Raises:
            ValueError: it is gone, damaged or not finite.
        """
        from clip4vla.model.pretrained import read_weights

        with tempfile.TemporaryDirectory() as folder:
            read_weights(self.fetch(name, version, Path(folder)) / WEIGHTS_FILE)

    def _is_there(self, name: str, version: str) -> bool:
        try:
            self._version(name, version)
        except ValueError:
            return False
        return True

    def _crown(self, name: str, version: str, champion: str | None) -> None:
        """Move the aliases; the one that consumers follow comes last."""
        if champion is not None:
            self._set_tags(name, version, {REPLACES: champion})
        self._point_previous(name, champion)
        self._move_champion(name, version)

    def _point_previous(self, name: str, version: str | None) -> None:
        if version is not None:
            self._client.set_registered_model_alias(name, PREVIOUS, version)
        elif self._alias(name, PREVIOUS) is not None:
            self._client.delete_registered_model_alias(name, PREVIOUS)

    def _write_decision(self, name: str, version: str, decision: Decision) -> None:
        word = PROMOTED if decision.promote else "rejected"
        lines = [f"**{word}** on {_now()}", "", *(f"{REASON}{reason}" for reason in decision.reasons)]
        self._client.update_model_version(name, version, description="\n".join(lines))
        scores = self._version(name, version).tags.get(SCORES_PATH, "")
        self._set_tags(name, version, {DECISION: word, DECISION_SCORES: scores})

    def _log_model(
        self, run_id: str, run_directory: Path, content: str, inference: InferenceConfig, evaluation: Path | None
    ) -> str:
        """The model as MLflow keeps it, which an attempt that was killed may have finished already; its id."""
        experiment = self._client.get_run(run_id).info.experiment_id
        same = self._client.search_logged_models([experiment], filter_string=f"tags.{CONTENT} = '{content}'")
        for model in (model for model in same if model.source_run_id == run_id):
            if model.status == "READY":
                return str(model.model_id)
            self._client.delete_logged_model(model.model_id)
        model = self._client.create_logged_model(experiment, "clip4vla", run_id, tags={CONTENT: content})
        with tempfile.TemporaryDirectory() as folder:
            save_pyfunc(Path(folder) / "model", run_directory, inference, model.model_id, evaluation)
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
                name, f"{MODELS}{model_id}", run_id, tags=all_tags, model_id=model_id
            )

    def _tags_of(self, run_id: str, scores: Scores) -> dict[str, str]:
        """Tags of a version with `scores`, which are kept among the artifacts of its run."""
        return {**_headlines(scores), SCORES_PATH: self._keep_scores(run_id, scores)}

    def _keep_scores(self, run_id: str, scores: Scores) -> str:
        """Put `scores` among the run's artifacts, under their digest; nothing that is there is overwritten."""
        with tempfile.TemporaryDirectory() as folder:
            scores.write(Path(folder))
            digest = hash_files(sorted(Path(folder).iterdir()), digits=16)
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
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ValueError(f"{name} has no version {version}") from error

    def _model(self, name: str) -> "RegisteredModel | None":
        """The registered model with its aliases and tags; None where there is none."""
        from mlflow.exceptions import MlflowException

        if not re.fullmatch(MODEL_NAME, name):
            raise ValueError(f"{name!r} is no name of a model: those have letters, digits, '_', '.' and '-'")
        try:
            return self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _alias(self, name: str, alias: str) -> str | None:
        model = self._model(name)
        version = None if model is None else model.aliases.get(alias)
        return None if version is None else str(version)

    def _set_tags(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(name, version, key, value)

    @contextmanager
    def _one_at_a_time(self, name: str | None = None) -> Iterator[Callable[[], None]]:
        """A lock on the project's own store; on a server, a claim to the model `name`, whose versions are to move.

        Registering needs no claim there: the same model registered twice at once becomes two versions, no harm.

        Yields:
            What to call directly before anything is changed; it raises ValueError where the claim was lost meanwhile.
        """
        if is_local(self._uri):
            with store_lock(self._root):
                yield _confirm_nothing
        elif name is None or self._model(name) is None:
            yield _confirm_nothing
        else:
            confirm = partial(self._check_claim, name, self._claim(name))
            confirm()
            yield confirm

    def _claim(self, name: str) -> str:
        """Claim the aliases of `name` by a tag, and wait until others who have just claimed them see it.

        MLflow's server has no locks: of two claims at once the later one stands, and a process that claims after the
        last check of another finds the champion changed.

        Returns:
            The value of the tag.
        """
        token = uuid4().hex
        self._client.set_registered_model_tag(name, CLAIM, token)
        time.sleep(CLAIM_S)
        return token

    def _check_claim(self, name: str, token: str) -> None:
        if self._client.get_registered_model(name).tags.get(CLAIM) != token:
            raise ValueError(
                f"another promotion or rollback of {name} is under way: run the command again when it is done"
            )

    @contextmanager
    def _default_store(self) -> Iterator[None]:
        """Make this the default store within the block: MLflow looks up `models:/` there, whatever the client's."""
        import mlflow

        before, registry = os.environ.get(URI_VARIABLE), os.environ.pop(REGISTRY_VARIABLE, None)
        mlflow.set_tracking_uri(self._uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it, the variable included
            if registry is not None:
                os.environ[REGISTRY_VARIABLE] = registry


def _confirm_nothing() -> None:
    """Where a lock holds, or nobody else can have claimed anything."""


def _champion_of(model: "RegisteredModel") -> str | None:
    """The version that has the alias, or had it last."""
    version = model.aliases.get(CHAMPION, model.tags.get(CHAMPION))
    return None if version is None else str(version)


def load_version(root: Path, reference: str) -> "Embedder":
    """The model of a version in the registry of the project at `root`.

    Args:
        root: the project's directory.
        reference: `NAME@ALIAS` or `NAME/VERSION`.

    Raises:
        ValueError: there is no such model, version or alias.
    """
    from clip4vla.inference.embedder import Embedder

    registry = Registry(root)
    name, version = registry.resolve(reference)
    with tempfile.TemporaryDirectory() as folder:
        directory = registry.fetch(name, version, Path(folder))
        return Embedder.open(directory, read_version_inference(directory))


def _facts_in(version: "ModelVersion", tag: str) -> CorpusFacts:
    try:
        facts = json.loads(version.tags[tag])
        return {fact: facts[fact] for fact in FACTS}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"the tag {tag!r} of {version.name} version {version.version} is damaged: correct or remove it in MLflow"
        ) from error


def _run_of(version: "ModelVersion") -> str:
    if version.run_id is None:
        raise ValueError(
            f"version {version.version} of {version.name} was not registered by this project: it has no run"
        )
    return str(version.run_id)


def _model_of(version: "ModelVersion") -> str | None:
    """Id of the model that MLflow keeps for a version; None for one that was not registered by this project."""
    source = str(version.source)
    return source.removeprefix(MODELS) if source.startswith(MODELS) else None


def _recorded(version: "ModelVersion") -> Decision | None:
    """The decision that made `version` the champion; None where it was a rollback, or it has other scores by now."""
    tags = version.tags
    if tags.get(DECISION) != PROMOTED or not tags.get(SCORES_PATH) or tags.get(DECISION_SCORES) != tags[SCORES_PATH]:
        return None
    lines = (version.description or "").splitlines()
    reasons = tuple(line.removeprefix(REASON) for line in lines if line.startswith(REASON))
    return Decision(True, reasons) if reasons else None


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
    reason = (
        f"FAIL: version {champion} has become the champion meanwhile, and this decision was made against {compared}"
    )
    return Decision(False, (*decision.reasons, f"{reason}; run the stage again"))


def _headlines(scores: Scores) -> dict[str, str]:
    """Tags to be read in the registry: the test set, headline scores and CIDEr. MLflow allows no `@` in their names."""
    shown = {name: value for name, value in scores.values.items() if is_headline(name) or name.endswith("/CIDEr")}
    tags = {name.replace("@", "_at_"): format_score(name, value) for name, value in shown.items()}
    return {"test_set": scores.test_set} | tags


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
