"""How long threads wait busily."""

import os

import pytest

from clip4vla.utils.threads import SPIN_COUNT, spin_briefly


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["unset", "given", "policy"],
)
def test_the_environment_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    spin_briefly()
    assert os.environ.pop("GOMP_SPINCOUNT", None) == after
