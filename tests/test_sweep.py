"""Sweeps on the real command line: names, resume after kills, failures that stay alone, refusals, summary."""

import csv
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from conftest import ROOT, WORDS, Compose, Finished, python
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from makemore_pl.checkpoint import read_checkpoint
from makemore_pl.report.summary import write_summary
from makemore_pl.running.signals import SIGNALS, Stopped, again
from makemore_pl.sweep.directory_names import job_name, sweep_name
from makemore_pl.sweep.gpu import take_gpu
from makemore_pl.sweep.job import _run_locked, decisive, fail, read_failure, refuse_other_run, run_job
from makemore_pl.sweep.launch import launch
from makemore_pl.sweep.stopping import set_up_worker, stay_if_leaving, stop_on_signals
from makemore_pl.sweep.tally import Sweep, is_locked
from makemore_pl.train import run

SMALL = (
    "trainer=cpu", "trainer.engine=eager", "trainer.max_steps=40", "trainer.val_check_interval=10",
    "trainer.watch_every=10", "data.batch_size=8", "model.n_hidden=12", "model.batchnorm=pre", "logger=none",
    "callbacks=none", "+callbacks.fault._target_=faults.Fault", "+callbacks.fault.step=15",
)  # fmt: skip
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
LOSSES = ("train/loss", "val/loss", "test/loss", "initial_loss")


def losses(directory: Path) -> dict[str, float]:
    metrics = json.loads((directory / "metrics.json").read_text())
    return {key: metrics[key] for key in LOSSES}


def alone(compose: Compose, words_file: Path, run_dir: Path, *overrides: str) -> dict[str, float]:
    """The losses of the same job as a plain run."""
    metrics: dict[str, Any] = run(compose(f"data.path={words_file}", *SMALL, *overrides, run_dir=run_dir), False)
    return {key: metrics[key] for key in LOSSES}


def times(directory: Path) -> dict[str, int]:
    """When each file of a job was last written, but for its page, which is made at the end of a sweep."""
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*") if path.name != "report.html"}


@contextmanager
def started(*arguments: str | Path, cwd: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A real Python process in a process group of its own, which does not outlive the test."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell ignores it for what it starts in the background, tests among them, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def of_session(session: int) -> list[str]:
    """The living processes of a session, by `ps`."""
    listed = subprocess.run(["ps", "-wweo", "sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [args for sid, stat, args in rows if int(sid) == session and not stat.startswith("Z")]


# --- names -----------------------------------------------------------------------------------------------------------


def test_job_names_show_what_varies() -> None:
    overrides = ["+experiment=kaiming", "model.gain=0.5", "data.batch_size=8", "seed=1"]
    assert job_name(overrides, ["model.gain", "data.batch_size", "seed"]) == "gain=0.5_batch_size=8_seed=1"
    assert job_name(overrides, ["experiment", "seed"]) == "experiment=kaiming_seed=1"
    assert job_name(["optim.eps=1", "model.eps=2"], ["optim.eps", "model.eps"]) == "optim.eps=1_model.eps=2"
    assert job_name(overrides, []) == "job"
    assert sweep_name({"experiment": "kaiming", "trainer.max_steps": "9"}, ["seed"]) == "kaiming_max_steps=9_seed"
    assert sweep_name({}, ["experiment", "model.gain"]) == "experiment_gain"


VALUES = st.tuples(st.text(), st.text())


@given(VALUES, VALUES)
def test_job_names_are_safe_stable_and_tell_values_apart(first: tuple[str, str], second: tuple[str, str]) -> None:
    names = [
        job_name([f"model.gain={a}", f"data.path={b}"], ["model.gain", "data.path"]) for a, b in (first, second, first)
    ]
    assert names[0] == names[2]
    assert (names[0].lower() == names[1].lower()) == (first == second)
    for name in names:
        assert len(name.encode()) <= 160
        assert not set(name) & set("/\\:*?\"'<>| \n\0$")


def test_values_with_separators_are_told_apart() -> None:
    assert job_name(["a=1_b=2", "b=3"], ["a", "b"]) != job_name(["a=1", "b=2_b=3"], ["a", "b"])


def test_config_hash_is_of_what_decides_the_result(compose: Compose, tmp_path: Path) -> None:
    def of(*overrides: str, run_dir: str = "here") -> dict[str, Any]:
        return decisive(compose(*overrides, run_dir=tmp_path / run_dir))

    here = of("seed=1")
    assert of("seed=1", "trainer.enable_progress_bar=false", "callbacks=none", "logger=none", run_dir="there") == here
    moved = "callbacks.figures._target_=makemore_pl.diagnostics.callbacks.Figures"
    assert of("seed=1", moved) == here, "an older sweep goes on"
    assert of("seed=2") == here | {"seed": 2}
    stop = ("+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.stop.monitor=val/loss")
    placed = "+callbacks.stop.place=${run_dir}/x"
    assert of("seed=1", *stop) != here
    assert of("seed=1", *stop, placed) == of("seed=1", *stop, placed, run_dir="there")


# --- what a sweep knows of its jobs -----------------------------------------------------------------------------------


def finish(job: Path) -> None:
    """The files of a job that has just ended."""
    job.mkdir(parents=True)
    (job / "metrics.json").write_text('{"val/loss": 2.0}')
    (job / "config.yaml").write_text("seed: 1\n")


@pytest.fixture
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep of four jobs that this process has started."""
    sweep = Sweep(tmp_path, {name: [f"name={name}"] for name in "abcd"})
    monkeypatch.setattr(Sweep, "current", sweep)
    return sweep


def reach(job: Path, step: int) -> None:
    """The files of a job of 1,000 steps that is running."""
    job.mkdir(exist_ok=True)
    (job / "config.yaml").write_text("trainer:\n  max_steps: 1000\n")
    with (job / "diagnostics.jsonl").open("a") as file:
        file.write(json.dumps({"version": 1, "step": step, "values": {"train/loss": 2.0}}) + "\n")


def test_time_left_follows_the_steps_of_this_command(four: Sweep) -> None:
    assert four.progress() == "0 of 4 jobs done, 0 running, 4 waiting, 0 failed"
    four.started -= 600
    reach(four.directory / "b", 20)
    reach(four.directory / "c", 40)
    with FileLock(four.directory / "b" / "running.lock"), FileLock(four.directory / "c" / "running.lock"):
        assert four.progress() == "0 of 4 jobs done, 2 running, 2 waiting, 0 failed"
        reach(four.directory / "b", 500)
        reach(four.directory / "c", 250)
        left = 600 / 0.75 * 3.25  # seconds that a job takes, times jobs left
        assert four.seconds_left() == pytest.approx(left, rel=1e-3)
        finish(four.directory / "a")
        fail(four.directory / "d", four.command, "the value is wrong")
        four.started = time.monotonic() - 70
        assert four.seconds_left() == pytest.approx(70 / 1.75 * 1.25, rel=1e-3)
        assert four.progress() == "1 of 4 jobs done, 2 running, 0 waiting, 1 failed, about 51 s left"
    resumed = Sweep(four.directory, four.jobs)
    resumed.started -= 100
    assert resumed.seconds_left() is None, "what other commands did is no pace of this one"
    reach(four.directory / "b", 1000)
    assert resumed.seconds_left() == pytest.approx(100 / 0.5 * 1.75, rel=1e-3)


def test_failures_of_other_commands_do_not_count(four: Sweep) -> None:
    fail(four.directory / "a", "another", "that was yesterday")
    fail(four.directory / "b", four.command, "the value is wrong")
    assert four.failures() == {"b": "the value is wrong"}


def test_progress_survives_files_that_vanish(four: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(four.directory / "a")
    fail(four.directory / "b", four.command, "the value is wrong")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    for path in [*four.directory.glob("*/*")]:
        path.unlink()
    assert four.progress() == "0 of 4 jobs done, 0 running, 4 waiting, 0 failed"


def test_a_finished_job_is_left_without_a_lock_file(four: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(four.directory / "a")
    lock = four.directory / "a" / "running.lock"
    assert not is_locked(lock)
    assert not lock.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: True)  # as if the job ended between two looks
        assert not is_locked(lock)
    assert not lock.exists()


def test_a_lock_file_may_be_gone_when_its_job_ends(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)))
    monkeypatch.setattr("makemore_pl.sweep.job.HydraConfig", SimpleNamespace(get=lambda: hydra))
    monkeypatch.setattr("makemore_pl.sweep.job.resolve", lambda raw: small())

    def run_locked(directory: Path, config: object) -> float:
        (directory / "running.lock").unlink()
        return 2.0

    monkeypatch.setattr("makemore_pl.sweep.job._run_locked", run_locked)
    assert run_job(DictConfig({})) == 2.0


def test_a_checkpoint_cut_short_by_a_kill_is_passed_over(
    small: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "run"
    expected = run(small("logger=jsonl"), announce=False)
    written = (directory / "diagnostics.jsonl").read_text()
    (directory / "metrics.json").unlink()
    last = directory / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    best = last.with_name("best.ckpt")
    best.write_bytes(best.read_bytes()[:1000])
    assert _run_locked(directory, small("logger=jsonl")) == expected["val/loss"]
    assert losses(directory) == {key: expected[key] for key in LOSSES}
    assert (directory / "diagnostics.jsonl").read_text() == written
    assert (
        "last.ckpt is not a checkpoint, or is truncated or damaged (ValueError). It is removed, and the job starts from"
        in caplog.text
    )
    (directory / "metrics.json").unlink()
    last.unlink()
    assert _run_locked(directory, small("logger=jsonl")) == expected["val/loss"]
    assert (directory / "diagnostics.jsonl").read_text() == written


def test_a_sweep_ends_with_cards_coloured_by_what_was_swept(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep(tmp_path, {f"gain={gain}_seed=1": [f"model.gain={gain}", "data.path=a b"] for gain in (1, 3)})
    monkeypatch.setattr(Sweep, "current", sweep)
    monkeypatch.chdir(tmp_path)

    def main() -> None:
        for job, overrides in sweep.jobs.items():
            run(small("logger=jsonl", "callbacks=none", overrides[0], run_dir=tmp_path / job), announce=False)

    launch(main)
    out = capsys.readouterr().out
    best = min(sweep.jobs, key=lambda job: losses(tmp_path / job)["val/loss"])
    (line,) = (line for line in out.splitlines() if line.startswith("best "))
    assert shlex.split(line)[-2:] == list(sweep.jobs[best])
    (place,) = (place for place, line in enumerate(out.splitlines()) if line.startswith("TensorBoard "))
    command, pinned = out.splitlines()[place : place + 2]
    assert command.endswith("tensorboard --logdir .")
    assert pinned.strip() == "and open the address in dashboard.url: the main charts, pinned"
    address = unquote((tmp_path / "dashboard.url").read_text().splitlines()[0])
    assert '"tag":"train/loss' in address
    assert "runColorGroup=regex:gain=(.+?)" in address


def test_what_ends_a_launch_does_not_hide_what_ran(four: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        finish(four.directory / "a")
        fail(four.directory / "b", four.command, "the value is wrong")
        raise ValueError("c is of another config.")

    with pytest.raises(ValueError, match=r"^c is of another config\.\n1 of 4 jobs failed.*\n  b: the value is wrong$"):
        launch(main)
    assert "1 of 4 jobs done, 0 running, 2 waiting, 1 failed" in capsys.readouterr().err


def test_a_summary_that_fails_does_not_hide_the_failures(four: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        finish(four.directory / "a")
        (four.directory / "summary.csv").mkdir()
        fail(four.directory / "b", four.command, "the value is wrong")

    reasons = r"^There is no summary\. .*: Is a directory.*\n1 of 4 .*\n  b: the value is wrong$"
    with pytest.raises(ValueError, match=reasons):
        launch(main)


def test_a_sweep_without_its_summary_has_failed(four: Sweep) -> None:
    def main() -> None:
        finish(four.directory / "a")
        (four.directory / "summary.csv").mkdir()

    with pytest.raises(ValueError, match=r"^There is no summary\. .*: Is a directory"):
        launch(main)


def test_a_reason_that_cannot_be_written_is_printed(four: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        for job in "acd":
            finish(four.directory / job)
        (four.directory / "b").touch()
        fail(four.directory / "b", four.command, "the value is wrong\nin two lines")

    with pytest.raises(ValueError, match=r"^1 of 4 jobs failed and left no reason: b\.$"):
        launch(main)
    assert "b failed: the value is wrong" in capsys.readouterr().err.splitlines()


def test_a_launcher_that_fails_says_why(four: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise OSError("no space left\non the device")

    with pytest.raises(ValueError, match=r"no job gets on\. OSError: no space left$"):
        launch(main)
    assert "The launcher gave up. OSError: no space left" in capsys.readouterr().err.splitlines()


def test_a_directory_that_cannot_be_written_is_said_once(four: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        (four.directory / "a").touch()
        (four.directory / "a" / "checkpoints").mkdir()

    with pytest.raises(NotADirectoryError):
        launch(main)
    assert "The launcher gave up" not in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["jobs", "summary"])
def test_a_signal_at_any_moment_ends_in_a_sentence(
    four: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    def main() -> None:
        finish(four.directory / "a")
        if moment == "jobs":
            signal.raise_signal(signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr("makemore_pl.report.summary.read_runs", lambda _: signal.raise_signal(signal.SIGTERM))
    try:
        stop_on_signals(four.stop, bool)
        with pytest.raises(SystemExit) as ended:
            launch(main)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 143
    assert "stopped: 1 of 4 jobs done" in capsys.readouterr().err


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        stop_on_signals(lambda: None, bool)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_after_all_is_done_ends_the_process_without_a_word() -> None:
    code = "import os, signal; from makemore_pl.running.signals import end_at_once, handle; "
    code += "handle(lambda number: print('heard')); end_at_once(); os.kill(os.getpid(), signal.SIGTERM)"
    done = python("-c", code, cwd=ROOT)
    assert done == (-signal.SIGTERM, "", "")


def test_a_stop_keeps_its_exit_status_between_processes() -> None:
    stopped = pickle.loads(pickle.dumps(Stopped("at step 3", 129)))
    assert (str(stopped), stopped.code) == ("at step 3", 129)


def test_a_command_to_go_on_with_is_for_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "it's here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PWD", str(here))
    argv = ["scripts/train.py", "-m", "seed=1,2", "hydra.sweep.dir=a b", "data.path=words.txt", "run_dir=x"]
    command = again(argv, {"hydra.sweep.dir": "/there", "run_dir": ""})
    assert shlex.split(command) == [
        "cd", str(here), "&&", sys.executable, str(here / "scripts" / "train.py"), "-m", "seed=1,2",
        "data.path=words.txt", "hydra.sweep.dir=/there",
    ]  # fmt: skip
    here.rmdir()
    assert again(argv, {"hydra.sweep.dir": "/there", "run_dir": ""}) == command


def test_a_worker_that_is_told_to_end_finishes_what_it_sends_and_takes_nothing_more(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the sweep itself sets it, so that Hydra raises
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=set_up_worker) as worker:
        worker.submit(exec, "from makemore_pl.sweep import stopping; stopping.GRACE = 0.5").result()
        full = "import threading; thread = threading.Thread(target=open, args=['/no/such/file']); "
        worker.submit(exec, full + "thread.start(); thread.join()").result()
        worker.submit(exec, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)").result()
        with pytest.raises(BrokenProcessPool):
            worker.submit(stay_if_leaving).result(timeout=60)
    assert "no/such/file" not in capfd.readouterr().err, "threads end in no traceback of a mistake"


def test_workers_share_out_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    taken = []
    for _ in range(2):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
            worker.submit(take_gpu).result()
            taken.append(worker.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result())
    assert sorted(taken) == ["3", "GPU-5a"]
    take_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,GPU-5a", "not outside of a worker"


def test_a_damaged_job_says_which_file(small: Compose, tmp_path: Path) -> None:
    for content in ("", "[" * 10**5, "3", '{"val/loss": "x"}'):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(ValueError, match=r"metrics\.json is damaged\. Remove it, and the same command runs"):
            _run_locked(tmp_path, small())
    for content in ("", "[" * 10**5, "3", "{}"):
        (tmp_path / "failure.json").write_text(content)
        assert read_failure(tmp_path).get("command") is None


# --- on the command line --------------------------------------------------------------------------------------------


def test_interrupted_and_killed_sweeps_go_on(
    train_script: Callable[..., Finished], compose: Compose, words_file: Path, tmp_path: Path
) -> None:
    arguments = ["-m", f"data.path={words_file}", *SMALL, "+callbacks.fault.how=env", "seed=1,2,3"]
    arguments += ["hydra.sweep.dir=sweep"]
    jobs = {seed: tmp_path / "sweep" / f"seed={seed}" for seed in (1, 2, 3)}

    def is_waiting(seed: int) -> bool:
        saved, lock = jobs[seed] / "checkpoints" / "last.ckpt", jobs[seed] / "running.lock"
        return saved.exists() and lock.exists() and is_locked(lock)

    script = ROOT / "scripts" / "train.py"
    fault = {"FAULT": "seed=2:wait seed=3:wait"}
    with started(script, *arguments, "hydra.launcher.n_jobs=2", cwd=tmp_path, **ENVIRONMENT, **fault) as process:
        wait_until(lambda: is_waiting(2) and is_waiting(3) and (jobs[1] / "metrics.json").exists(), process)
        finished = times(jobs[1])
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
        begun = time.monotonic()
        assert process.stderr is not None
        err = ""
        for line in process.stderr:
            err += line
            if "jobs are saving" in line:
                break
        (tmp_path / "sweep" / "go").touch()
        err += process.stderr.read()
        process.wait(timeout=60)
    (tmp_path / "sweep" / "go").unlink()
    assert process.returncode == 130
    assert time.monotonic() - begun < 8  # an idle machine needs half a second
    assert "Traceback" not in err
    saved = [read_checkpoint(jobs[seed] / "checkpoints" / "last.ckpt")["global_step"] for seed in (2, 3)]
    assert all(step in (21, 31) for step in saved), "the end of a stride; the last validation was at step 11"
    *_, shown, last = err.splitlines()
    assert "waiting" not in shown
    assert "left" not in shown
    place = re.escape(str(tmp_path / "sweep"))
    said = re.fullmatch(
        rf"stopped: 1 of 3 jobs done, 2 saved where they stood, 0 failed, in {place}; go on with: (.*)", last
    )
    assert said
    goes_on = said[1]

    with started(script, *arguments, "hydra.launcher.n_jobs=2", cwd=tmp_path, **ENVIRONMENT, **fault) as process:
        wait_until(lambda: any("LokyProcess" in each for each in of_session(process.pid)), process)
        os.kill(process.pid, signal.SIGKILL)  # before the workers have taken a job
        begun = time.monotonic()
        while of_session(process.pid):
            assert time.monotonic() - begun < 20, "workers end with their parent"
            time.sleep(0.1)

    arguments.append("hydra/launcher=basic")
    with started(script, *arguments, cwd=tmp_path, **ENVIRONMENT, **fault) as process:
        wait_until(lambda: is_waiting(2), process)
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped: 1 of 3 jobs done" in err
    assert "Traceback" not in err
    assert not is_waiting(2)
    assert not [*tmp_path.rglob("failure.json")]

    environment = os.environ | ENVIRONMENT
    done = subprocess.run(goes_on, shell=True, cwd="/", env=environment, capture_output=True, text=True, timeout=120)
    out, err = done.stdout, done.stderr
    assert done.returncode == 0, err
    assert err.splitlines()[0] == "3 jobs in sweep"
    assert "3 of 3 jobs done, 0 running, 0 waiting, 0 failed" in err
    assert times(jobs[1]) == finished
    for seed, job in jobs.items():
        expected = alone(compose, words_file, tmp_path / f"alone{seed}", "+callbacks.fault.how=env", f"seed={seed}")
        assert losses(job) == expected
        assert not (job / "running.lock").exists()
    best = min(jobs.values(), key=lambda job: losses(job)["val/loss"])
    told = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith(("best", "page", "TensorBoard")))
    assert shlex.split(told["best"])[1:3] == [str(ROOT / "scripts" / "train.py"), f"data.path={words_file}"]
    assert best.name in shlex.split(told["best"])
    assert shlex.split(told["TensorBoard"], comments=False)[1:3] == ["--logdir", "sweep"]
    assert (tmp_path / told["page"].strip()).is_file()
    assert not (tmp_path / "sweep" / "dashboard.url").exists(), "these jobs log nothing"

    before = {job: times(job) for job in jobs.values()}
    arguments[arguments.index("seed=1,2,3")] = "seed=4,1"
    code, _, err = train_script(*arguments, "optim.lr=0.2", **ENVIRONMENT)
    assert code == 1
    assert not (tmp_path / "sweep" / "seed=4").exists(), "refused before any job runs"
    assert "holds a run of another config" in err
    assert "Traceback" not in err
    assert {job: times(job) for job in jobs.values()} == before


@pytest.mark.parametrize(("overrides", "drawn"), [([], {"7"}), (["+callbacks.figures.steps=[0,5]"], {"0", "5", "7"})])
def test_jobs_draw_the_pictures_of_their_last_step(
    small: Compose, tmp_path: Path, overrides: list[str], drawn: set[str]
) -> None:
    config = small("callbacks=diagnostics", "logger=jsonl", "trainer.max_steps=8", *overrides)
    _run_locked(tmp_path / "run", config)
    assert {path.stem.rpartition("_")[2] for path in (tmp_path / "run" / "figures").iterdir()} == drawn
    refuse_other_run(tmp_path / "run", config)  # it is the same run


def test_a_finished_job_on_other_words_is_refused(small: Compose, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(WORDS), encoding="utf-8")
    config = small(f"data.path={words}")
    run(config)
    words.write_text("\r\n".join(WORDS), encoding="utf-8")
    refuse_other_run(tmp_path / "run", config)
    words.write_text("\n".join(WORDS[::-1]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"run holds a run on other words than .*words\.txt has now: name another"):
        refuse_other_run(tmp_path / "run", config)


def test_failures_stay_alone(
    train_script: Callable[..., Finished], compose: Compose, words_file: Path, tmp_path: Path
) -> None:
    arguments = ["-m", f"data.path={words_file}", *SMALL, "hydra.sweep.dir=sweep"]
    faults = "+callbacks.fault.how=exit,memory,value,not_finite,none"
    code, _, err = train_script(*arguments, faults, "hydra/launcher=basic", **ENVIRONMENT)
    sweep = tmp_path / "sweep"
    assert code == 1
    assert "1 of 5 jobs done, 0 running, 0 waiting, 4 failed" in err
    assert "Traceback" not in err
    reasons = {
        "exit": "SystemExit: 3",
        "memory": "There is not enough memory",
        "value": "the value is wrong",
        "not_finite": "is not finite",
    }
    for how, reason in reasons.items():
        row = next(line for line in err.splitlines() if line.startswith(f"  how={how}: "))
        assert reason in row
        assert reason in (sweep / "summary.md").read_text()
    assert losses(sweep / "how=none") == alone(compose, words_file, tmp_path / "alone", "+callbacks.fault.how=none")
    with (sweep / "summary.csv").open() as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    assert float(rows["how=none"]["val/loss"]) == losses(sweep / "how=none")["val/loss"]


def test_a_killed_process_costs_its_job_alone(compose: Compose, words_file: Path, tmp_path: Path) -> None:
    arguments = [
        "-m",
        f"data.path={words_file}",
        *SMALL,
        "+callbacks.fault.how=kill,beside",
        "hydra.sweep.dir=sweep",
    ]
    script = ROOT / "scripts" / "train.py"
    with started(script, *arguments, "hydra.launcher.n_jobs=2", cwd=tmp_path, **ENVIRONMENT) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "1 of 2 jobs done, 0 running, 0 waiting, 1 failed" in err
    assert "  how=kill: its process was killed twice, perhaps out of memory" in err
    assert "Traceback" not in err
    expected = alone(compose, words_file, tmp_path / "alone", "+callbacks.fault.how=none")
    assert losses(tmp_path / "sweep" / "how=beside") == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["+experiment=sweep_gain,kaiming"], "+experiment=sweep_gain is a sweep itself"),
        (["trainer.devices=2", "seed=1,2", "hydra/launcher=basic"], "trainer.devices must be 1 in a sweep"),
        (["optim.lr=interval(0,1)"], "name the values to sweep over"),
    ],
)
def test_refused(train_script: Callable[..., Finished], tmp_path: Path, arguments: list[str], sentence: str) -> None:
    code, _, err = train_script("-m", *arguments)
    assert code == 1
    assert sentence in err
    assert "Traceback" not in err
    assert "Error executing" not in err
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_finished_job_whose_settings_are_refused_now_stops_the_sweep(
    train_script: Callable[..., Finished], words_file: Path, tmp_path: Path
) -> None:
    finished = tmp_path / "sweep" / "gain=-1"
    finished.mkdir(parents=True)
    for name in ("config.yaml", "metrics.json"):
        (finished / name).write_text("{}")
    arguments = ("model.gain=-1,1", "hydra.sweep.dir=sweep", "hydra/launcher=basic", f"data.path={words_file}")
    code, _, err = train_script("-m", *arguments, *SMALL, **ENVIRONMENT)
    assert (code, err.splitlines()[-1]) == (1, "error: model.gain must be greater than 0, got -1.0.")
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["gain=-1"], "no job has run"


def test_single_values_make_one_job(train_script: Callable[..., Finished], words_file: Path, tmp_path: Path) -> None:
    short = (f"data.path={words_file}", "trainer.max_steps=8", "trainer.engine=eager", "hydra/launcher=basic")
    code, _, err = train_script("-m", "seed=1", "callbacks=none", "logger=none", "hydra.sweep.dir=one", *short)
    assert code == 0, err
    assert "Warning" not in err
    (job,) = (path.parent for path in tmp_path.glob("one/*/metrics.json"))
    assert job.name.startswith("seed=1_")


def test_lists_are_swept_too(small: Compose, tmp_path: Path) -> None:
    for place, steps in enumerate(("[0]", "[0,5]")):
        short = ("callbacks=diagnostics", "logger=jsonl", "trainer.max_steps=8")
        run(small(*short, f"+callbacks.figures.steps={steps}", run_dir=tmp_path / "sweep" / f"{place}"), announce=False)
    (ranking,) = write_summary(tmp_path / "sweep")
    assert {row[0] for row in ranking.cells} == {"[0]", "[0, 5]"}
    assert "[0, 5]" in (tmp_path / "sweep" / "summary.csv").read_text()
