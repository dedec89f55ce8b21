"""What a training says of itself to those who compare runs."""

from clip4vla.params import load_params
from flows.training import objective_in_words


def test_an_objective_is_named_by_its_terms_and_their_weights() -> None:
    published = load_params(preset="published")
    assert objective_in_words(published.pretrain, "sample") == (
        "text_audio + 2 video_audio + audio_audio + text_text + video_video"
    )
    assert objective_in_words(published.caption, "both") == "caption from both"
