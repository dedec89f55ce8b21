"""Figures show the numbers that they were given, and refuse to show what isn't there."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from clip4vla.evaluation.scores import Scores
from clip4vla.records import MODALITIES
from clip4vla.reports.figures import (
    ablation_figure,
    loss_figure,
    query_figure,
    retrieval_figure,
    save_figure,
    similarity_figure,
    unseen_figure,
)
from tests.evaluation.by_kind import scores_by_kind


def scores(shift: float = 0.0, **others: float) -> Scores:
    values = {
        f"{direction}/{modality}/R@{k}": shift + 10 * row + column + k
        for row, direction in enumerate(("text_to_clip", "clip_to_text"))
        for column, modality in enumerate(MODALITIES)
        for k in (1, 5, 10)
    }
    values |= {f"{name.replace('__', '/')}/R@1": value for name, value in others.items()}
    return Scores("abc", values, {"text_to_clip/both/R@1": (1.0, 30.0)})


def probed() -> Scores:
    return scores(
        probe__nonverbal__sound=66.0, probe__nonverbal__speech=2.0, probe__verbal__sound=6.0, probe__verbal__speech=13.0
    )


def heights(axes: Axes) -> list[list[float]]:
    """Bar heights by series."""
    return [[patch.get_height() for patch in bars] for bars in axes.containers if hasattr(bars, "patches")]


def words(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


MEAN = scores_by_kind({"unrelated_sound": (3, 4, 5), "heard": (0, 9, 2), "seen": (19, 0, 17), "mood": (1, 1, 1)})
EXPERTS = scores_by_kind({"seen": (19, 0, 19), "heard": (0, 9, 18), "mood": (1, 1, 2), "unrelated_sound": (3, 4, 5)})


def groups(axes: Axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_xticklabels()]


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def test_ablation_has_a_group_per_kind_of_query_with_a_bar_per_arm() -> None:
    figure = ablation_figure({"mean-none": MEAN, "experts-types": EXPERTS}, probed())
    arms, probe = figure.axes
    assert groups(arms) == ["seen", "heard", "mood"]
    assert legend(arms) == ["mean-none", "experts-types"]
    assert heights(arms) == [[85, 10, 5], [95, 90, 10]]
    assert sorted(words(arms)) == sorted(["85.0", "10.0", "5.0", "95.0", "90.0", "10.0"])
    ends = [segment[:, 1].tolist() for lines in arms.collections for segment in lines.get_segments()]
    assert list(MEAN.intervals["by_query/seen/both/R@1"]) in ends
    assert list(EXPERTS.intervals["by_query/mood/both/R@1"]) in ends
    assert len(ends) == 6
    assert heights(probe) == [[66, 6], [2, 13]]
    assert [tick.get_text() for tick in probe.get_xticklabels()] == ["nonverbal", "verbal"]


def test_every_arm_has_a_colour_of_its_own() -> None:
    arms = dict.fromkeys(("mean-none", "mean-both", "experts-none", "experts-types"), EXPERTS)
    axes = ablation_figure(arms).axes[0]
    colours = {bars.patches[0].get_facecolor() for bars in axes.containers if hasattr(bars, "patches")}
    assert len(colours) == len(arms)


def test_ablation_without_queries_has_a_group_per_modality() -> None:
    axes = ablation_figure({"none": scores(), "both": scores(40)}).axes[0]
    assert groups(axes) == ["video", "audio", "video + audio"]
    assert legend(axes) == ["none", "both"]
    assert heights(axes) == [[1, 2, 3], [41, 42, 43]]


def test_whiskers_end_at_the_interval() -> None:
    axes = ablation_figure({"both": scores()}).axes[0]
    ends = [segment for lines in axes.collections for segment in lines.get_segments()]
    assert len(ends) == 1
    assert ends[0][:, 1].tolist() == [1.0, 30.0]
    assert axes.get_ylim()[1] > 30


def test_ablation_without_a_probe_has_one_panel() -> None:
    assert len(ablation_figure({"both": scores()}, scores()).axes) == 1


def test_retrieval_has_a_panel_per_direction_on_one_scale() -> None:
    figure = retrieval_figure(scores())
    there, back = figure.axes
    assert heights(there) == [[1, 5, 10], [2, 6, 11], [3, 7, 12]]
    assert heights(back) == [[11, 15, 20], [12, 16, 21], [13, 17, 22]]
    assert there.get_ylim() == back.get_ylim()
    assert there.get_ylim()[1] > 30


def test_queries_have_a_group_per_kind_and_a_panel_for_held_out_phrasings() -> None:
    kinds = {"said": (0, 9, 12), "all": (2, 5, 19), "mood": (1, 1, 1)}
    found = scores_by_kind(kinds, {"said": (0, 7, 8)})
    trained, held_out = query_figure(found).axes
    assert groups(trained) == ["all", "said", "mood"]
    assert legend(trained) == ["video", "audio", "video + audio"]
    assert heights(trained) == [[10, 0, 5], [25, 45, 5], [95, 60, 5]]
    assert groups(held_out) == ["said"]
    assert heights(held_out) == [[0], [35], [40]]
    assert trained.get_ylim() == held_out.get_ylim()
    ends = [segment[:, 1].tolist() for lines in trained.collections for segment in lines.get_segments()]
    assert list(found.intervals["by_query/said/both/R@1"]) in ends
    assert len(query_figure(scores_by_kind(kinds)).axes) == 1


def test_unseen_clips_have_a_panel_per_corpus_beside_the_original_ones() -> None:
    found = scores_by_kind({}, unseen={"voices": {"said": (20, 9), "all": (18, 12)}, "drawings": {"seen": (19, 4)}})
    drawings, voices = unseen_figure(found).axes
    assert [axes.get_title(loc="left") or axes.get_title() for axes in (drawings, voices)] == ["drawings", "voices"]
    assert groups(voices) == ["all", "said"]
    assert legend(voices) == ["original clips", "unseen rendering"]
    assert heights(voices) == [[90, 100], [60, 45]]
    assert heights(drawings) == [[95], [20]]


def test_similarity_is_drawn_as_given() -> None:
    matrix = np.random.default_rng(0).standard_normal((5, 7))
    image = similarity_figure(matrix).axes[0].get_images()[0]
    np.testing.assert_array_equal(image.get_array(), matrix)


def test_losses_are_drawn_as_measured_and_smoothed_and_named() -> None:
    line = [(step, 10.0 - step / 10) for step in range(100)]
    axes = loss_figure({"total": line, "text_audio": [(0, 2.0), (50, 2.0)]}).axes[0]
    measured, smooth = (np.asarray(curve.get_ydata()) for curve in axes.get_lines()[:2])
    assert measured.tolist() == [value for _, value in line]
    np.testing.assert_allclose(smooth[10:-10], measured[10:-10], atol=1e-9)
    assert np.asarray(axes.get_lines()[3].get_ydata()).tolist() == [2.0, 2.0]
    assert [word.split("  ")[0] for word in words(axes)] == ["total", "text_audio"]


def test_names_of_curves_that_end_together_do_not_overlap() -> None:
    axes = loss_figure({name: [(0, 4.0), (9, 1.0)] for name in "abc"}).axes[0]
    places = [text.xy[1] for text in axes.texts]
    assert min(np.diff(places)) > 0.05 * 4


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: ablation_figure({}), "without trials"),
        (lambda: ablation_figure({"both": Scores("abc", {"x": 1.0})}), "text_to_clip/video/R@1 is missing"),
        (
            lambda: ablation_figure({"a": MEAN, "b": scores_by_kind({"seen": (1, 1, 1)})}),
            "by_query/heard/both/R@1 is missing",
        ),
        (lambda: query_figure(scores()), "scores without queries by kind"),
        (lambda: unseen_figure(scores()), "scores without unseen clips"),
        (
            lambda: ablation_figure({"a": scores(), "b": Scores("abc", {"text_to_clip/both/R@1": 1.0})}),
            "text_to_clip/video/R@1 is missing",
        ),
        (lambda: retrieval_figure(Scores("abc", {"probe/verbal/speech/R@1": 1.0})), "no retrieval to draw"),
        (lambda: retrieval_figure(Scores("abc", {"text_to_clip/both/R@1": 1.0})), "both/R@5 is missing"),
        (lambda: similarity_figure(np.zeros(3)), "shape"),
        (lambda: loss_figure({}), "without values"),
        (lambda: loss_figure({"total": []}), "without values"),
    ],
)
def test_what_is_not_there_is_not_drawn(draw, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def test_a_saved_figure_is_a_picture(tmp_path: Path) -> None:
    figure = retrieval_figure(scores())
    assert isinstance(figure, Figure)
    save_figure(figure, tmp_path / "new" / "retrieval.png")
    with Image.open(tmp_path / "new" / "retrieval.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_drawing_keeps_no_global_state() -> None:
    code = "import sys, clip4vla.reports.figures; print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
