"""doctor.stop_on_critical=true: which jobs of a sweep are ended early, and what is written down of it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Compose
from omegaconf import DictConfig

from makemore_pl.running.hopeless import in_best_quarter, read_losses
from makemore_pl.sweep.job import _run_locked, decisive, read_failure, refuse_other_run, run_job

STOPPING = (
    "doctor.stop_on_critical=true", "callbacks={doctor: {_target_: makemore_pl.diagnostics.Doctor}}", "logger=jsonl",
    "trainer.max_steps=60", "trainer.val_check_interval=20", "trainer.watch_every=5",
)  # fmt: skip


def test_hopeless_jobs_end_early_and_say_why(small: Compose, tmp_path: Path) -> None:
    def job(name: str, *overrides: str) -> tuple[object, int]:
        config = small(*STOPPING, *overrides, run_dir=tmp_path / name)
        _run_locked(tmp_path / name, config)
        refuse_other_run(tmp_path / name, config)  # it is the same run
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        return metrics["stopped_by"], metrics["steps"]

    assert job("alone", "optim.lr=500") == (None, 60), "nobody else has come as far"
    assert job("good") == (None, 60)
    assert job("bad", "optim.lr=400") == ("Doctor: update_too_large", 21)
    assert job("late") == (None, 60), "nothing critical"


def test_the_best_quarter_goes_on() -> None:
    def flat(loss: float, last: int = 100) -> dict[int, float]:
        return dict.fromkeys(range(0, last + 1, 10), loss)

    others = [flat(3.0), flat(4.0), flat(5.0), flat(math.inf)]
    # the best quarter of five jobs is rounded up to two
    assert [in_best_quarter(flat(loss), others) for loss in (2.0, 3.5, 4.5, math.inf)] == [True, True, False, False]
    assert in_best_quarter(flat(9.0), [flat(2.0, last=90)]), "that one has not come as far"
    assert not in_best_quarter(flat(9.0), [flat(2.0, last=200)])
    assert in_best_quarter({}, [flat(2.0)]), "nothing is known of it"
    # the same steps of both count, the last quarter of them; what the other did later does not
    assert not in_best_quarter({0: 1.0, 100: 3.0}, [{0: 9.0, 100: 2.0, 200: 9.0}])


def test_it_reads_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "diagnostics.jsonl"
    assert read_losses(path) == {}
    lines = [{"version": 1, "step": step, "values": {"train/loss_mean": loss}} for step, loss in ((0, 3.0), (5, None))]
    path.write_text("\n".join([*map(json.dumps, lines), '{"version": 1, "step": 10, "values": {"train/loss_mean": 2.']))
    assert read_losses(path) == {0: 3.0, 5: math.inf}


@pytest.mark.parametrize("missing", ["callbacks=none", "logger=none"])
def test_without_the_doctor_or_the_losses_it_is_refused(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)))
    monkeypatch.setattr("makemore_pl.sweep.job.HydraConfig", SimpleNamespace(get=lambda: hydra))
    monkeypatch.setattr("makemore_pl.sweep.job.resolve", lambda raw: small(*STOPPING, missing))
    assert math.isnan(run_job(DictConfig({})))
    assert "needs callbacks=diagnostics and logger=tensorboard or jsonl" in read_failure(tmp_path)["reason"]


def test_it_decides_the_result(small: Compose) -> None:
    assert decisive(small("doctor.stop_on_critical=true")) != decisive(small())
    assert decisive(small("doctor.fail_on=critical", "doctor.seeds=5")) == decisive(small())
