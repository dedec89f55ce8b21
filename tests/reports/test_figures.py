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
    retrieval_figure,
    save_figure,
    similarity_figure,
)


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


def test_ablation_has_a_bar_per_trial_and_modality() -> None:
    figure = ablation_figure({"none": scores(), "both": scores(40)}, probed())
    trials, probe = figure.axes
    assert heights(trials) == [[1, 41], [2, 42], [3, 43]]
    assert [tick.get_text() for tick in trials.get_xticklabels()] == ["none", "both"]
    assert [text.get_text() for text in trials.get_legend().get_texts()] == ["video", "audio", "video + audio"]
    assert sorted(words(trials)) == sorted(["1.0", "41.0", "2.0", "42.0", "3.0", "43.0"])
    assert heights(probe) == [[66, 6], [2, 13]]
    assert [tick.get_text() for tick in probe.get_xticklabels()] == ["nonverbal", "verbal"]


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
        (lambda: ablation_figure({"both": Scores("abc", {"x": 1.0})}), "no trial has a score"),
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
