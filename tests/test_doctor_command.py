"""scripts/doctor.py, prescriptions and their verification, on the real command line and in the real training."""

import json
import math
import runpy
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import EXPERIMENTS, ROOT, Compose, Finished, python
from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import get_gh_backup, restore_gh_from_backup

from makemore_pl.checkup import applied, brief, examine
from makemore_pl.config import Config
from makemore_pl.doctor.diagnosis import RULES, diagnose
from makemore_pl.doctor.evidence import Evidence
from makemore_pl.doctor.finding import Finding
from makemore_pl.doctor.handbook import handbook
from makemore_pl.doctor.prescribing import FORMULAS, RATES, prescribe, rounded, snapped
from makemore_pl.doctor.recorded_run import facts_of_config, read_evidence
from makemore_pl.doctor.verifying import compare, student_tail
from makemore_pl.train import run

SCRIPT = ROOT / "scripts" / "doctor.py"


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """The whole of scripts/doctor.py in this process, which spares the imports: 5 s of CPU."""

    def run(*arguments: str) -> Finished:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments])
        composing = get_gh_backup()  # the conf fixture's
        GlobalHydra.instance().clear()
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(SCRIPT), run_name="__main__")
        finally:
            restore_gh_from_backup(composing)
        assert isinstance(ended.value.code, int)
        return Finished(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def recompose(compose: Compose) -> Callable[..., Config]:
    def again(overrides: list[str], run_dir: str = ".") -> Config:
        return compose(*overrides, run_dir=Path(run_dir))

    return again


def test_the_original_is_named_and_the_printed_command_mends_it(
    doctor: Callable[..., Finished], tmp_path: Path
) -> None:
    steps = ["trainer.max_steps=300", "trainer.val_check_interval=100", "trainer.watch_every=20"]
    told = python(SCRIPT, "+experiment=original", *steps, "doctor.fail_on=critical", cwd=tmp_path)
    assert told.code == 2, told.err
    assert told.out.index("1. The network begins confidently wrong") < told.out.index("2. tanh units are saturated")
    command = next(line.strip() for line in told.out.splitlines() if "doctor.py" in line)
    _, script, *arguments = shlex.split(command)
    assert (tmp_path / script).samefile(SCRIPT)
    mended = doctor(*arguments, "doctor.fail_on=warning")
    assert mended.code == 0, mended.out + mended.err
    assert "Healthy" in mended.out
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "is no directory"),
        (["doctor.seeds=2"], "at least 3"),
        (["--explain", "nothing"], "There is no finding"),
        (["."], "is not a run directory"),
    ],
)
def test_mistakes_end_in_one_sentence(doctor: Callable[..., Finished], arguments: list[str], words: str) -> None:
    done = doctor(*arguments)
    assert done.code == 1
    assert words in done.err
    assert len(done.err.splitlines()) == 1


ILL = {
    "original": ["confident_start", "saturation"],
    "clip": ["confident_start", "saturation"],
    "fix_softmax": ["saturation"],
    "gain_high": ["saturation"],
    "gain_low": ["vanishing_activations"],
    "small_init": ["vanishing_activations"],
    "deep_linear": ["linear_network"],
    "lr_low": ["update_too_small"],
}
"""Experiments that are ill on purpose, and the roots that they show; all others show none."""
SINGLE = [name for name in EXPERIMENTS if not name.startswith("sweep")]


@pytest.mark.parametrize("name", SINGLE)
def test_experiments_show_what_their_comments_say(name: str, recompose: Callable[..., Config]) -> None:
    short = ["trainer.max_steps=120", "trainer.watch_every=10", "trainer.val_check_interval=60"]
    diagnosis, _ = examine(brief([f"+experiment={name}", *short]), recompose)
    assert [each.id for each in diagnosis.roots] == ILL.get(name, [])
    comment = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text().partition("experiment:")[0]
    assert [id for id in RULES if f"`{id}`" in comment] == ILL.get(name, []), "the comment names its findings"


def test_the_handbook_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert page.endswith(handbook()), "python scripts/doctor.py --explain all"


# closed forms


def evidence_of(config: Config, **tags: float) -> Evidence:
    values = {tag.replace("__", "/").replace("_0", ".0"): value for tag, value in tags.items()}
    plain = {section: {k: getattr(getattr(config, section), k) for k in getattr(config, section).__slots__}
             for section in ("data", "model", "optim", "trainer")}  # fmt: skip
    return Evidence(
        {tag: {0: value, 50: value, 100: value} for tag, value in values.items()}, facts_of_config(plain, 27)
    )


def overrides_for(config: Config, id: str, **tags: float) -> tuple[str, ...]:
    evidence = evidence_of(config, **tags)
    finding = Finding(id, "warning", "x", 0, None, None, "", "")
    plain = {section: {k: getattr(getattr(config, section), k) for k in getattr(config, section).__slots__}
             for section in ("data", "model", "optim", "trainer")}  # fmt: skip
    diagnosis = replace(diagnose(evidence), findings=(finding,))
    return prescribe(diagnosis, evidence, plain)[0].overrides


def test_gain_from_the_measured_spread_of_the_preactivations(compose: Compose) -> None:
    # 5.56 of which 1 is the bias: sqrt(5.56^2 - 1) = 5.47 from the weights, and tanh wants 5/3
    found = overrides_for(compose("+experiment=original"), "saturation", preactivation_std__layers_0=5.56)
    assert found == ("model.gain=0.3", "model.hidden_bias=0.01")
    found = overrides_for(compose("+experiment=gain_low"), "vanishing_activations", preactivation_std__layers_0=0.478)
    assert found == ("model.gain=1.7",)


def test_output_scale_for_logits_of_a_small_spread(compose: Compose) -> None:
    config = compose("+experiment=original", "model.n_hidden=100")
    tags = {"activation_std__layers_0": 0.6, "activation_mean__layers_0": 0.8}
    # sqrt(0.6^2 + 0.8^2) = 1 over sqrt(100) inputs
    assert overrides_for(config, "confident_start", **tags) == ("model.output_scale=0.02", "model.output_bias=0")


def test_rate_by_the_distance_of_the_ratio(compose: Compose) -> None:
    ratio = {"update_data_ratio__layers_0.linear.weight": -4.5, "lr": 0.001}
    assert overrides_for(compose("+experiment=lr_low"), "update_too_small", **ratio) == ("optim.lr=0.1",)


def test_every_formula_belongs_to_a_rule_and_its_override_is_accepted(compose: Compose, small: Compose) -> None:
    assert set(FORMULAS) <= set(RULES)
    config = compose("+experiment=original", "trainer.gradient_clip_val=0.1", "model.batchnorm=pre")
    tags = {"preactivation_std__layers_0": 5.0, "activation_std__layers_0": 0.9, "activation_mean__layers_0": 0.0,
            "update_data_ratio__layers_0.linear.weight": -4.5, "grad_norm__before_clipping": 2.0}  # fmt: skip
    for id in FORMULAS:
        overrides = overrides_for(config, id, **tags)
        assert overrides, id
        small("+experiment=original", *overrides)


def test_rounding() -> None:
    assert [snapped(each) for each in (0.129, 0.0015, 30.0, 0.7)] == ["0.1", "0.002", "20", "0.5"]
    assert rounded(0.01523) == "0.02"
    assert rounded(1.743, 2) == "1.7"


# verification


def test_the_tail_of_student_s_t_is_that_of_the_tables() -> None:
    for t, degrees in ((6.314, 1), (2.920, 2), (2.353, 3), (2.132, 4), (1.812, 10)):
        assert student_tail(t, degrees) == pytest.approx(0.05, abs=5e-5)
        assert student_tail(-t, degrees) == pytest.approx(0.95, abs=5e-5)


def test_verdicts_of_a_paired_test() -> None:
    better = compare([2.4, 2.5, 2.6], [2.2, 2.31, 2.39])
    assert better.verdict == "verified"
    assert better.improvement == pytest.approx(0.2)
    assert compare([2.2, 2.31, 2.39], [2.4, 2.5, 2.6]).verdict == "refuted"
    assert compare([2.4, 2.5, 2.6], [2.41, 2.48, 2.61]).verdict == "no difference"
    assert compare([math.inf, 900.0, math.nan], [2.2, 2.3, 2.2]).verdict == "verified"
    assert compare([2.0, 2.0, 2.0], [2.0, 2.0, 2.0]).verdict == "no difference"
    with pytest.raises(ValueError, match="at least 3 seeds"):
        compare([2.4, 2.5], [2.3, 2.4])


def test_changes_take_the_place_of_overrides() -> None:
    assert applied(["+experiment=original", "optim.lr=3"], ["optim.lr=0.1", "model.gain=1"]) == [
        "+experiment=original",
        "optim.lr=0.1",
        "model.gain=1",
    ]


def test_verify_runs_both_from_the_same_seeds(doctor: Callable[..., Finished], words_file: Path) -> None:
    small = [f"data.path={words_file}", "model.n_hidden=12", "trainer.max_steps=60", "trainer.watch_every=10"]
    done = doctor("+experiment=original", *small, "doctor.verify=true", "--json")
    assert done.code == 0, done.err
    first = json.loads(done.out)["prescriptions"][0]
    assert (first["finding"], first["verified"]) == ("confident_start", "verified")
    assert "over 3 seeds" in first["trial"]


@pytest.mark.parametrize("optimizer", RATES)
def test_every_optimizer_trains_as_it_is_shipped(
    compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture, optimizer: str
) -> None:
    """Also in the first steps, which a longer run recovers from."""
    doctor = "callbacks={doctor: {_target_: makemore_pl.diagnostics.Doctor}}"
    watched = ("trainer.max_steps=40", "trainer.watch_every=1", doctor)
    quiet = ("trainer=cpu", "trainer.enable_progress_bar=false", "logger=jsonl")
    run(compose("+experiment=kaiming", f"optim={optimizer}", *watched, *quiet), announce=False)
    assert json.loads((tmp_path / "run" / "findings.json").read_text())["findings"] == []
    assert "The doctor, at step" not in caplog.text
    losses = read_evidence(tmp_path / "run")[0].losses().values
    assert max(losses) < 1.1 * losses[0]
    assert min(losses) < 0.9 * losses[0]


def test_the_rates_of_prescriptions_are_those_that_are_shipped() -> None:
    shipped = [yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / "optim").glob("*.yaml")]
    assert {each["name"]: each["lr"] for each in shipped} == RATES
