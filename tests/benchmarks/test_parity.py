"""The comparison with published numbers: it holds on the tests' own, and reports a number that is changed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.parity.__main__ import GROUPS, main
from benchmarks.parity.deviation import EXACT, Tolerance, deviation
from benchmarks.parity.reference import CHECKPOINT, FILES

DATA = Path(__file__).parents[1] / "data" / "reference"
NARRATED = {
    "case": "two segments",
    "corpus": "howto100m",
    "data": {
        "text": ["so today we are going to make bread", "take the flour", "and mix it"],
        "start": [0.0, 4.2, 6.0],
        "end": [4.2, 6.0, 9.0],
    },
    "index": 1,
    "start": 0.0,
    "end": 6.0,
    "input_ids": [49406, 706, 721, 649, 631, 1245, 531, 1078, 5066, 1172, 518, 18592, 49407, 49410, 49410, 49410],
}
LABELLED = {
    "case": "labels",
    "corpus": "audioset",
    "data": {"text": ["Speech,Dog,Inside, small room"], "start": [30], "end": [40]},
    "index": 0,
    "start": 30.0,
    "end": 40.0,
    "input_ids": [49406, 518, 3608, 539, 4902, 267, 1929, 267, 2912, 267, 2442, 1530, 49407, 49410, 49410, 49410],
}
SMALL = ("in/", "enc/text", "enc/audio_ctrl3", "retr/feat_avg/t_", "pre/grad_names", "pre/nce_ss/")
"""Beginnings of the arrays of model.npz that are enough to find something wrong in each group."""


@dataclass
class Layout:
    """A reference directory, to be changed before it is compared."""

    directory: Path

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.directory / name) as stored:
            return {key: stored[key] for key in stored.files}

    def change(self, name: str, *changes: Callable[[Any], None]) -> None:
        """Apply `changes` to the arrays, tree or tensors of a file."""
        path = self.directory / name
        if name == CHECKPOINT:
            content: Any = torch.load(path, weights_only=True)
        else:
            content = self.arrays(name) if name.endswith(".npz") else json.loads(path.read_text())
        for change in changes:
            change(content)
        if name == CHECKPOINT:
            torch.save(content, path)
        elif name.endswith(".npz"):
            np.savez(path, **content)
        else:
            path.write_text(json.dumps(content))


@dataclass
class Outcome:
    """What the command printed: its line, where there is one, its exit status and its last message."""

    line: dict[str, Any] | None
    status: int
    message: str


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, pretrained_state: dict[str, Tensor]) -> Layout:
    """Everything in the tests' own data."""
    layout = Layout(tmp_path_factory.mktemp("reference") / "published")
    layout.directory.mkdir()
    for name in ("model.npz", "metrics.npz", "optim.npz", "visual_preproc.npz", "text.json"):
        shutil.copy(DATA / name, layout.directory)
    shutil.copy(DATA / "vitb32_state_dict_index.json", layout.directory)
    layout.change("text.json", lambda text: text.update(pretrain_text=[NARRATED, LABELLED]))
    torch.save(pretrained_state, layout.directory / CHECKPOINT)
    with np.load(DATA / "audio_frontend.npz") as stored:
        audio = {key: stored[key] for key in stored.files}
    waves = {key: value.astype(np.float32) / 32768 for key, value in audio.items() if key.endswith("/wave")}
    np.savez(layout.directory / "audio_frontend.npz", **(audio | waves))
    audio_facts = json.loads((DATA / "audio_facts.json").read_text())
    facts = {
        "audio": {**audio_facts["clips"], "loader": audio_facts["tile_selection"]},
        "metrics": json.loads((DATA / "metrics.json").read_text()),
    }
    (layout.directory / "facts.json").write_text(json.dumps(facts))
    return layout


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory, complete: Layout) -> Layout:
    """The fewest arrays that have something of every group."""
    layout = Layout(tmp_path_factory.mktemp("small") / "published")
    shutil.copytree(complete.directory, layout.directory)
    layout.change("audio_frontend.npz", keep("mono_0p5/", "specaug/mono_0p5/"))
    layout.change("model.npz", keep(*SMALL))
    layout.change("metrics.npz", keep("square50", "multi10_70x7"))
    layout.change("vitb32_state_dict_index.json", dict.clear)
    return layout


@pytest.fixture
def small(tmp_path: Path, pattern: Layout) -> Layout:
    return Layout(Path(shutil.copytree(pattern.directory, tmp_path / "published")))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], Outcome]:
    """Run the command on a directory."""

    def run_one(directory: Path) -> Outcome:
        monkeypatch.setattr("sys.argv", ["parity", str(directory)])
        message: object = ""
        try:
            main()
        except SystemExit as ended:
            message = ended.code
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 1
        return Outcome(json.loads(lines[0]) if lines else None, 1 if message else 0, str(message))

    return run_one


def keep(*beginnings: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in [key for key in content if not key.startswith(beginnings)]:
            del content[key]

    return change


def add(key: str, amount: float) -> Callable[[dict[str, Any]], None]:
    """Move the last number of an array."""

    def change(content: dict[str, Any]) -> None:
        content[key] = content[key].copy()
        content[key][(-1,) * content[key].ndim] += amount

    return change


def scale(key: str, factor: float) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({key: content[key] * np.float32(factor)})


def one_id_more(text: dict[str, Any]) -> None:
    text["retrieval_text"][0]["input_ids"][1] += 1


def another_format(state: dict[str, Tensor]) -> None:
    state["clip.text_projection"] = state["clip.text_projection"].float()


def one_tile_less(facts: dict[str, Any]) -> None:
    facts["audio"]["mono_0p5"]["model_frames"] -= 1


def worse_by_a_query(facts: dict[str, Any]) -> None:
    facts["metrics"]["square50"]["t2v_metrics"]["R5"] -= 0.02


BEYOND = [
    ("audio", "audio_frontend.npz", add("mono_0p5/frames_s4", 6e-7)),
    ("audio", "audio_frontend.npz", add("specaug/mono_0p5/frames_s4", 6e-7)),
    ("audio_float32", "audio_frontend.npz", add("mono_0p5/frames_s4", 2e-3)),
    ("audio_float32_mean", "audio_frontend.npz", add("mono_0p5/frames_s4", 0.1)),
    ("audio_db", "audio_frontend.npz", add("mono_0p5/logmel_constant_edges", 2e-5)),
    ("audio_db_float32", "audio_frontend.npz", add("mono_0p5/logmel_constant_edges", 2e-2)),
    ("audio_statistics", "audio_frontend.npz", add("mono_0p5/mu", 2e-4)),
    ("audio_statistics", "audio_frontend.npz", add("specaug/mono_0p5/sigma", 2e-4)),
    ("audio_counts", "facts.json", one_tile_less),
    ("encoders", "model.npz", add("enc/text", 1e-2)),
    ("encoders", "model.npz", add("enc/audio_ctrl3", 1e-2)),
    ("similarities", "model.npz", add("retr/feat_avg/t_va", 2e-3)),
    ("losses", "model.npz", scale("pre/nce_ss/aa_nce", 1.001)),
    ("losses", "model.npz", scale("pre/nce_ss/total", 1.001)),
    ("gradients", "model.npz", scale("pre/nce_ss/grad_norms", 1.01)),
    ("gradients", "model.npz", add("pre/nce_ss/grad/clip.ln_final.bias", 1e-2)),
    ("metrics", "metrics.npz", add("square50/ranks0", 0.5)),
    ("metrics", "facts.json", worse_by_a_query),
    ("schedule", "optim.npz", add("sched/warmup_cosine_0.1", 1e-5)),
    ("visual", "visual_preproc.npz", add("tensor/square", 1e-4)),
    ("tokens", "text.json", one_id_more),
    ("checkpoint", CHECKPOINT, another_format),
]


def test_our_code_holds_on_all_published_numbers_here(run: Callable[[Path], Outcome], complete: Layout) -> None:
    outcome = run(complete.directory)
    assert (outcome.status, outcome.message) == (0, "")
    assert outcome.line is not None
    assert outcome.line["holds"] is True
    assert outcome.line["groups"].keys() == set(GROUPS)
    for name, group in outcome.line["groups"].items():
        assert group["holds"] is True, name
        assert group["deviation"] <= group["tolerance"]
        assert group["compared"] > 0
        assert group["at"]


def test_arrays_that_are_not_there_are_not_compared(run: Callable[[Path], Outcome], small: Layout) -> None:
    small.change("metrics.npz", keep("nothing"))
    small.change("model.npz", keep("in/", "enc/text"))
    outcome = run(small.directory)
    assert (outcome.status, outcome.message) == (0, "")
    assert outcome.line is not None
    nothing = {"compared": 0, "deviation": None, "tolerance": None, "at": None, "holds": None}
    groups = outcome.line["groups"]
    assert groups["encoders"]["compared"] == 1
    assert [name for name, group in groups.items() if group == nothing] == [
        *("similarities", "losses", "gradients", "metrics")
    ]


@pytest.mark.parametrize(("group", "file", "change"), BEYOND)
def test_what_is_beyond_its_tolerance_is_named(
    run: Callable[[Path], Outcome], small: Layout, group: str, file: str, change: Callable[[Any], None]
) -> None:
    small.change(file, change)
    outcome = run(small.directory)
    assert outcome.status == 1
    assert outcome.line is not None
    assert outcome.line["holds"] is False
    beyond = [name for name, of_group in outcome.line["groups"].items() if not of_group["holds"]]
    assert outcome.message == f"python -m benchmarks.parity: beyond the tolerance: {', '.join(beyond)}"
    assert group in beyond
    assert {name.split("_")[0] for name in beyond} == {group.split("_")[0]}


def test_a_number_that_is_not_finite_is_beyond_every_tolerance(run: Callable[[Path], Outcome], small: Layout) -> None:
    small.change("model.npz", add("enc/text", float("nan")))
    outcome = run(small.directory)
    assert outcome.line is not None
    assert outcome.line["groups"]["encoders"]["deviation"] is None
    assert outcome.line["groups"]["encoders"]["holds"] is False
    assert outcome.status == 1


def test_another_shape_is_reported(run: Callable[[Path], Outcome], small: Layout) -> None:
    small.change("model.npz", lambda arrays: arrays.update({"enc/text": arrays["enc/text"][:, :-1]}))
    outcome = run(small.directory)
    assert outcome.line is not None
    found = outcome.line["groups"]["encoders"]
    assert found["at"] == "shape of enc/text: (4, 16, 128) here, (4, 15, 128) published"
    assert (found["deviation"], found["holds"]) == (None, False)


@pytest.mark.parametrize("name", sorted(set(FILES) - {CHECKPOINT}))
def test_a_missing_file_is_named_and_the_rest_compared(
    run: Callable[[Path], Outcome], small: Layout, name: str
) -> None:
    (small.directory / name).unlink()
    outcome = run(small.directory)
    assert (outcome.status, outcome.message) == (0, "")
    assert outcome.line is not None
    assert outcome.line["missing"] == [name]
    expected = {
        "audio_frontend.npz": {"audio", "audio_float32", "audio_float32_mean", "audio_db", "audio_db_float32"}
        | {"audio_statistics"},
        "model.npz": {"encoders", "similarities", "losses", "gradients"},
        "metrics.npz": {"metrics"},
        "optim.npz": {"schedule"},
        "visual_preproc.npz": {"visual"},
        "text.json": {"tokens"},
        "facts.json": set(),  # leaves counts and recalls out, but not tiles and ranks
        "vitb32_state_dict_index.json": set(),
    }[name]
    assert {group for group, found in outcome.line["groups"].items() if not found["compared"]} == expected


def test_numbers_without_the_checkpoint_that_made_them_are_refused(
    run: Callable[[Path], Outcome], small: Layout
) -> None:
    (small.directory / CHECKPOINT).unlink()
    outcome = run(small.directory)
    assert (outcome.status, outcome.line) == (1, None)
    assert outcome.message.endswith(f"lacks {CHECKPOINT}, which made the numbers in model.npz")
    (small.directory / "model.npz").unlink()
    assert run(small.directory).status == 0
    for file in small.directory.iterdir():
        file.unlink()
    assert "has none of audio_frontend.npz, " in run(small.directory).message


def test_waveforms_of_any_name_and_number_are_compared(run: Callable[[Path], Outcome], small: Layout) -> None:
    for name in set(FILES) - {"audio_frontend.npz"}:
        (small.directory / name).unlink()
    one = {key: value for key, value in small.arrays("audio_frontend.npz").items() if key.startswith("mono_0p5/")}
    renamed = {f"{name}/{key.partition('/')[2]}": value for key, value in one.items() for name in ("a", "b/c", "9 s")}
    np.savez(small.directory / "audio_frontend.npz", **renamed, mel_basis=np.zeros(3))
    outcome = run(small.directory)
    assert outcome.line is not None
    assert (outcome.status, outcome.line["groups"]["audio"]["compared"]) == (0, 3)
    small.change("audio_frontend.npz", lambda arrays: arrays.pop("a/wave"))
    assert "audio_frontend.npz lacks a/wave," in run(small.directory).message


def test_a_directory_that_is_not_there_is_named(run: Callable[[Path], Outcome], tmp_path: Path) -> None:
    assert run(tmp_path / "nowhere").message.endswith(f"there is no directory {tmp_path / 'nowhere'}")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_something_else_is_named(run: Callable[[Path], Outcome], small: Layout, name: str) -> None:
    (small.directory / name).write_text("something else")
    outcome = run(small.directory)
    assert (outcome.status, outcome.line) == (1, None)
    assert f"{small.directory / name} can't be read" in outcome.message


def test_pickled_objects_are_not_unpacked(run: Callable[[Path], Outcome], small: Layout) -> None:
    small.change("metrics.npz", lambda arrays: arrays.update(square50=np.array([{}], dtype=object)))
    assert "metrics.npz can't be read" in run(small.directory).message


@pytest.mark.parametrize("name", ["in/video", "in/token_types", "in/masked_audio"])
def test_an_input_that_is_needed_is_named(run: Callable[[Path], Outcome], small: Layout, name: str) -> None:
    small.change("model.npz", lambda arrays: arrays.pop(name))
    outcome = run(small.directory)
    assert (outcome.status, outcome.line) == (1, None)
    assert f"model.npz lacks {name}," in outcome.message


def test_a_directory_without_anything_to_compare_is_refused(run: Callable[[Path], Outcome], small: Layout) -> None:
    for name in ("audio_frontend.npz", "model.npz", "metrics.npz", "optim.npz", "visual_preproc.npz"):
        small.change(name, keep("nothing"))
    for name in ("text.json", "facts.json"):
        small.change(name, dict.clear)
    outcome = run(small.directory)
    assert (outcome.status, outcome.line) == (1, None)
    assert "holds no published number" in outcome.message


def test_the_element_that_uses_most_of_its_tolerance_counts() -> None:
    tolerance = Tolerance(0.1, relative=0.01)
    found = deviation("group", "name", torch.tensor([1.05, 100.9]), torch.tensor([1.0, 100.0]), tolerance)
    assert (found.value, found.tolerance, found.holds) == (pytest.approx(0.9, 1e-4), pytest.approx(1.0), True)
    assert not deviation("group", "name", torch.tensor([1.15]), torch.tensor([1.0]), tolerance).holds
    assert deviation("group", "name", torch.tensor([3]), torch.tensor([3]), EXACT).holds
    assert not deviation("group", "name", torch.tensor([3]), torch.tensor([4]), EXACT).holds
