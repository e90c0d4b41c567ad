"""Options stand where they like, and what can't be understood is refused in one sentence."""

import argparse
import runpy
from pathlib import Path

import pytest
from conftest import ROOT

from makemore_pl.arguments import read, read_hydra, read_path

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("optim=adam ~callbacks.doctor --cfg job seed=1,2", "optim=adam ~callbacks.doctor seed=1,2 --cfg job"),
        ("seed=1 -cjob --config-dir=x=y +a='-b'", "seed=1 +a='-b' -cjob --config-dir=x=y"),
        ("seed=1 --config-dir x=y -m optim=adam", "seed=1 optim=adam --config-dir x=y -m"),
        ("--info seed=1", "seed=1 --info"),
        ("-i defaults seed=1", "seed=1 -i defaults"),
        ("-m -m seed=1 -- optim=adam", "seed=1 optim=adam -m -m"),
        ("model.gain=-1", "model.gain=-1"),
        ("seed=1 -- -- optim=adam", "seed=1 optim=adam"),
    ],
)
def test_hydra_s_options_may_stand_among_overrides(typed: str, read: str) -> None:
    assert read_hydra(typed.split()) == read.split()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--seed=3", "There is no option --seed. Type seed=3"),
        ("model.gain=2 --seed 3 optim=adam", "There is no option --seed. Type seed=3"),
        ("--seed optim=adam", "There is no option --seed. Type seed=VALUE"),
        ("--max-steps=5", "There is no option --max-steps. Type trainer.max_steps=5"),
        ("--optim.lr 0.1", "There is no option --optim.lr. Type optim.lr=0.1"),
        ("-lr=0.1", "There is no option -lr. Type optim.lr=0.1"),
        ("--experiment kaiming", "There is no option --experiment. Type +experiment=kaiming"),
        ("--trainer cpu", "There is no option --trainer. Type trainer=cpu"),
        ("seed=1 --multirn", "There is no option --multirn. Did you mean --multirun?"),
        ("--multi", "There is no option --multi. Did you mean --multirun?"),
        ("--bogus", "There is no option --bogus. -h lists the options."),
        ("--cfg --seed=1", "There is no option --seed. Type seed=1"),
        ("--cfg", "Argument --cfg/-c: expected one argument."),
        ("seed=1 --cfg jbo", "Argument --cfg/-c: invalid choice: 'jbo' (choose from "),
        ("--cfg job -c hydra", "-c is given twice."),
        ("-m=3", "Argument --multirun/-m: ignored explicit argument "),
    ],
)
def test_what_is_wrong_with_hydra_s_options(typed: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_hydra(typed.split())
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def understood(monkeypatch: pytest.MonkeyPatch, *typed: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=read_path)
    parser.add_argument("other", type=read_path, nargs="?")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--prompt")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--unique", action="store_true")
    parser.add_argument("--only", action="append")
    monkeypatch.setattr("sys.argv", ["x.py", *typed])
    return read(parser)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (["a", "--count", "3", "b"], {"run": Path("a"), "other": Path("b"), "count": 3}),
        (["--unique", "a", "--count=3", "--unique"], {"run": Path("a"), "other": None, "count": 3, "unique": True}),
        (["a", "--only", "x", "--only=y"], {"only": ["x", "y"]}),
        (["a", "--scale", "-1e3", "--count", "-1"], {"scale": -1000, "count": -1}),
        (["a", "--prompt=-x"], {"prompt": "-x"}),
        (["a", "--prompt", "-x y"], {"prompt": "-x y"}),
        (["--prompt", "", "--", "-a", "--unique"], {"prompt": "", "run": Path("-a"), "other": Path("--unique")}),
    ],
)
def test_options_may_stand_anywhere(
    monkeypatch: pytest.MonkeyPatch, typed: list[str], found: dict[str, object]
) -> None:
    assert found.items() <= vars(understood(monkeypatch, *typed)).items()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["a", "--cuont", "3"], "There is no option --cuont. Did you mean --count?"),
        (["--cuont=3"], "There is no option --cuont. Did you mean --count?"),
        (["a", "--top_k", "3"], "There is no option --top_k. Did you mean --top-k?"),
        (["a", "--cou", "3"], "There is no option --cou. Did you mean --count?"),
        (["a", "--lr=3"], "There is no option --lr. -h lists the options."),
        (["a", "--count", "3", "--count=4"], "--count is given twice."),
        (["a", "--prompt", "-x"], "--prompt lacks its value; one that begins with a dash is typed --prompt=-x"),
        (["a", "--count"], "Argument --count: expected one argument."),
        (["a", "--count", ""], "Argument --count: invalid int value: ''."),
        (["a", "b", "count=3"], "'count=3' is one argument too many; an option is typed as --option VALUE."),
        ([""], "Argument run: a path can't be empty."),
        ([], "The following arguments are required: run."),
    ],
)
def test_what_is_wrong_with_options(monkeypatch: pytest.MonkeyPatch, typed: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        understood(monkeypatch, *typed)
    assert str(caught.value) == said


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_refuses_an_unknown_option(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(ROOT / "scripts" / f"{script}.py"), "--bogus"])
    monkeypatch.setattr("makemore_pl.running.signals.SIGNALS", [])  # train.py ends with Python's own handlers
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 1
    assert capsys.readouterr() == ("", "error: There is no option --bogus. -h lists the options.\n")
    assert not list(tmp_path.iterdir())
