"""The files that a repository has beside its code say the same as it. Run alone: pytest tests/test_repository.py"""

import re
import tomllib

import yaml
from conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_ci_runs_what_must_pass() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    typed = [step["run"] for step in job["steps"] if "run" in step]
    assert [line.removeprefix("make ") for line in typed] == ["check", "test"]
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "exec make check test"
    assert {"check", "test"} <= TARGETS


def test_hooks_are_the_checks() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = [re.sub(r"^\.venv/bin/| --force-exclude", "", hook["entry"]) for hook in repository["hooks"]]
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe
    checks = [re.sub(r"\$\(BIN\)/| --check| \.$", "", line.strip()) for line in recipe[1].splitlines()]
    assert hooks == [re.sub(r" \.$", "", check) for check in checks]


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_issue_templates_are_forms() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for form in forms:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(content)
        ids = [each["id"] for each in content["body"]]
        assert len(ids) == len(set(ids))
        assert {each["type"] for each in content["body"]} <= {"input", "textarea", "markdown", "dropdown", "checkboxes"}


def test_image_runs_the_command_of_the_readme() -> None:
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line]
    assert lines[-1] == 'CMD ["make", "train"]'
    assert "train" in TARGETS
