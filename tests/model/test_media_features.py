"""Hiding and dropping modalities."""

import torch

from clip4vla.model.media_features import MediaFeatures


def test_a_modality_is_dropped_in_about_the_given_fraction_and_never_the_only_one() -> None:
    clips = 4000
    media = MediaFeatures(
        torch.zeros(clips, 1, 4),
        torch.arange(clips).unsqueeze(1) % 4 != 0,
        torch.zeros(clips, 2, 4),
        (torch.arange(clips) % 4 != 1).unsqueeze(1).expand(-1, 2),
    )
    torch.manual_seed(0)
    dropped = media.drop(0.4)
    has_video, has_audio = dropped.video_mask.any(1), dropped.audio_mask.any(1)
    assert (has_video | has_audio).all()
    has_both = torch.arange(clips) % 4 >= 2
    assert torch.equal(has_video[~has_both], media.video_mask.any(1)[~has_both])
    assert abs((~has_video)[has_both].float().mean() - 0.2) < 0.03
    assert abs((~has_audio)[has_both].float().mean() - 0.2) < 0.03
    assert torch.equal(media.drop(0.0).video_mask, media.video_mask)
