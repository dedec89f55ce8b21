"""What a training is told: its fingerprint, its order of clips, and the model it starts from."""

from pathlib import Path

import pytest
import torch

from benchmarks.clips import write_clips
from benchmarks.small_training import CLIPS
from clip4vla.clips.loader import ClipStore
from clip4vla.model.checkpoints import load_model, save_model
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.text import Tokenizer
from clip4vla.params import load_params
from clip4vla.training.job import Job, data_version, read_run
from clip4vla.training.loop import build_model, clip_view, order_clips
from tests.project import REPOSITORY
from tests.training.jobs import make_job
from tests.training.tiny import build


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    directory = tmp_path_factory.mktemp("job")
    write_clips(directory / "train.lance")
    return make_job(directory, "job")


def with_training(job: Job, **changes: object) -> Job:
    return job.model_copy(update={"training": job.training.model_copy(update=changes)})


def test_a_job_is_read_as_it_was_written(job: Job, tmp_path: Path) -> None:
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    (tmp_path / "job.json").write_text('{"task": "pretrain"}')
    with pytest.raises(ValueError, match=r"job\.json is no training job: [0-9]+ validation errors for Job\nseed"):
        Job.read(tmp_path / "job.json")


def test_what_decides_the_weights_decides_the_fingerprint(job: Job, tmp_path: Path) -> None:
    save_model(build(), tmp_path)
    started = job.model_copy(update={"start_from": tmp_path})
    others = [
        job.model_copy(update={"seed": 4}),
        job.model_copy(update={"audio_token": "both"}),
        with_training(job, epochs=99),
        with_training(job, optimizer=job.training.optimizer.model_copy(update={"lr": 0.5})),
        job.model_copy(update={"model": job.model.model_copy(update={"fusion": "sequence"})}),
        job.model_copy(update={"trainer": job.trainer.model_copy(update={"precision": "bf16"})}),
        started,
    ]
    fingerprints = {other.fingerprint() for other in others}
    save_model(build(fusion="sequence"), tmp_path)
    fingerprints |= {started.fingerprint(), job.fingerprint()}
    assert len(fingerprints) == len(others) + 2


def test_clips_written_anew_have_another_fingerprint(tmp_path: Path) -> None:
    write_clips(tmp_path / "train.lance")
    before, version = make_job(tmp_path, "job").fingerprint(), data_version(tmp_path / "train.lance")
    assert (make_job(tmp_path, "job").fingerprint(), data_version(tmp_path / "train.lance")) == (before, version)
    write_clips(tmp_path / "train.lance", mode="overwrite")
    assert make_job(tmp_path, "job").fingerprint() != before
    assert data_version(tmp_path / "train.lance") != version


def test_the_machine_and_the_places_do_not(job: Job) -> None:
    trainer = job.trainer.model_copy(update={"ranks": 8, "zero_stage": 2, "log_every": 7, "loader_workers": 3})
    elsewhere = {"trainer": trainer, "out": Path("there"), "checkpoints": Path("c"), "run_id": "1"}
    assert job.model_copy(update=elsewhere).fingerprint() == job.fingerprint()


def test_a_directory_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no finished run: run\.json is missing"):
        read_run(tmp_path)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_ranks_that_shares_the_batch_sees_the_same_clips(job: Job, world_size: int) -> None:
    store = ClipStore([corpus.clips for corpus in job.corpora])
    order, alone = order_clips(job, store, world_size), order_clips(job, store, 1)
    assert order == alone
    assert order.indices(3).tolist() == alone.indices(3).tolist()


def test_a_batch_that_ranks_cannot_share_equally_is_refused(job: Job) -> None:
    store = ClipStore([corpus.clips for corpus in job.corpora])
    with pytest.raises(ValueError, match=r"pretrain\.batch_size is 8, which 3 ranks can't share equally"):
        order_clips(job, store, 3)
    with pytest.raises(ValueError, match=f"{CLIPS} clips can't be shared among 32 ranks"):
        order_clips(with_training(job, batch_size=32), store, 32)


def test_fewer_clips_than_a_batch_are_one_batch(job: Job) -> None:
    store = ClipStore([corpus.clips for corpus in job.corpora])
    assert order_clips(with_training(job, batch_size=300), store, 3).clips_per_step == 15


def test_a_training_starts_from_a_run_result_but_keeps_its_own_settings(job: Job, tmp_path: Path) -> None:
    before = build()
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(1.0)
    save_model(before, tmp_path)
    params = job.model.model_copy(update={"temperature": "fixed"})
    model = build_model(job.model_copy(update={"start_from": tmp_path, "model": params}))
    assert model.training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.state_dict().items())
    assert not model.logit_scale.requires_grad
    assert model.scale().item() == 100


def test_a_new_fusion_starts_from_the_run_result_s_text_tower(job: Job, tmp_path: Path) -> None:
    before = build()
    save_model(before, tmp_path)
    params = job.model.model_copy(update={"fusion": "sequence", "fusion_layers": 1})
    model = build_model(job.model_copy(update={"start_from": tmp_path, "model": params}))
    assert model.fusion is not None
    block, lender = model.fusion.transformer.resblocks[0], before.clip.transformer.resblocks[0]
    assert torch.equal(block.mlp.c_fc.weight, lender.mlp.c_fc.weight)


def test_a_fusion_of_another_depth_is_refused(job: Job, tmp_path: Path) -> None:
    save_model(build(fusion="sequence"), tmp_path)
    params = job.model.model_copy(update={"fusion": "sequence", "fusion_layers": 1})
    with pytest.raises(ValueError, match=r"the fusion of .* doesn't fit"):
        build_model(job.model_copy(update={"start_from": tmp_path, "model": params}))


def test_a_score_of_pairs_is_new_or_the_run_result_s_where_it_is_taught(job: Job, tmp_path: Path) -> None:
    training = load_params(REPOSITORY / "params.yaml").finetune
    params = job.model.model_copy(update={"fusion": "sequence"})
    before = build(fusion="sequence", scores_pairs=True)
    torch.nn.init.ones_(before.scorer.similarity.weight)
    for start_from, scored in (("with", before), ("without", build(fusion="sequence"))):
        save_model(scored, tmp_path / start_from)
    given = {"task": "finetune", "model": params}

    def built(start_from: str, weight: float) -> Clip4Vla:
        taught = training.model_copy(update={"text_cross": weight})
        return build_model(job.model_copy(update=given | {"training": taught, "start_from": tmp_path / start_from}))

    assert built("with", 0.0).scorer is None
    assert (built("with", 1.0).scorer.similarity.weight == 1).all()
    assert (built("without", 1.0).scorer.similarity.weight == 0).all()


def captioning(job: Job, start_from: Path, **changes: object) -> Job:
    training = load_params(REPOSITORY / "params.yaml").caption.model_copy(update={"words": 12} | changes)
    params = job.model.model_copy(update={"architecture": "stamp-small"})
    return job.model_copy(update={"task": "caption", "training": training, "model": params, "start_from": start_from})


@pytest.fixture(scope="module")
def stamp_small(tmp_path_factory: pytest.TempPathFactory, job: Job) -> Path:
    """A run result whose tokens are those of real sentences."""
    directory = tmp_path_factory.mktemp("stamp-small")
    params = job.model.model_copy(update={"architecture": "stamp-small"})
    save_model(Clip4Vla(params, job.audio), directory)
    return directory


def test_captioning_starts_a_decoder_from_the_text_tower_with_the_words_of_the_corpus(
    job: Job, stamp_small: Path, tmp_path: Path
) -> None:
    model = build_model(captioning(job, stamp_small))
    decoder, clip = model.decoder, load_model(stamp_small).clip
    assert decoder is not None
    words = [Tokenizer("stamp-small", 12).decode(token.view(1)) for token in decoder.vocabulary[2:]]
    assert {"thing", "there", "word"} <= set(words)
    assert len(words) < 20
    assert torch.equal(decoder.embedding.weight, clip.token_embedding.weight[decoder.vocabulary])
    assert torch.equal(decoder.blocks[0].mlp.c_fc.weight, clip.transformer.resblocks[0].mlp.c_fc.weight)
    assert not model.clip.token_embedding.weight.requires_grad
    save_model(model, tmp_path)
    with torch.no_grad():
        model.decoder.memory_type.add_(1)
        save_model(model, tmp_path)
    again = build_model(captioning(job, tmp_path))
    assert torch.equal(again.decoder.memory_type, model.decoder.memory_type)
    with pytest.raises(ValueError, match=r"the caption decoder of .* doesn't fit"):
        build_model(captioning(job, tmp_path, vocabulary="full"))


def test_a_whole_vocabulary_is_that_of_clip(job: Job, stamp_small: Path) -> None:
    model = build_model(captioning(job, stamp_small, vocabulary="full"))
    assert model.decoder.embedding.weight.shape == model.clip.token_embedding.weight.shape


def test_a_captioning_job_is_read_as_it_was_written(job: Job, stamp_small: Path, tmp_path: Path) -> None:
    written = captioning(job, stamp_small)
    written.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == written
    assert clip_view(written, build_model(written)).min_words == written.training.min_words
