"""Compiled towers: the same training as with eager ones, and eager ones where nothing can be compiled."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clip4vla.clips.batch import Batch
from clip4vla.training.engine import _compile_towers, join_ranks
from tests.training.engine_cases import CLIPS, SEED, Case, start
from tests.training.test_engine import CLOSE, micro_batches
from tests.training.tiny import EVERYTHING, OPTIMIZER, NaiveTraining, build, make_batch

COMPILED = Case(1, 2, fusion="experts", dropout=0.2, compile=True)
"""The audio tower passes with the token of the training and with that of each expert."""
LENGTHS = (9, 5, 7)
"""Tokens of each step's texts: after the second kind of shape, any length."""


def batch_of(step: int) -> Batch:
    batch = make_batch(CLIPS, step)
    return replace(batch, tokens=torch.cat([batch.tokens[..., : LENGTHS[step] - 1], batch.tokens[..., -1:]], dim=2))


def embeddings(model: torch.nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(SEED)
    found = model(make_batch(4, 0), audio_token="sample", names=EVERYTHING.names)
    return [getattr(found, name) for name in EVERYTHING.names]


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))


def no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch._dynamo.exc.InternalTorchDynamoError("the trace failed\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)


@pytest.mark.parametrize("broken", [pytest.param(no_compiler, marks=pytest.mark.slow), no_tracing])
def test_towers_that_cannot_be_compiled_run_eagerly_with_a_warning_each(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken(monkeypatch)
    torch._dynamo.reset()
    model = build(fusion="sequence", dropout=0.2)
    expected = embeddings(model)
    compiled = _compile_towers(model, zero_stage=1)
    assert all(tower.runs_compiled for tower in compiled)
    for _ in range(2):
        assert all(torch.equal(*pair) for pair in zip(embeddings(model), expected, strict=True))
    assert not any(tower.runs_compiled for tower in compiled)
    warnings = [record.getMessage() for record in caplog.records if record.name == "clip4vla.training.engine"]
    assert len(warnings) == 4
    assert all("can't be compiled and runs eagerly: " in warning and "\n" not in warning for warning in warnings)
    assert model.state_dict().keys() == build(fusion="sequence", dropout=0.2).state_dict().keys()


def test_an_error_that_is_not_the_compilers_is_still_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    no_tracing(monkeypatch)
    model = build()
    _compile_towers(model, zero_stage=0)
    with pytest.raises(ValueError, match="needs the audio type of each tile"):
        model.audio(torch.zeros(1, 3, 32, 32), "sample")


def test_zero_3_is_left_eager_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert _compile_towers(build(), zero_stage=3) == []
    assert "trainer.compile is left out: ZeRO 3" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")
def test_a_compiled_training_is_an_eager_one(tmp_path: Path) -> None:
    """Cached gradients, dropout and texts of several lengths included."""
    command = [sys.executable, "-m", "tests.training.test_compile", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = torch.load(tmp_path / "compiled.pt", weights_only=False)
    assert found["compiled"]
    model = build(fusion=COMPILED.fusion, dropout=COMPILED.dropout)
    eager = NaiveTraining(model, COMPILED.objective, OPTIMIZER)
    for step, losses in enumerate(found["losses"]):
        assert losses == pytest.approx(eager.step(batch_of(step), micro_batches(COMPILED), SEED, step), rel=1e-4)
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(found["weights"][key], weight, **CLOSE)


def main(out: Path) -> None:
    """Train compiled, in a process of its own."""
    _, _, device = join_ranks()
    engine = start(COMPILED, device, out / "checkpoints")
    losses = [engine.step(batch_of(step), OPTIMIZER.lr, (SEED, step, 0)) for step in range(len(LENGTHS))]
    torch.save(
        {"losses": losses, "weights": engine.collect_weights(), "compiled": engine.compiled}, out / "compiled.pt"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
