"""Imports point one way (scripts -> sweep, report -> train -> module, diagnostics -> stride, model -> torch), what is
private in other packages stands in one place, and no file is longer than LONGEST_FILE."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "makemore_pl"
LONGEST_FILE = 330
"""Lines. CONTRIBUTING.md asks for 60 to 250; a file that is longer than this must be divided."""
FRAMEWORKS = {"lightning", "hydra", "torchmetrics", "pytorch_lightning"}


def imported(path: Path, everywhere: bool = True) -> set[str]:
    """Dotted names of the modules that a file imports; without `everywhere` only when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    nodes = ast.walk(tree) if everywhere else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def ours(path: Path) -> set[str]:
    """The modules of makemore_pl that a file imports, without the package's name."""
    modules = {".".join(each.relative_to(ROOT).with_suffix("").parts) for each in PACKAGE.rglob("*.py")}
    modules |= {name.removesuffix(".__init__") for name in modules} - {"makemore_pl"}
    return {name.removeprefix("makemore_pl.") for name in imported(path) & modules}


@pytest.mark.parametrize("name", ["statistics", "unit_axis", "tag_names", "offers", "taps", "update"])
def test_diagnostics_at_the_bottom_import_torch_only(name: str) -> None:
    path = PACKAGE / "diagnostics" / f"{name}.py"
    assert "torch" in roots(path), "the listing of imports must have worked"
    assert roots(path) - set(sys.stdlib_module_names) <= {"torch", "makemore_pl"}
    below = {f"diagnostics.{other}" for other in ("statistics", "unit_axis", "tag_names", "taps")}
    assert ours(path) <= below | {"module_copy"}
    assert roots(PACKAGE / "module_copy.py") - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.parametrize("name", ["model", "initialization"])
def test_the_network_knows_neither_lightning_nor_hydra(name: str) -> None:
    path = PACKAGE / f"{name}.py"
    assert not roots(path) & FRAMEWORKS
    assert not roots(path) & {"omegaconf"}
    assert {place(other) for other in ours(path)} <= {"activations", "config", "dropout", "initialization"}


def test_the_report_knows_neither_lightning_nor_hydra() -> None:
    for path in (PACKAGE / "report").rglob("*.py"):
        assert not roots(path) & FRAMEWORKS, path


@pytest.mark.parametrize("name", ["config", "errors"])
def test_config_and_errors_import_no_torch(name: str) -> None:
    for path in (PACKAGE / "config").glob("*.py") if name == "config" else [PACKAGE / f"{name}.py"]:
        assert not roots(path) & {"torch", "lightning", "torchmetrics"}
        assert {place(other) for other in ours(path)} <= {"command_line", "config", "stored_files", "stored_form"}


def test_what_the_network_drags_in() -> None:
    """In a fresh process, importing the network does not import Lightning, directly or indirectly."""
    code = (
        "import sys, makemore_pl.model; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'lightning', 'torchmetrics', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['torch']"


RANKS = {
    "command_line": 0, "files": 0, "module_copy": 0, "dropout": 0, "activations": 0, "lightning_internals": 0,
    "stored_form": 0, "stored_files": 1, "diagnostics_file": 1, "config": 2, "figures": 2, "losses": 2, "doctor": 3,
    "errors": 3, "words": 3, "initialization": 3, "arguments": 3, "model": 4, "stride": 4, "diagnostics": 4,
    "report": 4, "data": 5, "sample": 6, "module": 6, "checkpoint": 7, "callbacks": 7, "running": 7, "evaluate": 8,
    "train": 9, "sweep": 10, "checkup": 10,
}  # fmt: skip
"""Rank of each room and each top-level file. A file may import files of lower rank and those of its own room."""
SHELTERED = {
    "figures": set(),
    "diagnostics": {"diagnostics_file", "doctor", "figures", "files", "module_copy"},
    "report": {"command_line", "diagnostics_file", "doctor", "figures", "files", "stored_files", "stored_form"},
}
"""Rooms that work without the rest of the project, and what they may import of it."""


def place(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_its_rank() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert set(RANKS) == found - {"__init__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    elsewhere = {place(other) for other in ours(path)} - {here}
    assert not {other for other in elsewhere if RANKS[other] >= RANKS[here]}
    assert elsewhere <= SHELTERED.get(here, elsewhere)


def test_no_two_files_have_the_same_name() -> None:
    names = [path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
    names += [path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))]
    assert len(set(names)) == len(names), sorted(name for name in set(names) if names.count(name) > 1)


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_thin_and_answer_help_without_torch(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    at_once = {name.partition(".")[0] for name in imported(path, everywhere=False)}
    assert not at_once & {"torch", "lightning", "torchmetrics"}


def test_instantiate_is_called_in_one_place() -> None:
    calls = [
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "instantiate"
    ]
    assert calls == ["train.py"]


def test_targets_are_callbacks_and_loggers_only() -> None:
    # conf/train.yaml has one in its hydra node: a callback of Hydra's
    groups = {path.parent.name for path in (ROOT / "conf").rglob("*.yaml") if "_target_" in path.read_text()}
    assert groups == {"callbacks", "logger", "conf"}
    own, _ = (ROOT / "conf" / "train.yaml").read_text().split("\nhydra:\n")
    assert "_target_" not in own


def test_no_drawer_of_odds_and_ends() -> None:
    names = {path.stem for path in PACKAGE.rglob("*")}
    assert not names & {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def test_files_can_be_read_in_one_sitting() -> None:
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > LONGEST_FILE}
    assert not long


INTERNALS = {"stride/torch_internals.py", "lightning_internals.py"}
"""Files for what torch and Lightning keep private."""
ELSEWHERE = {
    "arguments.py": {"_internal", "_option_string_actions", "_actions", "_AppendAction"},
    "diagnostics/callback.py": {"_generate_state_key"},
    "diagnostics/dashboard.py": {"_prefix", "_get_file_writer"},
    "diagnostics/taps.py": {"_C", "_functorch", "_current_graph_task_id", "_compiled_call_impl"},
    "diagnostics/unit_axis.py": {"_ConvNd", "_InstanceNorm"},
    "doctor/activation_graph.py": {"_sequence_nr", "_saved_p"},
    "doctor/inspection.py": {"_ConvNd", "_InstanceNorm", "_DropoutNd", "_version"},
    "doctor/linear_rows.py": {"_ConvNd"},
    "doctor/mixed_examples.py": {"_python_dispatch"},
    "doctor/loss_graph.py": {"_saved_ignore_index", "_saved_exponent"},
}
"""Private names that are used where they are needed, and nowhere else."""
PUBLIC = {"_BatchNorm", "_replace", "_exit"}
"""Documented in spite of the underscore: the common class of all BatchNorms, a method of NamedTuple, os._exit."""


def own_names(tree: ast.AST) -> set[str]:
    """Names that a file defines: functions, classes, variables, attributes of self."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found


def private_names(path: Path) -> set[str]:
    """Names with a leading underscore that a file takes from other packages, as attributes or by import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    taken = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for neighbour in path.parent.glob("*.py"):
        taken -= own_names(ast.parse(neighbour.read_text(encoding="utf-8")))
    taken |= {part for name in imported(path) for part in name.split(".") if not name.startswith("makemore_pl")}
    return {name for name in taken if name.startswith("_") and not name.endswith("__")} - PUBLIC


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_others_stand_in_one_place(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    if name in INTERNALS:
        assert private_names(path), "this file is for nothing else"
    else:
        assert private_names(path) == ELSEWHERE.get(name, set())


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_a_room_says_in_which_order_to_read_it(room: str) -> None:
    files = {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"}
    described = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert files - set(re.findall(r"\w+", described)) == set()
