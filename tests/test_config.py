"""params.yaml: the repository's own file is valid, and every mistake is a ValueError that names file and key."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from clip4vla.config import (
    EXPERT_TERMS,
    AudioConfig,
    BeamSearchConfig,
    CaptioningConfig,
    ClipsConfig,
    Config,
    FrozenConfig,
    GenerationConfig,
    InferenceConfig,
    OptimizerConfig,
    PretrainingConfig,
    RetrievalConfig,
    load_config,
)
from clip4vla.records import TASKS
from tests.project import REPOSITORY

FILE = REPOSITORY / "params.yaml"
TEXT = FILE.read_text(encoding="utf-8")
TREE: dict[str, Any] = yaml.safe_load(TEXT)

Tree = dict[str, Any]
Write = Callable[[Callable[[Tree], object]], Path]


def sections(config: type[FrozenConfig], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all sections whose keys are declared."""
    yield path
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, FrozenConfig):
            yield from sections(field.annotation, (*path, name))


def fields_of(path: tuple[str, ...]) -> dict[str, FieldInfo]:
    config: Any = Config
    for name in path:
        config = config.model_fields[name].annotation
    return config.model_fields


SECTIONS = list(sections(Config))


def at(tree: Tree, path: tuple[str, ...]) -> Tree:
    """The section at `path`, made if params.yaml leaves it out."""
    for key in path:
        tree = tree.setdefault(key, {})
    return tree


@pytest.fixture
def changed(tmp_path: Path) -> Write:
    """Write params.yaml with a change."""

    def write(change: Callable[[Tree], object]) -> Path:
        tree = copy.deepcopy(TREE)
        change(tree)
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return write


def put(key: str, value: object) -> Callable[[Tree], object]:
    """The change that sets the dotted `key` to `value`."""
    *section, name = key.split(".")
    return lambda tree: at(tree, tuple(section)).update({name: value})


def test_the_repository_s_own_file_is_valid() -> None:
    config = load_config(FILE)
    assert config.seed == TREE["seed"]
    assert config.corpora.keys() == TREE["corpora"].keys()
    assert config.retrieval.optimizer.lr == TREE["retrieval"]["optimizer"]["lr"]
    assert config.gates.retrieval.floors == TREE["gates"]["retrieval"]["floors"]


def test_a_config_survives_json() -> None:
    config = load_config(FILE)
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_a_task_has_a_section_and_a_gate() -> None:
    config = load_config(FILE)
    assert [config.task(task) for task in TASKS] == [config.retrieval, config.captioning]
    assert [config.gates.of(task).model_name for task in TASKS] == ["clip4vla", "clip4vla-captioning"]


@settings(deadline=None, max_examples=50)
@given(section=st.sampled_from(SECTIONS), key=st.text("abcdefghijklmnop_", min_size=1, max_size=12))
def test_an_unknown_key_anywhere_is_named(tmp_path_factory: pytest.TempPathFactory, section: Any, key: str) -> None:
    tree = copy.deepcopy(TREE)
    unknown = f"{key}_zz"
    at(tree, section)[unknown] = 1
    path = tmp_path_factory.mktemp("unknown") / "params.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(".".join((*section, unknown)))) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("section", SECTIONS, ids=".".join)
def test_a_missing_key_is_named_unless_it_has_a_default(changed: Write, section: tuple[str, ...]) -> None:
    for name, field in fields_of(section).items():
        path = changed(lambda tree, name=name: (_without_dependences(tree), at(tree, section).pop(name, None)))
        if field.is_required():
            with pytest.raises(ValueError, match=re.escape(".".join((*section, name)) + ": Field required")) as caught:
                load_config(path)
            assert str(path) in str(caught.value)
        else:
            config: Any = load_config(path)
            for part in section:
                config = getattr(config, part)
            assert getattr(config, name) == field.default


def _without_dependences(tree: Tree) -> None:
    """Set the keys whose values restrict those of others so that any of them may be missing."""
    put("clips.frames", 12)(tree)
    tree["retrieval"].update(dict.fromkeys(("shared_text_both", "shared_captions_per_clip", *EXPERT_TERMS), 0))


def test_the_defaults_are_the_published_constants() -> None:
    audio, optimizer = AudioConfig(), OptimizerConfig(lr=1e-3)
    assert (audio.sample_rate, audio.n_fft, audio.tiles, audio.mask_width) == (16_000, 512, 6, 9)
    assert (audio.freq_mask_fraction, audio.time_mask_fraction) == (0.05, 0.15)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.98), 1e-6, 0.2)
    paper = PretrainingConfig(epochs=1, batch_size=2, optimizer=optimizer)
    chosen = load_config(FILE, "paper").pretraining
    for term in ("text_audio", "video_audio", "audio_audio", "text_video", "text_text", "video_video"):
        assert getattr(paper, term) == getattr(chosen, term)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretraining.batch_size", 0),
        ("retrieval.batch_size", 1),
        ("captioning.batch_size", 1),
        ("pretraining.optimizer.lr", 0.0),
        ("pretraining.optimizer.warmup", 1.5),
        ("pretraining.text_audio", -1.0),
        ("retrieval.max_tokens", 3),
        ("trainer.zero_stage", 4),
        ("trainer.precision", "fp16"),
        ("model.fusion", "max"),
        ("audio.recipe", "loud"),
        ("clips.jpeg_quality", 101),
        ("clips.max_reject_fraction", 1.01),
        ("stampscenes.language", "en"),
        ("stampscenes.size", 97),
        ("stampscenes.voice_db", [6.0, 2.0]),
        ("stampscenes.caption_pairs", {"train": 800, "val": 60}),
        ("evaluation.bootstrap", 10),
        ("gates.retrieval.model_name", "a model"),
        ("ablation.arms", {}),
        ("model.audio_experts", []),
        ("stampscenes.unrelated_sound", 1.5),
        ("retrieval.shared_captions_per_clip", -1),
        ("gates.retrieval.never_worse_than_best_modality", -1.0),
        ("preset", 3),
        ("preset", [["paper"]]),
    ],
)
def test_a_value_out_of_range_is_named(changed: Write, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"params\.yaml is not valid:\n  {re.escape(key)}: "):
        load_config(changed(put(key, value)))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    "key",
    [
        *("retrieval.optimizer.lr", "retrieval.text_video", "clips.max_seconds", "trainer.peak_tflops"),
        *("gates.retrieval.floors.some/score", "model.audio_token"),
    ],
)
def test_a_number_that_is_not_finite_is_named(changed: Write, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"(?s)  {re.escape(key)}\S*: .*finite number"):
        load_config(changed(put(key, value)))


@pytest.mark.parametrize("key", ["seed", "stampscenes.seed", "evaluation.seed"])
def test_a_negative_seed_is_named(changed: Write, key: str) -> None:
    with pytest.raises(ValueError, match=rf"  {re.escape(key)}: Input should be greater than or equal to 0"):
        load_config(changed(put(key, -1)))


@pytest.mark.parametrize("name", ["a; rm -rf /", "$(id)", "a b", "../up", "-x", "", "a\n", "a.b"])
def test_a_corpus_name_that_a_shell_or_dvc_would_interpret_is_refused(changed: Write, name: str) -> None:
    path = changed(lambda tree: tree["corpora"].update({name: tree["corpora"]["stampscenes-captions"]}))
    with pytest.raises(ValueError, match=re.escape(f"  corpora: the corpus name {name!r} must consist of letters")):
        load_config(path)


@pytest.mark.parametrize("place", ["", "  ", "a\nb", "a\0b"])
@pytest.mark.parametrize("key", ["corpora.stampscenes-captions.media", "evaluation.labels", "model.weights"])
def test_a_path_that_is_none_is_refused(changed: Write, key: str, place: str) -> None:
    with pytest.raises(ValueError, match=rf"  {re.escape(key)}: (a path is missing|.* has a control character)"):
        load_config(changed(put(key, place)))


@pytest.mark.parametrize("place", ["data/raw/my videos", "it's", "été", "Aufnahme\u202f3", "$HOME", "${graph}"])
def test_other_paths_are_left_as_they_are(changed: Write, place: str) -> None:
    config = load_config(changed(put("corpora.stampscenes-captions.media", place)))
    assert config.corpora["stampscenes-captions"].media == place


def test_names_that_a_file_system_or_mlflow_would_refuse_after_the_training_are_refused_before(changed: Write) -> None:
    name = "n" * 101
    corpus = changed(lambda tree: tree["corpora"].update({name: tree["corpora"]["stampscenes-captions"]}))
    with pytest.raises(ValueError, match="must consist of letters, digits, '_' and '-', 100 at most"):
        load_config(corpus)
    with pytest.raises(ValueError, match=r"gates\.retrieval\.model_name: String should have at most 100 characters"):
        load_config(changed(put("gates.retrieval.model_name", name)))
    with pytest.raises(ValueError, match="license: String should have at most 1000 characters"):
        load_config(changed(put("corpora.stampscenes-captions.license", 11 * name)))


def test_both_tasks_cannot_have_one_registered_model(changed: Write) -> None:
    with pytest.raises(ValueError, match="  gates: retrieval and captioning have the same model_name 'one'"):
        load_config(changed(lambda tree: [gate.update(model_name="one") for gate in tree["gates"].values()]))


def test_every_mistake_is_reported_at_once(changed: Write) -> None:
    path = changed(lambda tree: (tree.pop("seed"), tree["model"].update(fusion="max"), tree.update(extra=1)))
    with pytest.raises(ValueError, match=r"seed: (.|\n)*model\.fusion: (.|\n)*extra: "):
        load_config(path)


SHIPPED = sorted(path.stem for path in (REPOSITORY / "presets").glob("*.yaml"))
OF_CORPORA = {
    "msrvtt": {"stampscenes-pretraining", "msrvtt"},
    "msrvtt-1ka": {"stampscenes-pretraining", "msrvtt"},
    "vatex": {"stampscenes-pretraining", "vatex"},
    "audiocaps": {"stampscenes-pretraining", "audiocaps"},
    "clotho": {"stampscenes-pretraining", "clotho"},
    "audioset+howto100m": {"audioset", "howto100m", "stampscenes-captions"},
    "unseen": {f"stampscenes-{name}" for name in ("pretraining", "captions", "voices", "sounds", "pictures")},
}
"""Corpora that are left by a preset for corpora."""


def files_of(name: str) -> list[Tree]:
    """What the file of a shipped preset holds, and before it what those hold that it names."""
    tree: Tree = yaml.safe_load((REPOSITORY / f"presets/{name}.yaml").read_text(encoding="utf-8"))
    below = tree.pop("preset", [])
    return [*(file for other in ([below] if isinstance(below, str) else below) for file in files_of(other)), tree]


def leaves(tree: Tree, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value of a tree, by its place."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*place, key))
        else:
            yield (*place, key), value


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"own-captions"}))
def test_who_starts_from_clips_weights_trains_by_the_published_optimizer(name: str, changed: Write) -> None:
    (path := changed(put("preset", name))).with_name("presets").symlink_to(REPOSITORY / "presets")
    config = load_config(path)
    optimizers = {section.optimizer.name for section in (config.pretraining, config.retrieval, config.captioning)}
    assert config.model.weights is None or optimizers == {"adamw"}


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"own-captions"}))
def test_a_preset_changes_what_it_names_and_nothing_else(name: str) -> None:
    before = dict(leaves(load_config(FILE).model_dump(mode="json")))
    after = dict(leaves(load_config(FILE, name).model_dump(mode="json")))
    named = {place: value for file in files_of(name) for place, value in leaves(file)}
    removed = {place for place, value in named.items() if value is None and place[-2] in ("corpora", "floors")}
    for place in named.keys() - removed:
        value = named[place]
        assert after[place] == (pytest.approx(value) if isinstance(value, float) else value)
    for place, value in before.items():
        if place not in named and place != ("preset",) and not any(place[: len(gone)] == gone for gone in removed):
            assert after[place] == value, place
    assert after[("preset",)] == [name]


@pytest.mark.parametrize(("name", "corpora"), OF_CORPORA.items())
def test_one_name_takes_corpora_their_places_labels_and_gates(name: str, corpora: set[str]) -> None:
    config = load_config(FILE, name)
    assert config.corpora.keys() == corpora
    assert "stampscenes-captions" in corpora or (
        (config.clips.frames, config.clips.size, config.model.weights) == (12, 256, "openai")
        and (config.evaluation.labels, config.evaluation.queries) == (None, None)
        and (config.gates.retrieval.floors, config.gates.captioning.floors) == ({}, {})
        and config.gates.retrieval.never_worse_than_best_modality is None
    )


def test_a_corpus_of_unseen_clips_needs_queries() -> None:
    assert load_config(FILE, "unseen").evaluation.queries is not None
    with pytest.raises(ValueError, match=r"stampscenes-\w+ has the role unseen, which is scored by .*queries"):
        load_config(FILE, ["unseen", "msrvtt"])


def test_presets_are_laid_over_each_other_in_their_order() -> None:
    config = load_config(FILE, ["howto100m", "msrvtt-1ka"])
    assert config.preset == ("howto100m", "msrvtt-1ka")
    assert {name: corpus.adapter for name, corpus in config.corpora.items()} == {
        "howto100m": "howto100m",
        "msrvtt": "msrvtt-1ka",
    }
    assert load_config(FILE, ["vatex", "paper-msrvtt"]).audio.tiles == 6  # below vatex already
    both = (load_config(FILE, ["mean", "paper-msrvtt"]), load_config(FILE, ["paper-msrvtt", "mean"]))
    assert [config.retrieval.batch_size for config in both] == [128, 64]


@pytest.fixture
def with_presets(changed: Write) -> Callable[..., Path]:
    """Write params.yaml with presets of its own, and name them in it."""

    def write(names: object, **presets: str) -> Path:
        path = changed(put("preset", names))
        (path.parent / "presets").mkdir()
        for name, text in presets.items():
            (path.parent / f"presets/{name}.yaml").write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pretraining: {text_smell: 1.0}", r"is not valid:\n  pretraining\.text_smell: "),
        ("retrieval: {optimizer: {lr: 0}}", r"is not valid:\n  retrieval\.optimizer\.lr: "),
        ("clips: {size: .inf}", r"is not valid:\n  clips\.size: "),
        ("clips: 3", r"is not valid:\n  clips: "),
        ("sizes: {}", r"is not valid:\n  sizes: "),
        ("corpora: {a b: {adapter: folder, role: finetuning, annotations: a, media: m}}", r"the corpus name 'a b'"),
        ("corpora: {mine: {adapter: folder, role: finetuning}}", r"corpora\.mine\.annotations: Field required"),
        ("- clips", r"is not valid:\n  \(top\): a preset has sections of params\.yaml"),
        ("", r"is not valid:\n  \(top\): "),
        ("clips: {size: 1\n", r"is not valid YAML: "),
        ("clips: {size: 72}\nclips: {size: 72}", r"is not valid YAML: the key 'clips' is there twice"),
        ("preset: other", r"is not valid:\n  preset: 'other' is none of default, fine, mine"),
        ("preset: 3", r"is not valid:\n  preset: 3 is neither a name nor a list of names"),
        ("preset: [[fine]]", r"is not valid:\n  preset: \['fine'\] is none of default, fine, mine"),
        ("preset: mine", r"is not valid:\n  preset: 'mine' leads back to itself"),
    ],
)
def test_a_mistake_in_a_preset_is_named_with_its_file(with_presets: Any, text: str, message: str) -> None:
    path = with_presets(["fine", "mine"], fine="audio: {tiles: 2}", mine=text)
    with pytest.raises(ValueError, match=rf"(?s)presets/mine\.yaml.*{message}") as caught:
        load_config(path)
    assert "fine.yaml is" not in str(caught.value)


def test_a_mistake_of_params_yaml_is_not_laid_to_a_preset(with_presets: Any) -> None:
    path = with_presets("mine", mine="audio: {tiles: 2}")
    path.write_text(path.read_text().replace("seed: 7", "seed: -7"))
    with pytest.raises(ValueError, match=r"params\.yaml is not valid:\n  seed: "):
        load_config(path)


def test_files_that_contradict_each_other_are_both_named(with_presets: Any) -> None:
    path = with_presets("mine", mine="clips: {frames: 1}")
    with pytest.raises(ValueError, match=r"params\.yaml with .*presets/mine\.yaml is not valid:\n  \(top\): retrieval"):
        load_config(path)


@pytest.mark.parametrize("name", ["paper-tiktok", "../params", "/etc/passwd", "", ".", "a b"])
def test_a_preset_without_a_file_of_its_name_is_an_error(changed: Write, name: str) -> None:
    with pytest.raises(ValueError, match=rf"params\.yaml is not valid:\n  preset: {name!r} is none of default"):
        load_config(changed(put("preset", name)))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("retrieval.cross_encoder", r"retrieval\.cross_encoder is 1, but model\.fusion is 'experts'"),
        ("evaluation.rerank", r"evaluation\.rerank is 1, but retrieval\.cross_encoder is 0: no cross encoder"),
    ],
)
def test_a_cross_encoder_that_is_not_trained_is_refused(changed: Write, key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(changed(put(key, 1)))


def test_with_a_cross_encoder_the_micro_batch_is_a_number(changed: Write) -> None:
    def change(tree: Tree) -> None:
        tree["model"]["fusion"] = "sequence"
        tree["retrieval"] |= dict.fromkeys(EXPERT_TERMS, 0) | {"cross_encoder": 1, "micro_batch_size": "auto"}

    with pytest.raises(
        ValueError, match=r"retrieval\.micro_batch_size is auto, but retrieval\.cross_encoder is 1: its"
    ):
        load_config(changed(change))


def test_muon_is_refused_where_matrices_are_not_whole(changed: Write) -> None:
    def change(tree: Tree) -> None:
        put("trainer.zero_stage", 1)(tree)
        for task in ("pretraining", "retrieval", "captioning"):
            tree[task]["optimizer"]["name"] = "muon" if task == "captioning" else "adamw"

    with pytest.raises(ValueError, match=r"captioning\.optimizer\.name is 'muon', which needs whole matrices"):
        load_config(changed(change))


@pytest.mark.parametrize(
    ("key", "value"),
    [("trainer.memory_gb", "auto"), ("trainer.memory_gb", 3.5), ("pretraining.micro_batch_size", "auto")],
)
def test_memory_may_be_automatic(changed: Write, key: str, value: object) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load_config(changed(put(key, value))), section), name) == value
    for wrong in (0, -1, "much", True, None):
        with pytest.raises(ValueError, match=rf"params\.yaml is not valid:\n  {re.escape(key)}\.number: "):
            load_config(changed(put(key, wrong)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared_text_both": 0.0}, r"shared_text_both is 0, but shared_captions_per_clip is 3: set both or neither"),
        ({"shared_captions_per_clip": 0}, r"shared_text_both is 1, but shared_captions_per_clip is 0"),
        ({"identical_captions_match": False}, r"needs retrieval\.identical_captions_match: true"),
    ],
)
def test_shared_captions_need_a_weight_and_several_right_clips(changed: Write, changes: Tree, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(changed(lambda tree: tree["retrieval"].update(changes)))


@pytest.mark.parametrize(
    "change",
    [
        put("model.fusion", "mean"),
        lambda tree: tree["retrieval"].update(shared_captions_per_clip=0, shared_text_both=0.0),
    ],
)
def test_a_loss_of_experts_needs_experts_and_shared_captions(changed: Write, change: Callable[[Tree], object]) -> None:
    for term in EXPERT_TERMS:
        weights = dict.fromkeys(EXPERT_TERMS, 0.0) | {term: 1.0}
        path = changed(lambda tree, weights=weights: (tree["retrieval"].update(weights), change(tree)))
        with pytest.raises(ValueError, match=rf"retrieval\.{term} is 1, which needs model\.fusion: experts"):
            load_config(path)


def test_identical_captions_may_match_without_shared_ones(changed: Write) -> None:
    changes = dict.fromkeys(("shared_text_both", "shared_captions_per_clip", *EXPERT_TERMS), 0)
    assert load_config(changed(lambda tree: tree["retrieval"].update(changes))).retrieval.identical_captions_match


@pytest.mark.parametrize(
    ("arm", "key"),
    [
        ({"fusion": "sum"}, "fusion"),
        ({"audio_token": "both"}, "fusion"),
        ({"fusion": "mean", "audio_token": "loud"}, "audio_token"),
        ({"fusion": "experts", "audio_experts": []}, "audio_experts"),
        ({"fusion": "experts", "tokens": ["verbal"]}, "tokens"),
    ],
)
def test_a_mistake_in_an_arm_is_named(changed: Write, arm: Tree, key: str) -> None:
    with pytest.raises(ValueError, match=rf"params\.yaml is not valid:\n  ablation\.arms\.mine\.{key}"):
        load_config(changed(put("ablation.arms", {"mine": arm})))


@pytest.mark.parametrize("name", ["a b", "$(id)", "../up", ""])
def test_an_arm_whose_name_is_no_directory_is_refused(changed: Write, name: str) -> None:
    path = changed(put("ablation.arms", {name: {"fusion": "mean"}}))
    with pytest.raises(ValueError, match=re.escape(f"ablation.arms: the arm name {name!r} must consist of letters")):
        load_config(path)


def test_the_arms_are_the_paper_s_mean_and_experts_with_and_without_tokens() -> None:
    arms = load_config(FILE).ablation.arms
    found = {(arm.fusion, arm.audio_token if arm.fusion == "mean" else arm.audio_experts) for arm in arms.values()}
    assert found == {("mean", "none"), ("mean", "both"), ("experts", ("none",)), ("experts", ("verbal", "nonverbal"))}


def test_only_retrieval_trains_experts(changed: Write) -> None:
    config = load_config(FILE)
    assert {name: config.model_of(name).fusion for name in ("pretraining", *TASKS)} == {
        "pretraining": "mean",
        "retrieval": "experts",
        "captioning": "mean",
    }
    changes = {"model": {"fusion": "sequence"}, "retrieval": dict.fromkeys(EXPERT_TERMS, 0.0)}
    sequence = load_config(changed(lambda tree: [tree[section].update(values) for section, values in changes.items()]))
    assert sequence.model_of("captioning").fusion == "sequence"


@pytest.mark.parametrize("preset", ["paper-msrvtt", "paper-vatex", "paper-audiocaps"])
def test_the_paper_s_recipes_have_no_experts_and_one_right_clip(preset: str) -> None:
    config = load_config(FILE, preset)
    assert config.model.fusion == "mean"
    assert (config.retrieval.shared_captions_per_clip, config.retrieval.identical_captions_match) == (0, False)


@pytest.mark.parametrize("name", ["frames", "inference_frames"])
@pytest.mark.parametrize("section", ["pretraining", "retrieval", "captioning"])
def test_more_frames_than_are_stored_are_refused(changed: Write, section: str, name: str) -> None:
    message = rf"{section}\.{name} is 12, but clips\.frames, the number stored, is 4"
    with pytest.raises(ValueError, match=message):
        load_config(changed(put(f"{section}.{name}", 12)))


@pytest.mark.parametrize("role", ["pretraining", "finetuning"])
def test_a_role_that_no_corpus_has_is_named(changed: Write, role: str) -> None:
    other = {"pretraining": "finetuning", "finetuning": "pretraining"}[role]
    path = changed(lambda tree: [corpus.update(role=other) for corpus in tree["corpora"].values()])
    with pytest.raises(ValueError, match=rf"none has the role {role}"):
        load_config(path)


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("\nseed: 7\n", "\nseed: 7\nseed: 8\n", "seed"),
        ("\nretrieval:\n", "\nretrieval:\n  epochs: 9\n", "epochs"),
        ("text_lr_ratio: 1.333", "text_lr_ratio: 1.333, text_lr_ratio: 1.0", "text_lr_ratio"),
        ("\nclips: {", '\n"clips": {}\nclips: {', "clips"),
    ],
)
def test_a_key_that_is_given_twice_is_named_with_its_line(tmp_path: Path, before: str, after: str, key: str) -> None:
    assert before in TEXT
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace(before, after), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"(?s)params\.yaml is not valid YAML: the key '{key}' is there twice.*line"):
        load_config(path)


def test_a_merged_mapping_may_be_changed_and_merged_again(with_presets: Any) -> None:
    text = "audio: &mine {<<: {tiles: 2, hop: 128}, tiles: 1}\nclips: {<<: {frames: 5}, frames: 6}\n"
    config = load_config(with_presets("mine", mine=text))
    assert (config.audio.tiles, config.audio.hop, config.clips.frames) == (1, 128, 6)


@pytest.mark.parametrize("text", ["seed: [1, 2", "a: b: c", "\t- x", "a: !!python/object/apply:os.getcwd []"])
def test_text_that_is_not_yaml_is_reported_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(path))} is not valid YAML: .*line [12]"):
        load_config(path)


@pytest.mark.parametrize("text", ["", "- 1", "seed"])
def test_yaml_that_is_not_a_mapping_is_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not valid:\n  \(top\): "):
        load_config(path)


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"params\.yaml"):
        load_config(tmp_path / "params.yaml")


def test_a_config_is_frozen() -> None:
    config = load_config(FILE)
    with pytest.raises(ValidationError, match="frozen"):
        config.pretraining.epochs = 5


CLIPS = ClipsConfig(frames=4, size=72)
RETRIEVAL = RetrievalConfig(epochs=1, batch_size=2, frames=2, max_tokens=20, optimizer=OptimizerConfig(lr=1e-3))
CAPTIONING = CaptioningConfig(**RETRIEVAL.model_dump(include={"epochs", "batch_size", "optimizer"}), modalities="video")


def test_inference_reads_media_and_texts_as_in_training() -> None:
    inference = InferenceConfig.of(CLIPS, RETRIEVAL)
    assert (inference.clips, inference.frames, inference.max_tokens) == (CLIPS, 2, 20)
    assert inference.generation is None
    all_frames = RETRIEVAL.model_copy(update={"inference_frames": 4})
    assert InferenceConfig.of(CLIPS, all_frames).frames == 4
    assert InferenceConfig.of(CLIPS, CAPTIONING).generation == GenerationConfig(modalities="video")


def test_another_beam_search_is_for_models_that_generate_captions() -> None:
    search = BeamSearchConfig(beam=2, length_penalty=0.5)
    captioning = InferenceConfig.of(CLIPS, CAPTIONING).with_beam_search(search)
    assert captioning.generation == GenerationConfig(modalities="video", beam=2, length_penalty=0.5)
    retrieval = InferenceConfig.of(CLIPS, RETRIEVAL)
    assert retrieval.with_beam_search(search) == retrieval


@pytest.mark.parametrize(("earlier", "modality"), [("vision", "video"), ("audio", "audio"), ("both", "both")])
def test_inference_reads_the_names_of_earlier_versions(earlier: str, modality: str) -> None:
    tree = {"clips": CLIPS.model_dump(mode="json"), "frames": 2, "words": 20}
    assert InferenceConfig.model_validate(tree) == InferenceConfig.of(CLIPS, RETRIEVAL)
    assert InferenceConfig.model_validate(tree | {"writing": None}).generation is None
    writing = {"modalities": earlier, "search": {"beam": 3, "length_penalty": 0.8}}
    found = InferenceConfig.model_validate(tree | {"writing": writing})
    assert found.generation == GenerationConfig(modalities=modality, beam=3, length_penalty=0.8)
    assert found.max_tokens == 20


@pytest.mark.parametrize("missing", ["clips", "frames", "max_tokens"])
def test_inference_without_a_default_is_an_error(missing: str) -> None:
    tree = InferenceConfig.of(CLIPS, RETRIEVAL).model_dump(mode="json")
    del tree[missing]
    with pytest.raises(ValidationError, match=rf"{missing}\n  Field required"):
        InferenceConfig.model_validate(tree)


def numbers(schema: Tree, place: str) -> Iterator[tuple[str, Tree]]:
    """Every number of a JSON schema, by its place."""
    if schema.get("type") in ("integer", "number"):
        yield place, schema
    for key, value in schema.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield from numbers(part, f"{place}.{key}")


def test_every_number_has_a_least_and_a_greatest_value() -> None:
    found = dict(numbers(Config.model_json_schema(), ""))
    assert len(found) > 60
    for place, schema in found.items():
        assert {"minimum", "exclusiveMinimum", "ge", "gt"} & schema.keys(), place
        assert {"maximum", "exclusiveMaximum", "le", "lt"} & schema.keys(), place


@pytest.mark.parametrize("value", [True, 10**30, -(10**30), "many"])
@pytest.mark.parametrize(
    "key",
    [
        *("seed", "retrieval.epochs", "retrieval.batch_size", "retrieval.optimizer.lr", "clips.size", "audio.tiles"),
        *("trainer.ranks", "evaluation.bootstrap", "gates.retrieval.min_clips", "gates.captioning.floors.a/score"),
    ],
)
def test_what_is_no_sensible_number_is_named(changed: Write, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"params\.yaml is not valid:\n  {re.escape(key)}: "):
        load_config(changed(put(key, value)))


def test_a_rate_without_a_point_is_read_as_a_number(changed: Write) -> None:
    assert load_config(changed(put("retrieval.optimizer.lr", "1e-3"))).retrieval.optimizer.lr == 1e-3
