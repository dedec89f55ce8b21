"""The description of a training: its fingerprint, its order of clips, the model it starts from, and its result."""

from pathlib import Path

import pytest
import torch

from benchmarks.clips import write_clips
from clip4vla.clips.dataset import ClipDataset
from clip4vla.config import CaptioningConfig, OptimizerConfig, RetrievalConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.pretrained import load_model, read_inference_config, save_model
from clip4vla.model.tokenizer import Tokenizer
from clip4vla.training.checkpoints import CheckpointMetadata
from clip4vla.training.memory import MemoryPlan
from clip4vla.training.objectives import build_objective
from clip4vla.training.spec import TrainSpec, read_run
from clip4vla.training.trainer import build_model, build_sampler, choose_plan, clip_transform, write_result
from tests.training.small_training import CLIPS
from tests.training.specs import make_spec
from tests.training.tiny import build, make_batch

SETTINGS = {"epochs": 1, "batch_size": 8, "frames": 1, "max_tokens": 12, "optimizer": OptimizerConfig(lr=0.01)}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    directory = tmp_path_factory.mktemp("spec")
    write_clips(directory / "train.lance")
    return make_spec(directory, "spec")


def with_training(spec: TrainSpec, **changes: object) -> TrainSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update=changes)})


def test_a_spec_is_read_as_it_was_written(spec: TrainSpec, tmp_path: Path) -> None:
    spec.write(tmp_path / "spec.json")
    assert TrainSpec.read(tmp_path / "spec.json") == spec
    (tmp_path / "spec.json").write_text('{"task": "pretraining"}')
    with pytest.raises(
        ValueError, match=r"spec\.json is no training spec: [0-9]+ validation errors for TrainSpec\nseed"
    ):
        TrainSpec.read(tmp_path / "spec.json")


def test_what_decides_the_weights_decides_the_fingerprint(spec: TrainSpec, tmp_path: Path) -> None:
    save_model(build(), tmp_path)
    started = spec.model_copy(update={"start_from": tmp_path})
    others = [
        spec.model_copy(update={"seed": 4}),
        spec.model_copy(update={"audio_token": "both"}),
        with_training(spec, epochs=99),
        with_training(spec, optimizer=spec.training.optimizer.model_copy(update={"lr": 0.5})),
        spec.model_copy(update={"model": spec.model.model_copy(update={"fusion": "sequence"})}),
        spec.model_copy(update={"trainer": spec.trainer.model_copy(update={"precision": "bf16"})}),
        started,
    ]
    fingerprints = {other.fingerprint() for other in others}
    save_model(build(fusion="sequence"), tmp_path)
    fingerprints |= {started.fingerprint(), spec.fingerprint()}
    assert len(fingerprints) == len(others) + 2


def test_clips_that_were_written_again_have_another_fingerprint(tmp_path: Path) -> None:
    write_clips(tmp_path / "train.lance")
    before = make_spec(tmp_path, "spec").fingerprint()
    assert make_spec(tmp_path, "spec").fingerprint() == before
    write_clips(tmp_path / "train.lance", mode="overwrite")
    assert make_spec(tmp_path, "spec").fingerprint() != before


def test_neither_the_machine_nor_directories_nor_inference_change_the_fingerprint(spec: TrainSpec) -> None:
    trainer = spec.trainer.model_copy(update={"ranks": 8, "zero_stage": 2, "log_every": 7, "loader_workers": 3})
    inference = spec.inference.model_copy(update={"max_tokens": 40})
    elsewhere = {"trainer": trainer, "out": Path("there"), "checkpoints": Path("c"), "run_id": "1"}
    assert spec.model_copy(update=elsewhere | {"inference": inference}).fingerprint() == spec.fingerprint()


def test_auto_is_chosen_by_the_budget_and_taken_again_with_a_checkpoint(
    spec: TrainSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip4vla.training.trainer.dist.get_world_size", lambda: 1)
    spec = with_training(spec, micro_batch_size="auto")
    spec = spec.model_copy(update={"trainer": spec.trainer.model_copy(update={"memory_gb": 8.0})})
    objective, model = build_objective(spec.training, spec.audio_token), build()

    def plan(spec: TrainSpec, found: CheckpointMetadata | None) -> tuple[MemoryPlan, str]:
        return choose_plan(spec, model, objective, 12, found, torch.device("cpu"))

    chosen, line = plan(spec, None)
    assert chosen == MemoryPlan(12)
    assert "of the 8.0 GB of a rank, micro-batches of 12, 0 of 4 blocks recomputed, Adam's moments in memory" in line
    assert plan(spec, CheckpointMetadata(3, 1, 0, micro_batch_size=3))[0] == MemoryPlan(3)
    assert plan(with_training(spec, micro_batch_size=2), None)[0] == MemoryPlan(2)
    too_little = spec.model_copy(update={"trainer": spec.trainer.model_copy(update={"memory_gb": 0.5})})
    with pytest.raises(
        ValueError, match=r"a micro-batch of 1 takes at least 1\.\d GB of a rank, which has 500 MB: a smaller"
    ):
        plan(too_little, None)


def test_the_result_has_the_weights_how_media_are_read_and_the_provenance_of_the_start(
    spec: TrainSpec, tmp_path: Path
) -> None:
    spec = spec.model_copy(update={"out": tmp_path / "result", "run_id": "4711"})
    model, origin = build(), {"git_revision": "abc", "dvc_lock": "def", "hardware": "1 x CPU"}
    weights = {name: value + 1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    write_result(spec, model, weights, {"loss": 0.5}, 2, origin)
    assert all(torch.equal(value, weights[name]) for name, value in load_model(spec.out).state_dict().items())
    assert read_inference_config(spec.out) == spec.inference
    facts = {"task": "pretraining", "audio_token": "sample", "world_size": 2, "run_id": "4711"}
    assert read_run(spec.out) == {**facts, "metrics": {"loss": 0.5}, **origin}


def test_a_directory_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no finished run: run\.json is missing"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"run_id": 3}', '{"run_id": ["a"]}'])
def test_a_damaged_note_of_a_run_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json isn't of a finished run: it has no run_id"):
        read_run(tmp_path)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_ranks_that_can_share_the_batch_has_the_same_order(spec: TrainSpec, world_size: int) -> None:
    dataset = ClipDataset([corpus.clips for corpus in spec.corpora])
    shared, alone = build_sampler(spec, dataset, world_size), build_sampler(spec, dataset, 1)
    assert shared == alone
    assert shared.indices(3).tolist() == alone.indices(3).tolist()


def test_a_batch_that_ranks_cannot_share_equally_is_refused(spec: TrainSpec) -> None:
    dataset = ClipDataset([corpus.clips for corpus in spec.corpora])
    with pytest.raises(ValueError, match=r"pretraining\.batch_size is 8, which 3 ranks can't share equally"):
        build_sampler(spec, dataset, 3)
    with pytest.raises(ValueError, match=f"{CLIPS} clips can't be shared among 32 ranks"):
        build_sampler(with_training(spec, batch_size=32), dataset, 32)


def test_fewer_clips_than_a_batch_are_one_batch(spec: TrainSpec) -> None:
    dataset = ClipDataset([corpus.clips for corpus in spec.corpora])
    assert build_sampler(with_training(spec, batch_size=300), dataset, 3).clips_per_step == 15


def test_a_training_starts_from_a_run_result_but_keeps_its_own_settings(spec: TrainSpec, tmp_path: Path) -> None:
    before = build()
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(1.0)
    save_model(before, tmp_path)
    config = spec.model.model_copy(update={"temperature": "fixed"})
    model = build_model(spec.model_copy(update={"start_from": tmp_path, "model": config}))
    assert model.training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.state_dict().items())
    assert not model.logit_scale.requires_grad
    assert model.scale().item() == 100


def test_a_new_fusion_starts_from_the_run_result_s_text_tower(spec: TrainSpec, tmp_path: Path) -> None:
    before = build()
    save_model(before, tmp_path)
    config = spec.model.model_copy(update={"fusion": "sequence", "fusion_layers": 1})
    model = build_model(spec.model_copy(update={"start_from": tmp_path, "model": config}))
    assert model.fusion is not None
    block, lender = model.fusion.transformer.resblocks[0], before.clip.transformer.resblocks[0]
    assert torch.equal(block.mlp.c_fc.weight, lender.mlp.c_fc.weight)


def test_a_fusion_of_another_depth_is_refused(spec: TrainSpec, tmp_path: Path) -> None:
    save_model(build(fusion="sequence"), tmp_path)
    config = spec.model.model_copy(update={"fusion": "sequence", "fusion_layers": 1})
    with pytest.raises(ValueError, match=r"the fusion of .* doesn't fit"):
        build_model(spec.model_copy(update={"start_from": tmp_path, "model": config}))


def test_experts_start_as_the_mean_of_the_run_result_or_with_its_own(spec: TrainSpec, tmp_path: Path) -> None:
    before = build()
    save_model(before, tmp_path / "mean")
    config = spec.model.model_copy(update={"fusion": "experts"})
    of_experts = spec.model_copy(update={"task": "retrieval", "model": config})
    model = build_model(of_experts.model_copy(update={"start_from": tmp_path / "mean"}))
    fresh = Clip4Vla(config, spec.audio, before.architecture).experts.state_dict()
    assert torch.equal(model.audio.proj, before.audio.proj)
    assert torch.equal(model.clip.text_projection, before.clip.text_projection)
    drawn = {name for name, value in model.experts.state_dict().items() if not torch.equal(value, fresh[name])}
    assert drawn <= {"texts.keys"}
    batch = make_batch(4, 0)
    found = model(batch, audio_token="both", names=("text", "query"))
    torch.testing.assert_close(
        found.query.unflatten(2, (3, -1)),
        found.text.unsqueeze(2) * torch.tensor([2, 1, 1]).unsqueeze(1) / 6**0.5,
    )
    with torch.no_grad():
        model.experts.clips.missing.add_(1)
    save_model(model, tmp_path / "experts")
    again = build_model(of_experts.model_copy(update={"start_from": tmp_path / "experts"}))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_experts_start_from_scratch_as_the_mean(spec: TrainSpec) -> None:
    config = spec.model.model_copy(update={"architecture": "stamp-small", "fusion": "experts"})
    model = build_model(spec.model_copy(update={"task": "retrieval", "model": config}))
    assert model.training
    assert torch.equal(model.experts.texts.heads, torch.eye(128).expand(3, -1, -1))
    torch.testing.assert_close(model.experts.texts.gate.bias.exp(), torch.tensor([0.5, 0.25, 0.25]))
    assert not model.experts.texts.gate.weight.any()
    assert not model.experts.clips.missing.any()


@pytest.mark.parametrize("tokens", [("both",), ("nonverbal", "verbal")])
def test_experts_of_other_tokens_are_refused(spec: TrainSpec, tmp_path: Path, tokens: tuple[str, ...]) -> None:
    save_model(build(fusion="experts"), tmp_path)
    config = spec.model.model_copy(update={"fusion": "experts", "audio_experts": tokens})
    with pytest.raises(ValueError, match=r"model\.audio_experts is \(.*\), but .* has \('verbal', 'nonverbal'\)"):
        build_model(spec.model_copy(update={"start_from": tmp_path, "model": config}))


def test_the_mean_leaves_out_the_experts_of_the_run_result(spec: TrainSpec, tmp_path: Path) -> None:
    before = build(fusion="experts")
    save_model(before, tmp_path)
    model = build_model(spec.model_copy(update={"start_from": tmp_path}))
    assert model.experts is None
    assert torch.equal(model.audio.type_embedding, before.audio.type_embedding)


def test_retrieval_alone_reads_shared_and_identical_captions(spec: TrainSpec) -> None:
    training = RetrievalConfig(
        **SETTINGS, captions_per_clip=3, shared_captions_per_clip=2, identical_captions_match=True
    )
    found = clip_transform(spec.model_copy(update={"training": training}), build())
    assert (found.captions_per_clip, found.shared_captions_per_clip, found.identical_captions_match) == (3, 2, True)
    found = clip_transform(spec, build())
    assert (found.shared_captions_per_clip, found.identical_captions_match) == (0, False)


def test_a_cross_encoder_that_is_trained_starts_from_the_run_result_s_or_at_zero(
    spec: TrainSpec, tmp_path: Path
) -> None:
    config = spec.model.model_copy(update={"fusion": "sequence"})
    before = build(fusion="sequence", has_cross_encoder=True)
    torch.nn.init.ones_(before.cross_encoder.similarity.weight)
    save_model(before, tmp_path / "with")
    save_model(build(fusion="sequence"), tmp_path / "without")

    def built(start_from: str, weight: float) -> Clip4Vla:
        changes = {"task": "retrieval", "model": config, "start_from": tmp_path / start_from}
        training = RetrievalConfig(**SETTINGS, cross_encoder=weight)
        return build_model(spec.model_copy(update=changes | {"training": training}))

    assert built("with", 0.0).cross_encoder is None
    assert (built("with", 1.0).cross_encoder.similarity.weight == 1).all()
    assert (built("without", 1.0).cross_encoder.similarity.weight == 0).all()


def captioning(spec: TrainSpec, start_from: Path, **changes: object) -> TrainSpec:
    training = CaptioningConfig(**SETTINGS, min_words=3, **changes)
    config = spec.model.model_copy(update={"architecture": "stamp-small"})
    update = {"task": "captioning", "training": training, "model": config, "start_from": start_from}
    return spec.model_copy(update=update)


@pytest.fixture(scope="module")
def stamp_small(tmp_path_factory: pytest.TempPathFactory, spec: TrainSpec) -> Path:
    """A run result whose tokens are those of real sentences."""
    directory = tmp_path_factory.mktemp("stamp-small")
    config = spec.model.model_copy(update={"architecture": "stamp-small"})
    save_model(Clip4Vla(config, spec.audio), directory)
    return directory


def test_captioning_starts_a_decoder_from_the_text_tower_with_the_vocabulary_of_the_corpus(
    spec: TrainSpec, stamp_small: Path, tmp_path: Path
) -> None:
    model = build_model(captioning(spec, stamp_small))
    decoder, clip = model.decoder, load_model(stamp_small).clip
    assert decoder is not None
    words = [Tokenizer(12).decode(token.view(1)) for token in decoder.vocabulary[2:]]
    assert {"thing", "there", "word"} <= set(words)
    assert len(words) < 20
    assert torch.equal(decoder.embedding.weight, clip.token_embedding.weight[decoder.vocabulary])
    assert torch.equal(decoder.blocks[0].mlp.c_fc.weight, clip.transformer.resblocks[0].mlp.c_fc.weight)
    assert not model.clip.token_embedding.weight.requires_grad
    save_model(model, tmp_path)
    with torch.no_grad():
        model.decoder.memory_type.add_(1)
        save_model(model, tmp_path)
    again = build_model(captioning(spec, tmp_path))
    assert torch.equal(again.decoder.memory_type, model.decoder.memory_type)
    with pytest.raises(ValueError, match=r"the caption decoder of .* doesn't fit"):
        build_model(captioning(spec, tmp_path, vocabulary="full"))


def test_a_full_vocabulary_is_that_of_clip(spec: TrainSpec, stamp_small: Path) -> None:
    model = build_model(captioning(spec, stamp_small, vocabulary="full"))
    assert model.decoder.embedding.weight.shape == model.clip.token_embedding.weight.shape


def test_a_captioning_spec_is_read_as_it_was_written(spec: TrainSpec, stamp_small: Path, tmp_path: Path) -> None:
    written = captioning(spec, stamp_small)
    written.write(tmp_path / "spec.json")
    assert TrainSpec.read(tmp_path / "spec.json") == written
    assert clip_transform(written, build_model(written)).min_words == 3
