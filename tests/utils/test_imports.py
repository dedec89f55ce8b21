import sys

import pytest

from clip4vla.utils.imports import hidden


def test_a_hidden_module_cannot_be_imported_until_the_end_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with pytest.raises(ModuleNotFoundError, match="colorsys"), hidden("colorsys"):
        import colorsys
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_a_module_that_is_there_already_stays() -> None:
    import colorsys

    with hidden("colorsys"):
        import colorsys as again
    assert again is colorsys is sys.modules["colorsys"]
