"""What a training stage records of itself in MLflow, to compare runs by."""

from clip4vla.config import load_config
from clip4vla.pipeline.training import describe_objective, run_name
from tests.project import REPOSITORY

FILE = REPOSITORY / "params.yaml"


def test_an_objective_is_named_by_its_terms_and_their_weights() -> None:
    published = load_config(FILE, preset="published")
    assert describe_objective(published.pretraining, "sample") == (
        "text_audio + 2 video_audio + audio_audio + text_text + video_video"
    )
    assert describe_objective(published.captioning, "both") == "caption from both"


def test_the_name_of_a_run_says_what_is_trained_on_which_data_by_which_preset() -> None:
    config = load_config(FILE)
    assert run_name(config, "retrieval") == "retrieval · es · default"
    mine = config.corpora["stampscenes-captions"]
    own = config.model_copy(update={"corpora": {**config.corpora, "mine": mine}, "preset": "paper"})
    assert run_name(own, "retrieval") == "retrieval · stampscenes-captions, mine · paper"
