"""The registry on a real MLflow store: versions, the champion, and what a kill at any point leaves."""

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils
from safetensors.torch import load_file, save_file

import clip4vla
from clip4vla.config import BeamSearchConfig
from clip4vla.evaluation.retrieval_metrics import QueryRanks
from clip4vla.evaluation.scores import QueryTable, Scores, summarise
from clip4vla.records import Decision
from clip4vla.registry import registry as registry_module
from clip4vla.registry.local import read_champion
from clip4vla.registry.registry import Registry, load_version
from clip4vla.registry.stored_model import content_hash, read_version_inference
from clip4vla.tracking.run import start_run
from clip4vla.tracking.store import open_client, prepare_store
from tests.inference.tiny import (
    CAPTIONING_INFERENCE,
    INFERENCE,
    save_captioning,
    save_retrieval,
    write_video,
)

NAME = "clip4vla"
YES = Decision(True, ("pass: better",))
NO = Decision(False, ("pass: floor met", "FAIL: worse than the champion"))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, made once."""
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("DVC_ROOT", raising=False)
        prepare_store(root)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return copy_store(template, tmp_path / "project")


@pytest.fixture
def registry(root: Path) -> Registry:
    return Registry(root)


@pytest.fixture(autouse=True)
def light_models(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Keep the model directory without the code around it, which most tests do not need; return what keeps both."""
    complete = registry_module.save_pyfunc

    def save(path: Path, run_directory: Path, *_settings: object) -> None:
        (path / "artifacts").mkdir(parents=True)
        (path / "MLmodel").touch()
        for file in run_directory.iterdir():
            (path / "artifacts" / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(registry_module, "save_pyfunc", save)
    return complete


@pytest.fixture
def complete_models(light_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep models as they are served."""
    monkeypatch.setattr(registry_module, "save_pyfunc", light_models)


@cache
def config_json() -> str:
    """The config of a trained model."""
    with TemporaryDirectory() as directory:
        return (save_retrieval(Path(directory)) / "config.json").read_text()


def copy_store(template: Path, root: Path) -> Path:
    """A store with the same entries and artifacts."""
    shutil.copytree(template / "mlruns", root / "mlruns")
    utils._artifact_repos_cache.clear()  # MLflow remembers by run where artifacts are, and copies share runs
    return root


def scores(value: float = 50.0, test_set: str = "abc") -> Scores:
    hit = np.array([[1.0] * 3] * int(value) + [[0.0] * 3] * (100 - int(value)))
    names = tuple(f"q{index}" for index in range(100))
    table = QueryTable(names, names, QueryRanks(np.where(hit[:, 0] == 1, 1.0, 30.0), hit))
    return summarise(test_set, {"text_to_clip/both": table}, 100, 0, {"probe/verbal/speech/R@1": 13.0})


def run_result(root: Path, weights: str) -> tuple[str, Path]:
    """A finished run and a model directory whose one weight has that name."""
    directory = root / "results" / weights
    directory.mkdir(parents=True, exist_ok=True)
    save_file({weights: torch.ones(1)}, directory / "model.safetensors")
    (directory / "config.json").write_text(config_json())
    return finished_run(root, directory), directory


def finished_run(root: Path, directory: Path) -> str:
    """The id of a training's run, which `run.json` in `directory` names."""
    with start_run(root, "retrieval", directory.name) as run:
        pass
    (directory / "run.json").write_text(json.dumps({"run_id": run.run_id}))
    return str(run.run_id)


def register(registry: Registry, root: Path, weights: str, found: Scores | None = None) -> str:
    run_id, directory = run_result(root, weights)
    return registry.register(run_id, directory, found or scores(), NAME)


def promote(registry: Registry, version: str, decision: Decision) -> Decision:
    """As the stage does, which has just compared with the champion."""
    return registry.promote(NAME, version, decision, champion_of(registry))


def champion_of(registry: Registry) -> str | None:
    """The champion's version, whose scores can be read; None while there is none."""
    version = registry.find_champion(NAME)
    if version is not None:
        registry.scores(NAME, version)
    return version


def aliases(root: Path) -> dict[str, str]:
    return {name: str(version) for name, version in open_client(root).get_registered_model(NAME).aliases.items()}


def test_a_registry_without_models_has_no_champion(registry: Registry, root: Path) -> None:
    assert registry.find_champion(NAME) is None
    register(registry, root, "one")
    assert registry.find_champion(NAME) is None, "a version that was not promoted is not the champion"


def test_the_registry_is_in_the_store_of_the_runs_whatever_another_variable_names(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    registry = Registry(root)
    version = register(registry, root, "one")
    promote(registry, version, YES)
    assert aliases(root) == {"champion": version}
    registry.scores(NAME, version)
    assert not (tmp_path / "elsewhere.db").exists()


def test_the_champion_comes_with_its_scores_and_queries(registry: Registry, root: Path) -> None:
    version = register(registry, root, "one", scores(40))
    assert promote(registry, version, YES) == YES
    assert registry.find_champion(NAME) == version
    found = registry.scores(NAME, version)
    assert found.values == scores(40).values
    assert found.intervals == scores(40).intervals
    table, expected = found.queries["text_to_clip/both"], scores(40).queries["text_to_clip/both"]
    assert table.query_ids == expected.query_ids
    np.testing.assert_array_equal(table.ranks.rank, expected.ranks.rank)


def test_the_champion_is_also_read_without_mlflow(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_champion(root, NAME) is None
    one, two = register(registry, root, "one", scores(40)), register(registry, root, "two", scores(60))
    assert read_champion(root, NAME) is None
    for version, value in ((one, 40.0), (two, 60.0)):
        promote(registry, version, YES)
        found = read_champion(root, NAME)
        assert found is not None
        assert (found[0], found[1].values["text_to_clip/both/R@1"]) == (version, value)
        assert found[1].intervals == registry.scores(NAME, version).intervals
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        assert read_champion(root, NAME) is None
    open_client(root).delete_registered_model_alias(NAME, "champion")
    assert read_champion(root, NAME) is None


def test_a_version_has_tags_and_a_description(registry: Registry, root: Path) -> None:
    run_id, directory = run_result(root, "one")
    version = registry.register(run_id, directory, scores(40), NAME)
    promote(registry, version, NO)
    found = open_client(root).get_model_version(NAME, version)
    assert found.run_id == run_id
    assert found.tags["content"] == content_hash(directory)
    assert found.tags["test_set"] == "abc"
    assert found.tags["git_revision"] == "unknown"
    assert found.tags["text_to_clip/both/R_at_1"] == "40.0"
    assert found.tags["probe/verbal/speech/R_at_1"] == "13.0"
    assert found.tags["decision"] == "rejected"
    assert all(reason in found.description for reason in NO.reasons)
    assert champion_of(registry) is None


def test_the_same_model_is_registered_once(registry: Registry, root: Path) -> None:
    first, again, other = (register(registry, root, weights) for weights in ("one", "one", "two"))
    assert first == again != other
    assert len(open_client(root).search_model_versions(f"name = '{NAME}'")) == 2


def test_the_same_weights_with_another_config_are_another_model(registry: Registry, root: Path) -> None:
    run_id, directory = run_result(root, "one")
    first = registry.register(run_id, directory, scores(), NAME)
    tree = json.loads(config_json())
    tree["inference"]["max_tokens"] += 1
    (directory / "config.json").write_text(json.dumps(tree))
    assert registry.register(run_id, directory, scores(), NAME) != first


def test_the_champion_can_be_evaluated_again(registry: Registry, root: Path, tmp_path: Path) -> None:
    version = register(registry, root, "one", scores(40, "old"))
    promote(registry, version, YES)
    fetched = registry.fetch(NAME, version, tmp_path / "champion")
    assert load_file(fetched / "model.safetensors").keys() == {"one"}
    run_id = json.loads((fetched / "run.json").read_text())["run_id"]
    assert registry.register(run_id, fetched, scores(45, "new"), NAME) == version
    assert registry.find_champion(NAME) == version
    found = registry.scores(NAME, version)
    assert (found.test_set, found.values["text_to_clip/both/R@1"]) == ("new", 45.0)
    assert open_client(root).get_model_version(NAME, version).tags["test_set"] == "new"


def test_artifacts_that_were_changed_are_not_fetched(registry: Registry, root: Path, tmp_path: Path) -> None:
    version = register(registry, root, "one")
    (kept,) = (root / "mlruns" / "artifacts").rglob("model.safetensors")
    kept.write_text("something else")
    with pytest.raises(ValueError, match=f"version {version} are not those that were registered"):
        registry.fetch(NAME, version, tmp_path / "fetched")


def test_promotions_follow_the_decision(registry: Registry, root: Path) -> None:
    one, two, three = (register(registry, root, weights) for weights in ("one", "two", "three"))
    promote(registry, one, YES)
    assert aliases(root) == {"champion": one}
    promote(registry, two, NO)
    assert aliases(root) == {"champion": one}
    promote(registry, three, YES)
    assert aliases(root) == {"champion": three, "previous": one}


def test_the_champion_stays_champion_when_it_is_compared_again(registry: Registry, root: Path) -> None:
    one, two = register(registry, root, "one"), register(registry, root, "two")
    promote(registry, one, YES)
    promote(registry, two, YES)
    before = open_client(root).get_model_version(NAME, two)
    assert promote(registry, two, NO) == YES, "the decision that made it the champion"
    assert aliases(root) == {"champion": two, "previous": one}
    after = open_client(root).get_model_version(NAME, two)
    assert (after.tags, after.description) == (before.tags, before.description)
    registry.replace_scores(NAME, two, scores(61))
    assert promote(registry, two, NO) == Decision(True, (f"pass: version {two} is the champion already",))


def test_a_version_that_was_refused_and_came_back_by_a_rollback_has_not_the_reasons_of_the_refusal(
    registry: Registry, root: Path
) -> None:
    one, _ = two_champions(registry, root)
    promote(registry, one, NO)
    assert registry.rollback(NAME) == one
    assert promote(registry, one, NO) == Decision(True, (f"pass: version {one} is the champion already",))


def test_rollback_goes_back_version_by_version(registry: Registry, root: Path) -> None:
    versions = [register(registry, root, weights) for weights in ("one", "two", "three")]
    for version in versions:
        promote(registry, version, YES)
    one, two, _ = versions
    assert registry.rollback(NAME) == two
    assert aliases(root) == {"champion": two, "previous": one}
    assert registry.rollback(NAME) == one
    assert aliases(root) == {"champion": one}
    with pytest.raises(ValueError, match=f"no champion before version {one}"):
        registry.rollback(NAME)


@pytest.mark.parametrize("decided_against", ["one", "none"])
def test_of_two_promotions_at_once_one_is_carried_out_and_the_other_refused(
    registry: Registry, root: Path, decided_against: str
) -> None:
    one, two, three = (register(registry, root, weights) for weights in ("one", "two", "three"))
    if decided_against == "one":
        promote(registry, one, YES)
    against = champion_of(registry)
    assert registry.promote(NAME, two, YES, against).promote
    answer = registry.promote(NAME, three, YES, against)
    assert not answer.promote
    assert answer.reasons[-1].startswith(f"FAIL: version {two} has become the champion meanwhile")
    assert champion_of(registry) == two
    assert registry.promote(NAME, three, YES, two).promote


def test_a_claim_on_a_server_is_refused_to_all_but_the_last(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = register(registry, root, "one"), register(registry, root, "two")
    monkeypatch.setattr(registry_module, "is_local", lambda _: False)

    def another_process(_: float) -> None:
        open_client(root).set_registered_model_tag(NAME, registry_module.CLAIM, "another")

    monkeypatch.setattr(registry_module.time, "sleep", another_process)
    with pytest.raises(ValueError, match="another promotion or rollback of clip4vla is under way"):
        registry.promote(NAME, one, YES, None)
    assert champion_of(registry) is None
    monkeypatch.setattr(registry_module.time, "sleep", lambda _: None)
    assert registry.promote(NAME, two, YES, None).promote


def test_a_claim_that_is_lost_while_the_decision_is_made_changes_nothing(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = register(registry, root, "one"), register(registry, root, "two")
    promote(registry, one, YES)
    monkeypatch.setattr(registry_module, "is_local", lambda _: False)
    monkeypatch.setattr(registry_module.time, "sleep", lambda _: None)
    client, looked_up = open_client(root), Registry.find_champion

    def with_another_claim(self: Registry, name: str) -> str | None:
        client.set_registered_model_tag(NAME, registry_module.CLAIM, "another")
        return looked_up(self, name)

    monkeypatch.setattr(Registry, "find_champion", with_another_claim)
    with pytest.raises(ValueError, match="another promotion or rollback of clip4vla is under way"):
        registry.promote(NAME, two, YES, one)
    assert aliases(root) == {"champion": one}
    assert "decision" not in client.get_model_version(NAME, two).tags


def test_a_model_is_read_before_it_is_claimed(registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [register(registry, root, weights) for weights in ("one", "two")]
    monkeypatch.setattr(registry_module, "is_local", lambda _: False)
    order: list[str] = []
    monkeypatch.setattr(registry_module.time, "sleep", lambda _: order.append("claim"))
    monkeypatch.setattr(Registry, "_check_model", lambda *_: order.append("read"))
    for version, champion in zip(versions, (None, versions[0]), strict=True):
        assert registry.promote(NAME, version, YES, champion).promote
    registry.rollback(NAME)
    assert order == ["read", "claim"] * 3


def test_nothing_to_roll_back(registry: Registry) -> None:
    with pytest.raises(ValueError, match="no champion before version None"):
        registry.rollback(NAME)


def test_a_version_that_was_rolled_back_is_not_promoted_again(registry: Registry, root: Path) -> None:
    one, two = register(registry, root, "one"), register(registry, root, "two")
    promote(registry, one, YES)
    promote(registry, two, YES)
    registry.rollback(NAME)
    answer = promote(registry, two, YES)
    assert not answer.promote
    assert answer.reasons[0] == YES.reasons[0]
    assert answer.reasons[1].startswith(f"FAIL: version {two} was rolled back on 20")
    assert champion_of(registry) == one
    open_client(root).delete_model_version_tag(NAME, two, "rolled_back")
    assert promote(registry, two, YES).promote
    assert aliases(root) == {"champion": two, "previous": one}


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "run.json"])
def test_an_incomplete_run_result_is_not_registered(registry: Registry, root: Path, file: str) -> None:
    run_id, directory = run_result(root, "one")
    (directory / file).unlink()
    with pytest.raises(ValueError, match=f"no run result: {file} is missing"):
        registry.register(run_id, directory, scores(), NAME)


def test_a_version_that_is_not_there_is_named(registry: Registry, root: Path) -> None:
    register(registry, root, "one")
    with pytest.raises(ValueError, match=r"^clip4vla has no version 7$"):
        promote(registry, "7", YES)


def test_a_model_without_a_record_of_how_it_reads_media_is_not_registered(registry: Registry, root: Path) -> None:
    run_id, directory = run_result(root, "one")
    tree = json.loads(config_json())
    del tree["inference"]
    (directory / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"config\.json in .* does not record how the model reads media"):
        registry.register(run_id, directory, scores(), NAME)
    assert registry.find_champion(NAME) is None


def test_a_version_carries_the_revision_of_its_training(registry: Registry, root: Path) -> None:
    run_id, directory = run_result(root, "one")
    open_client(root).set_tag(run_id, "git_revision", "abc-dirty")
    open_client(root).set_tag(run_id, "evaluation.git_revision", "def")
    version = registry.register(run_id, directory, scores(), NAME)
    assert open_client(root).get_model_version(NAME, version).tags["git_revision"] == "abc-dirty"


def test_the_champion_of_a_name_is_its_version_and_its_run(registry: Registry, root: Path) -> None:
    assert registry.champion_run(NAME) is None
    with pytest.raises(ValueError, match="clip4vla has no champion yet"):
        registry.champion_version(NAME)
    run_id, directory = run_result(root, "one")
    version = registry.register(run_id, directory, scores(), NAME)
    promote(registry, version, YES)
    assert (registry.champion_version(NAME), registry.champion_run(NAME)) == (version, run_id)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("other@champion", r"the registry at sqlite:\S+ has no model other"),
        ("other/1", r"the registry at sqlite:\S+ has no model other"),
        ("clip4vla@champion", "clip4vla has no version with the alias champion"),
        ("clip4vla@nonesuch", "clip4vla has no version with the alias nonesuch"),
        ("clip4vla/2", "clip4vla has no version 2"),
        *(
            (wrong, rf"models:/{re.escape(wrong)} is neither models:/NAME@ALIAS nor models:/NAME/VERSION")
            for wrong in (
                "",
                "clip4vla",
                "clip4vla/",
                "clip4vla@",
                "@champion",
                "clip4vla/one",
                "a/b/1",
                "it's@champion",
            )
        ),
    ],
)
def test_an_unknown_model_version_or_alias_is_one_sentence(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch, reference: str, message: str
) -> None:
    register(registry, root, "one")
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match=f"^{message}$"):
        clip4vla.load(f"models:/{reference}")


@pytest.mark.usefixtures("complete_models")
def test_what_is_fetched_is_the_run_result_without_the_code_that_serves_it(
    registry: Registry, root: Path, tmp_path: Path
) -> None:
    directory = save_retrieval(tmp_path / "run")
    version = registry.register(finished_run(root, directory), directory, scores(), NAME)
    fetched = registry.fetch(NAME, version, tmp_path / "fetched")
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        path.name: path.read_bytes() for path in directory.iterdir()
    }
    assert [path.name for path in fetched.parent.iterdir() if path != fetched] == ["MLmodel"]


@pytest.mark.usefixtures("complete_models")
def test_the_champion_is_loaded_by_its_name(
    registry: Registry, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_retrieval(tmp_path / "run")
    version = registry.register(finished_run(root, directory), directory, scores(), NAME)
    promote(registry, version, YES)
    monkeypatch.chdir(root)
    video = write_video(tmp_path / "one.mp4", 0)
    expected = clip4vla.load(directory)
    for source in (f"models:/{NAME}@champion", f"models:/{NAME}/{version}"):
        model = clip4vla.load(source)
        assert model.inference == INFERENCE
        np.testing.assert_array_equal(model.encode_text(["a cow"]), expected.encode_text(["a cow"]))
        np.testing.assert_array_equal(model.encode_media([video]), expected.encode_media([video]))


@pytest.mark.usefixtures("complete_models")
def test_a_captioning_version_has_the_beam_search_that_it_was_registered_with(
    registry: Registry, root: Path, tmp_path: Path
) -> None:
    directory = save_captioning(tmp_path / "run")
    search = BeamSearchConfig(beam=2, length_penalty=0.5)
    version = registry.register(finished_run(root, directory), directory, scores(), NAME, search)
    fetched = registry.fetch(NAME, version, tmp_path / "fetched")
    assert read_version_inference(fetched) == CAPTIONING_INFERENCE.with_beam_search(search)
    assert (
        load_version(root, f"{NAME}/{version}").inference.generation
        == CAPTIONING_INFERENCE.with_beam_search(search).generation
    )


@pytest.mark.parametrize("damage", ["", "no JSON", "[]", "null", '{"role": "finetuning"}'])
def test_a_damaged_description_of_a_corpus_is_one_sentence(registry: Registry, root: Path, damage: str) -> None:
    run_id, directory = run_result(root, "one")
    facts = {"role": "finetuning", "version": None, "license": "mit", "source": None}
    version = registry.register(run_id, directory, scores(), NAME, corpora={"mine": facts})
    assert registry.describe(NAME, version).corpora == {"mine": facts}
    open_client(root).set_model_version_tag(NAME, version, "corpus.mine", damage)
    with pytest.raises(ValueError, match=rf"the tag 'corpus.mine' of {NAME} version {version} is damaged: correct or"):
        registry.describe(NAME, version)


@pytest.mark.parametrize("name", ["it's", "a model", "", "x' or name like '%"])
def test_what_is_no_name_of_a_model_is_one_sentence(registry: Registry, name: str) -> None:
    for use in (registry.champion_version, registry.rollback, lambda name: registry.old_versions(name, 1)):
        with pytest.raises(ValueError, match=f"{re.escape(repr(name))} is no name of a model"):
            use(name)


def two_champions(registry: Registry, root: Path) -> tuple[str, str]:
    """A champion and the one before it; (previous, champion)."""
    one, two = register(registry, root, "one"), register(registry, root, "two")
    promote(registry, one, YES)
    promote(registry, two, YES)
    return one, two


def test_a_lost_alias_does_not_lose_the_champion(
    registry: Registry, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = two_champions(registry, root)
    open_client(root).delete_registered_model_alias(NAME, "champion")
    assert registry.champion_version(NAME) == champion_of(registry) == two
    assert registry.resolve(f"{NAME}@champion") == (NAME, two)
    assert registry.fetch(NAME, two, tmp_path / "fetched").is_dir()
    assert "clip4vla has lost its alias 'champion': version 2 was the last" in caplog.text
    assert registry.rollback(NAME) == one
    assert aliases(root) == {"champion": one}


def test_a_lost_alias_of_the_one_before_does_not_hinder_a_rollback(registry: Registry, root: Path) -> None:
    one, _ = two_champions(registry, root)
    open_client(root).delete_registered_model_alias(NAME, "previous")
    assert registry.rollback(NAME) == one


def test_a_deleted_champion_is_one_sentence_and_the_one_before_can_be_gone_back_to(
    registry: Registry, root: Path
) -> None:
    one, two = two_champions(registry, root)
    open_client(root).delete_model_version(NAME, two)
    for call in (registry.champion_version, registry.champion_run, registry.find_champion):
        with pytest.raises(ValueError, match=r"^version 2, the champion of clip4vla, was deleted: `clip4vla rollback"):
            call(NAME)
    assert registry.rollback(NAME) == one
    assert champion_of(registry) == one


def test_a_rollback_to_a_deleted_version_moves_nothing(registry: Registry, root: Path) -> None:
    one, two = two_champions(registry, root)
    open_client(root).delete_model_version(NAME, one)
    with pytest.raises(ValueError, match=r"^clip4vla has no champion before version 2 to go back to$"):
        registry.rollback(NAME)
    assert aliases(root) == {"champion": two}
    assert "rolled_back" not in open_client(root).get_model_version(NAME, two).tags


def test_a_rollback_past_a_deleted_version_is_whole(registry: Registry, root: Path) -> None:
    one, two = two_champions(registry, root)
    three = register(registry, root, "three")
    promote(registry, three, YES)
    open_client(root).delete_model_version(NAME, one)
    assert registry.rollback(NAME) == two
    assert aliases(root) == {"champion": two}


def remove_weights(root: Path, weights: str) -> None:
    [kept] = [path for path in (root / "mlruns/artifacts").rglob("model.safetensors") if weights in load_file(path)]
    kept.unlink()


def test_a_rollback_or_promotion_to_a_model_that_is_gone_moves_nothing(registry: Registry, root: Path) -> None:
    one, two = two_champions(registry, root)
    three = register(registry, root, "three")
    remove_weights(root, "one")
    remove_weights(root, "three")
    with pytest.raises(ValueError, match=r"^the artifacts of clip4vla version 1 are gone or damaged: "):
        registry.rollback(NAME)
    with pytest.raises(ValueError, match=r"^the artifacts of clip4vla version 3 are gone or damaged: "):
        promote(registry, three, YES)
    assert aliases(root) == {"champion": two, "previous": one}
    assert "rolled_back" not in open_client(root).get_model_version(NAME, two).tags
    assert "decision" not in open_client(root).get_model_version(NAME, three).tags


@pytest.mark.parametrize("damage", ["tag", "files", "ranks", "content"])
def test_scores_that_are_gone_are_one_sentence_and_can_be_replaced(registry: Registry, root: Path, damage: str) -> None:
    _, version = two_champions(registry, root)
    if damage == "tag":
        open_client(root).delete_model_version_tag(NAME, version, "scores")
    for path in (root / "mlruns/artifacts").rglob("*"):
        if path.parent.parent.name != "scores":
            continue
        if damage == "files" or (damage == "ranks" and path.name == "ranks.parquet"):
            path.unlink()
        elif damage == "content":
            path.write_bytes(b"{")
    with pytest.raises(ValueError, match=r"^the scores of clip4vla version 2 are gone"):
        registry.scores(NAME, version)
    assert registry.champion_version(NAME) == version
    registry.replace_scores(NAME, version, scores(45))
    assert registry.scores(NAME, version).values == scores(45).values


def test_a_lost_content_tag_costs_a_warning(
    registry: Registry, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, two = two_champions(registry, root)
    open_client(root).delete_model_version_tag(NAME, two, "content")
    assert registry.fetch(NAME, two, tmp_path / "fetched").is_dir()
    assert "version 2 has lost its tag 'content': its artifacts can't be checked" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_registered(registry: Registry, root: Path, value: float) -> None:
    run_id, directory = run_result(root, "one")
    save_file({"good": torch.ones(2), "bad": torch.tensor([1.0, value])}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors has weights that aren't finite, in bad$"):
        registry.register(run_id, directory, scores(), NAME)
    assert registry.find_champion(NAME) is None


def test_weights_that_are_not_finite_are_not_promoted(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, directory = run_result(root, "one")
    save_file({"bad": torch.tensor([float("nan")])}, directory / "model.safetensors")
    with monkeypatch.context() as patch:  # as an earlier version registered it
        patch.setattr("clip4vla.model.pretrained.read_weights", lambda _: {})
        version = registry.register(run_id, directory, scores(), NAME)
    with pytest.raises(ValueError, match="weights that aren't finite, in bad"):
        promote(registry, version, YES)
    assert champion_of(registry) is None


def versions(root: Path) -> set[str]:
    return {str(version.version) for version in open_client(root).search_model_versions(f"name = '{NAME}'")}


def weights_kept(root: Path) -> set[str]:
    return {next(iter(load_file(path))) for path in (root / "mlruns/artifacts").rglob("model.safetensors")}


def eight_versions(registry: Registry, root: Path) -> None:
    """Versions 1 to 8: 2 is the champion before 3, 3 the champion, 4 was rolled back, 5 has an alias of its own."""
    for weights in ("one", "two", "three", "four", "five", "six", "seven", "eight"):
        register(registry, root, weights)
    for version in ("2", "3", "4"):
        promote(registry, version, YES)
    registry.rollback(NAME)
    open_client(root).set_registered_model_alias(NAME, "demo", "5")


def test_old_versions_go_with_their_models_and_those_that_are_needed_stay(registry: Registry, root: Path) -> None:
    assert registry.old_versions(NAME, 1) == registry.remove_old_versions(NAME, 1) == []
    eight_versions(registry, root)
    assert registry.old_versions(NAME, 10) == []
    old = registry.old_versions(NAME, 2)
    assert [version.version for version in old] == ["1", "6"]
    sizes = {path.stat().st_size for path in (root / "mlruns/artifacts").rglob("model.safetensors")}
    assert all(version.size > max(sizes) for version in old)
    assert len(versions(root)) == 8, "listing removes nothing"
    assert registry.remove_old_versions(NAME, 2) == old
    assert versions(root) == {"2", "3", "4", "5", "7", "8"}
    assert weights_kept(root) == {"two", "three", "four", "five", "seven", "eight"}
    assert registry.remove_old_versions(NAME, 2) == []
    assert aliases(root) == {"champion": "3", "previous": "2", "demo": "5"}
    assert champion_of(registry) == "3"
    assert registry.rollback(NAME) == "2"
    assert register(registry, root, "one") == "9", "a model that was removed can be registered again"


def test_the_champion_stays_when_its_alias_is_lost(registry: Registry, root: Path) -> None:
    eight_versions(registry, root)
    for alias in ("champion", "previous"):
        open_client(root).delete_registered_model_alias(NAME, alias)
    registry.remove_old_versions(NAME, 1)
    assert versions(root) == {"2", "3", "4", "5", "8"}


def test_a_version_whose_model_is_gone_is_removed_like_others(registry: Registry, root: Path) -> None:
    eight_versions(registry, root)
    client = open_client(root)
    client.delete_logged_model(client.get_model_version(NAME, "1").source.removeprefix("models:/"))
    remove_weights(root, "six")
    assert [version.version for version in registry.remove_old_versions(NAME, 1)] == ["1", "6", "7"]
    assert versions(root) == {"2", "3", "4", "5", "8"}


@pytest.mark.parametrize("after", [False, True])
def test_a_removal_that_is_killed_anywhere_is_completed_by_the_next(root: Path, tmp_path: Path, after: bool) -> None:
    for weights in ("one", "two", "three"):
        register(Registry(root), root, weights)
    promote(Registry(root), "3", YES)
    for dies_at in range(1, 100):
        trial = copy_store(root, tmp_path / f"trial{dies_at}")
        try:
            killed_at(trial, dies_at, after).remove_old_versions(NAME, 1)
        except Killed:
            Registry(trial).remove_old_versions(NAME, 1)
        else:
            break
        assert versions(trial) == {"3"}
        assert weights_kept(trial) == {"three"}
    assert dies_at == 5


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_store_in_another_folder_has_its_champion_with_scores_and_goes_on(
    registry: Registry, root: Path, tmp_path: Path, how: str
) -> None:
    one, two = two_champions(registry, root)
    elsewhere = tmp_path / "another folder, with ü"
    shutil.copytree(root, elsewhere)
    if how == "moved":
        shutil.rmtree(root)
    moved = Registry(elsewhere)
    assert champion_of(moved) == two
    fetched = moved.fetch(NAME, two, tmp_path / "fetched")
    assert load_file(fetched / "model.safetensors").keys() == {"two"}
    three = register(moved, elsewhere, "three")
    assert promote(moved, three, YES).promote
    assert moved.rollback(NAME) == two
    assert moved.rollback(NAME) == one
    if how == "copied":
        assert champion_of(registry) == two
        assert versions(root) == {one, two}
        assert weights_kept(root) == {"one", "two"}


class Killed(BaseException):
    """Stands for kill -9: no code of ours catches it."""


class MortalClient:
    """An MLflow client that is killed at the n-th change, before or after the change is made."""

    CHANGES = ("create_", "log_", "finalize_", "set_", "update_", "delete_")

    def __init__(self, client: MlflowClient, dies_at: int, after: bool) -> None:
        self._client, self._left, self._after = client, dies_at, after

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._client, name)
        return self._mortal(method) if name.startswith(self.CHANGES) else method

    def _mortal(self, method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed
            result = method(*args, **kwargs)
            if self._left == 0:
                raise Killed
            return result

        return call


def killed_at(root: Path, dies_at: int, after: bool) -> Registry:
    registry = Registry(root)
    registry._client = MortalClient(registry._client, dies_at, after)  # type: ignore[assignment]
    return registry


@pytest.mark.parametrize("after", [False, True])
def test_a_promotion_that_is_killed_anywhere_is_completed_by_the_next(root: Path, tmp_path: Path, after: bool) -> None:
    old = register(Registry(root), root, "old")
    promote(Registry(root), old, YES)
    run_id, directory = run_result(root, "new")

    def attempt(registry: Registry) -> Decision:
        version = registry.register(run_id, directory, scores(60), NAME)
        return promote(registry, version, YES)

    deaths = 0
    for dies_at in range(1, 100):
        trial = copy_store(root, tmp_path / f"trial{dies_at}")
        healthy = Registry(trial)
        try:
            attempt(killed_at(trial, dies_at, after))
        except Killed:
            deaths += 1
        else:
            break
        assert champion_of(healthy) in (old, "2"), "there is a champion at every moment, and it has its scores"
        assert attempt(healthy) == YES, "with its reasons"
        assert aliases(trial) == {"champion": "2", "previous": old}
        assert len(open_client(trial).search_model_versions(f"name = '{NAME}'")) == 2
        assert healthy.find_champion(NAME) == "2"
        assert healthy.scores(NAME, "2").values["text_to_clip/both/R@1"] == 60.0
    assert deaths > 8


@pytest.mark.parametrize("after", [False, True])
def test_a_rollback_that_is_killed_anywhere_is_completed_by_the_next(root: Path, tmp_path: Path, after: bool) -> None:
    for weights in ("one", "two", "three"):
        promote(Registry(root), register(Registry(root), root, weights), YES)
    deaths = 0
    for dies_at in range(1, 100):
        trial = copy_store(root, tmp_path / f"trial{dies_at}")
        try:
            killed_at(trial, dies_at, after).rollback(NAME)
        except Killed:
            deaths += 1
        else:
            break
        state = aliases(trial)
        assert state["champion"] in ("2", "3")
        if state != {"champion": "2", "previous": "1"}:
            assert Registry(trial).rollback(NAME) == "2"
        assert aliases(trial) == {"champion": "2", "previous": "1"}
    assert deaths == 4
