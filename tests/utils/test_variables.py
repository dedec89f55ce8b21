"""The list of environment variables: complete, documented, and what isn't in it is named."""

import logging
import re
from pathlib import Path

import pytest

from clip4vla.__main__ import main
from clip4vla.inference.limits import ServingLimits
from clip4vla.utils.variables import PREFIX, SERVING, VARIABLES, unread
from tests.project import REPOSITORY

NAME = re.compile(rf"\b{PREFIX}[A-Z_]*[A-Z]\b")


def names_in(*patterns: str) -> set[str]:
    files = [path for pattern in patterns for path in REPOSITORY.glob(pattern)]
    return {name for path in files for name in NAME.findall(path.read_text(encoding="utf-8"))}


def test_the_list_is_what_the_documents_and_the_code_name() -> None:
    assert names_in("docs/*.md") == set(VARIABLES)
    code = ("clip4vla/**/*.py", "flows/*.py", "benchmarks/*.py")
    elsewhere = ("README.md", "*.example", "*.yaml", "Makefile", "slurm/*", *code)
    assert names_in(*elsewhere) <= set(VARIABLES)
    assert {name.upper() for name in ServingLimits.model_fields} == set(SERVING)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("CLIP4VLA_MAX_PIXEL", "nothing reads the variable CLIP4VLA_MAX_PIXEL: did you mean CLIP4VLA_MAX_PIXELS?"),
        ("CLIP4VLA_HOST_FILE", "nothing reads the variable CLIP4VLA_HOST_FILE: did you mean CLIP4VLA_HOSTFILE?"),
        ("clip4vla_sbatch", "nothing reads the variable clip4vla_sbatch: did you mean CLIP4VLA_SBATCH?"),
        ("CLIP4VLA_XYZ", "nothing reads the variable CLIP4VLA_XYZ"),
    ],
)
def test_a_variable_that_nothing_reads_is_named_with_one_that_is_near(name: str, sentence: str) -> None:
    assert list(unread({name: "1", "PATH": "/bin", "CLIP4VLA_READERS": "2"})) == [sentence]


def test_every_command_and_the_served_model_warn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP4VLA_MAX_ROW", "secret")
    sentence = "nothing reads the variable CLIP4VLA_MAX_ROW: did you mean CLIP4VLA_MAX_ROWS?"
    with pytest.raises(SystemExit):
        main(["params"])
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"clip4vla: {sentence}\n")
    with caplog.at_level(logging.WARNING):
        assert ServingLimits.from_environment().max_rows == 256
    assert caplog.messages == [sentence]
