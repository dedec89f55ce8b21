"""The miniature package of stamps, and parameters small enough for it."""

from pathlib import Path

import pytest
import yaml

from clip4vla.params import StampScenesParams
from tests.project import REPOSITORY, TINY_PARAMS
from tests.stamp_package import write_stamp_package

SAMPLES = Path(__file__).parents[1] / "data" / "corpora"


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stamp_package(tmp_path_factory.mktemp("package") / "stamps.deb")


@pytest.fixture(scope="session")
def stamp_params() -> StampScenesParams:
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))["stampscenes"]
    return StampScenesParams.model_validate(tree | TINY_PARAMS["stampscenes"])
