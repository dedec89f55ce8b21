"""Stage `params`: the resolved file that DVC reads, and which stages `dvc repro` runs after a change."""

import json
import os
import re
from pathlib import Path

import pytest

from clip4vla.config import load_config, read_yaml
from clip4vla.corpora.manifest import MANIFEST_FILE, read_manifest
from clip4vla.pipeline.params import GRAPH, RESOLVED, TRAINED, check_resolved, resolve, write_resolved
from flows.graph import current_graph, read_graph
from tests.project import REPOSITORY, make_project, read_config, run, write_config
from tests.shards import write_shard

FOLDER = """
corpora:
  stampscenes-pretraining: null
  stampscenes-captions: null
  mine: {adapter: folder, role: finetuning, annotations: notes, media: mine}
  others: {adapter: folder, role: pretraining, annotations: notes, media: mine}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The miniature project, with a folder of media and a preset of its own that uses it alone."""
    directory = make_project(tmp_path)
    for name in ("notes", "mine"):
        (directory / name).mkdir()
    (directory / "notes/texts.csv").write_text("path,text\nbell.wav,a bell rings\n")
    (directory / "mine/bell.wav").write_bytes(b"RIFF")
    (directory / "presets/mine.yaml").write_text(FOLDER)
    monkeypatch.chdir(directory)
    return directory


def choose(directory: Path, *presets: str) -> None:
    write_config(directory, read_config(directory) | {"preset": list(presets)})


def test_the_committed_file_is_what_params_yaml_comes_to() -> None:
    found = read_yaml(REPOSITORY / RESOLVED)
    graph, trained = found.pop(GRAPH), found.pop(TRAINED)
    assert trained == found["corpora"]
    assert found == load_config(REPOSITORY / "params.yaml").model_dump(mode="json")
    assert (graph["composed"], graph["unseen"]) == (["stampscenes"], [])
    assert graph["corpora"].keys() == found["corpora"].keys()


def test_params_yaml_fits_a_screen_and_a_half() -> None:
    assert len((REPOSITORY / "params.yaml").read_text().splitlines()) <= 75


def test_a_preset_of_real_corpora_leaves_stampscenes_out_where_nothing_uses_it(project: Path) -> None:
    choose(project, "audioset+howto100m", "msrvtt-1ka")
    assert not resolve()
    graph = read_yaml(RESOLVED)[GRAPH]
    assert graph["composed"] == []
    assert graph["corpora"].keys() == {"audioset", "howto100m", "msrvtt"}
    assert resolve()
    stages = re.findall(r"^(\S+)", run(project, "-m", "dvc", "stage", "list").stdout, re.MULTILINE)
    assert {"manifest@audioset", "clips@howto100m", "clips@msrvtt", "pretrain"} <= set(stages)
    assert not {"fetch@stampscenes", "corpus@stampscenes"} & set(stages)


def test_unseen_clips_are_fetched_composed_and_scored_only_with_their_preset(project: Path) -> None:
    def files_of_dvc() -> tuple[dict[str, frozenset[str]], object]:
        return read_graph().parents, read_yaml(RESOLVED)[TRAINED]

    without, trained = files_of_dvc()
    choose(project, "unseen")
    assert not resolve()
    parents, trained_beside_unseen = files_of_dvc()
    assert trained_beside_unseen == trained
    unseen = ["stampscenes-voices", "stampscenes-sounds", "stampscenes-pictures"]
    assert parents["unseen@stampscenes-unseen"] == {"params", "fetch@stampscenes", "clipart@openclipart-svg"}
    assert {f"clips@{name}" for name in unseen} <= parents["evaluate@retrieval"]
    made = {"clipart@openclipart-svg", "unseen@stampscenes-unseen"}
    made |= {f"{stage}@{name}" for stage in ("manifest", "clips") for name in unseen}
    assert parents.keys() - without.keys() == made
    for stage in ("corpus@stampscenes", "pretrain", "finetune@retrieval", "finetune@captioning", "ablate"):
        assert parents[stage] == without[stage]


def test_drawings_in_training_clips_are_fetched_before_the_corpus_is_composed(project: Path) -> None:
    tree = read_config(project)
    write_config(project, tree | {"stampscenes": tree["stampscenes"] | {"training_pictures": 2}})
    assert not resolve()
    parents = read_graph().parents
    assert parents["corpus@stampscenes"] == {"params", "fetch@stampscenes", "clipart@openclipart-svg"}
    assert "unseen@stampscenes-unseen" not in parents


def test_changed_stages_fail_once_because_dvc_must_read_them_again(project: Path) -> None:
    write_resolved(dvc_has_read_it=True)
    choose(project, "mine")
    with pytest.raises(ValueError, match="the stages have changed with the corpora: start `dvc repro` again"):
        write_resolved(dvc_has_read_it=True)
    write_resolved(dvc_has_read_it=True)
    choose(project, "default")
    write_resolved(dvc_has_read_it=False)
    check_resolved()


def test_a_stage_refuses_settings_that_dvc_has_not_read(project: Path) -> None:
    check_resolved()
    (project / "presets/mine.yaml").write_text("audio: {tiles: 1}")
    choose(project, "mine")
    with pytest.raises(ValueError, match=r"older than params\.yaml or a preset: run `dvc repro params` first"):
        check_resolved()
    stale = run(project, "-m", "dvc", "repro", "--single-item", "fetch@stampscenes")
    assert stale.returncode != 0
    assert "clip4vla: params.resolved.yaml is older than params.yaml" in stale.stderr
    resolve()
    check_resolved()


def test_dvc_repro_runs_what_depends_on_a_preset_and_nothing_else(project: Path) -> None:
    def repro(*target: str) -> tuple[int, list[str], str]:
        done = run(project, "-m", "dvc", "repro", *target)
        return done.returncode, sorted(re.findall(r"Running stage '([^']+)'", done.stdout)), done.stderr

    choose(project, "mine")
    code, ran, said = repro()
    assert (code, ran) == (255, ["params"])
    assert "the stages have changed with the corpora: start `dvc repro` again" in said
    manifests = ["manifest@mine", "manifest@others"]
    assert repro(*manifests)[:2] == (0, [*manifests, "params"])
    assert repro(*manifests)[:2] == (0, [])
    preset = project / "presets/mine.yaml"
    preset.write_text(f"{FOLDER}audio: {{tiles: 1}}\n")  # no manifest depends on it
    assert repro(*manifests)[:2] == (0, ["params"])
    preset.write_text(f"{FOLDER}clips: {{max_reject_fraction: 0.5}}\n")
    assert repro(*manifests)[:2] == (0, [*manifests, "params"])
    status = json.loads(run(project, "-m", "dvc", "status", "--json", *manifests).stdout)
    assert status == {}
    preset.write_text(f"{FOLDER}clips: {{sise: 3}}\n")
    code, ran, said = repro(*manifests)
    assert (code, ran) == (255, ["params"])
    assert re.search(r"clip4vla: presets/mine\.yaml is not valid:\n  clips\.sise: ", said)
    assert run(project, "-m", "dvc", "stage", "list").returncode == 0  # the file of before is still there


def test_a_flow_walks_the_stages_of_the_chosen_preset(project: Path) -> None:
    choose(project, "mine")
    stages = current_graph().order
    assert stages[0] == "params"
    assert "clips@mine" in stages
    assert "fetch@stampscenes" not in stages


def test_listed_media_are_noticed_by_path_size_and_time_and_not_by_their_bytes(project: Path) -> None:
    def ran() -> list[str]:
        done = run(project, "-m", "dvc", "repro", "manifest@mine")
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"Running stage '([^']+)'", done.stdout)

    listed = FOLDER.replace("media: mine}", "media: mine, track: listing}", 1)
    (project / "presets/mine.yaml").write_text(listed)
    choose(project, "mine")
    assert not resolve()
    media = project / "mine/bell.wav"
    assert ran() == ["params", "listing@mine", "manifest@mine"]
    before = media.stat()
    [line] = [text for text in (project / "data/listings/mine.csv").read_text().splitlines() if "bell" in text]
    assert line == f"bell.wav,4,{before.st_mtime_ns}"
    assert ran() == ["listing@mine"]
    media.write_bytes(b"RIFX")
    os.utime(media, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ran() == ["listing@mine"]  # the price
    os.utime(media, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert ran() == ["listing@mine", "manifest@mine"]


def test_shards_are_listed_once_and_the_manifest_reads_them(project: Path) -> None:
    corpus = "{adapter: webdataset, media: shards, track: listing, shards: {captions: [.txt, caption]}, role: %s}"
    (project / "presets/mine.yaml").write_text(
        "corpora:\n  stampscenes-pretraining: null\n  stampscenes-captions: null\n"
        f"  mine: {corpus % 'finetuning'}\n  others: {corpus % 'pretraining'}\n"
    )
    sample = {"mp4": b"media", "txt": "a bell", "json": {"caption": "it rings"}}
    shard = write_shard(project / "shards/00000.tar", {"a": sample})
    choose(project, "mine")
    resolve()
    assert read_yaml(project / RESOLVED)[GRAPH]["corpora"]["mine"] == {
        "role": "finetuning",
        "annotations": "data/listings/mine.csv",
        "media": "data/listings/mine.csv",
    }

    def ran() -> list[str]:
        done = run(project, "-m", "dvc", "repro", "manifest@mine")
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"Running stage '([^']+)'", done.stdout)

    assert ran()[-2:] == ["listing@mine", "manifest@mine"]
    (record,) = read_manifest(project / "data/manifests/mine" / MANIFEST_FILE)
    assert (record.media, [text.text for text in record.texts]) == ("00000.tar/a.mp4", ["a bell", "it rings"])
    assert ran() == ["listing@mine"]
    write_shard(shard, {"a": sample, "b": sample})
    assert ran() == ["listing@mine", "manifest@mine"]


def test_a_change_behind_a_link_to_a_file_or_to_all_media_is_noticed(project: Path) -> None:
    elsewhere = project.parent / f"{project.name}-elsewhere"
    (project / "mine").rename(elsewhere)
    (elsewhere / "bell.wav").rename(elsewhere.with_suffix(".wav"))
    (elsewhere / "bell.wav").symlink_to(elsewhere.with_suffix(".wav"))
    (project / "mine").symlink_to(elsewhere)
    choose(project, "mine")
    assert not resolve()
    assert run(project, "-m", "dvc", "repro", "manifest@mine").returncode == 0
    assert run(project, "-m", "dvc", "status", "manifest@mine").stdout.endswith("up to date.\n")
    elsewhere.with_suffix(".wav").write_bytes(b"RIFFx")
    assert "modified:           mine" in run(project, "-m", "dvc", "status", "manifest@mine").stdout


def test_a_linked_folder_inside_media_is_refused_where_dvc_would_not_look_into_it(project: Path) -> None:
    elsewhere = project.parent / f"{project.name}-more"
    elsewhere.mkdir()
    (project / "mine/deep").mkdir()
    (project / "mine/deep/more").symlink_to(elsewhere)
    choose(project, "mine")
    refused = "mine/deep/more is a link to a folder, in which DVC notices no change: set corpora.mine.track to listing"
    with pytest.raises(ValueError, match=refused):
        write_resolved(dvc_has_read_it=False)
    assert not resolve()
    done = run(project, "-m", "dvc", "repro", "manifest@mine")
    assert done.returncode != 0
    assert refused in done.stdout + done.stderr
    (project / "presets/mine.yaml").write_text(FOLDER.replace("media: mine", "media: mine, track: listing"))
    write_resolved(dvc_has_read_it=False)


def test_what_a_stage_composes_cannot_be_listed(project: Path) -> None:
    (project / "presets/mine.yaml").write_text("corpora: {stampscenes-captions: {track: listing}}")
    choose(project, "mine")
    with pytest.raises(ValueError, match=r"corpora\.stampscenes-captions\.track is listing, but DVC makes StampScenes"):
        resolve()
