"""Who may know whom, and the names that other code relies on."""

import ast
from pathlib import Path

import pytest

from evidence import guides, inference, models

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "guides", "inference", "experiments")
ALLOWED = {
    "models": {"models"},
    "guides": {"guides", "models.networks", "models.chain", "inference.programs"},
    "inference": {"inference"},
    "experiments": {"experiments", "inference", "guides", "models"},
}
# Each folder (or module) may import itself and those before it.
ORDERS = {
    "inference": (
        "compilation",
        "programs",
        "soundness",
        "objectives",
        "training",
        "paths",
        "annealing",
        "estimation",
        "bridging",
        "mode_covering",
        "model_choice",
        "diagnostics",
    ),
    "experiments": (
        "config",
        "storage",
        "own",
        "setup",
        "reports",
        "launching",
        "commands",
        "cli",
        "zoo",
    ),
}


def imported_modules(source: str) -> list[str]:
    """What of ours is imported, as `package.folder.module`; bare names of the folders as well."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            is_folder = node.module.count(".") < 2
            found += [f"{node.module}.{a.name}" for a in node.names] if is_folder else [node.module]
    bare = [name for name in found if name.split(".")[0] in PACKAGES]
    assert not bare, f"expected imports of evidence.…, got {bare}"
    return [name.removeprefix("evidence.") for name in found if name.startswith("evidence.")]


def forbidden_imports(package: str, source: str) -> list[str]:
    allowed = ALLOWED[package]
    return [
        name
        for name in imported_modules(source)
        if name.split(".")[0] not in allowed
        and not any(name == a or name.startswith(f"{a}.") for a in allowed)
    ]


def upward_imports(package: str, folder: str, source: str) -> list[str]:
    """Imports of a folder from one that comes after it."""
    order = ORDERS[package]
    names = [n.split(".") for n in imported_modules(source) if n.startswith(f"{package}.")]
    return [".".join(n) for n in names if order.index(n[1]) > order.index(folder)]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may_know(package):
    for path in (ROOT / package).rglob("*.py"):
        assert forbidden_imports(package, path.read_text()) == [], path


def test_checks_of_the_course_stand_alone():
    """An answer is compared with what is written out there, not with the suite that it is about."""
    for path in (ROOT / "notebooks" / "checks").glob("*.py"):
        names = imported_modules(path.read_text())
        assert all(name.startswith("notebooks.checks") for name in names), path


@pytest.mark.parametrize("package", ORDERS)
def test_folders_import_only_what_comes_before_them(package):
    for path in (ROOT / package).rglob("*.py"):
        folder = path.relative_to(ROOT / package).with_suffix("").parts[0]
        if folder != "__init__":
            assert upward_imports(package, folder, path.read_text()) == [], path


@pytest.mark.parametrize("package", ORDERS)
def test_every_folder_has_a_place_in_the_order(package):
    found = {path.stem for path in (ROOT / package).iterdir() if not path.name.startswith("__")}
    assert {name for name in found if (ROOT / package / name).is_dir()} <= set(ORDERS[package])


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("inference", "from evidence.models import VAE"),
        ("inference", "import evidence.guides.planar"),
        ("inference", "from evidence import guides"),
        ("guides", "from evidence.models import VAE"),
        ("guides", "from evidence import inference"),
        ("models", "from evidence.inference.training.fit import fit"),
    ],
)
def test_a_forbidden_import_is_found(package, line):
    assert forbidden_imports(package, line)


def test_a_bare_name_is_found():
    with pytest.raises(AssertionError, match=r"expected imports of evidence"):
        imported_modules("from models import VAE")


def test_an_upward_import_is_found():
    line = "from evidence.inference.estimation.evidence import Evidence"
    assert upward_imports("inference", "programs", line)
    assert upward_imports("inference", "programs", "from evidence.inference import estimation")
    assert not upward_imports("inference", "diagnostics", line)


def test_private_names_stay_in_their_module():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("evidence"):
                    private = [a.name for a in node.names if a.name.startswith("_")]
                    assert not private, f"{path} imports {private} from {node.module}"


def test_only_experiments_opens_files_or_imports_matplotlib():
    for package in ("models", "guides", "inference"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert "matplotlib" not in text, path
            assert "open(" not in text, path


def test_names_that_other_code_relies_on():
    assert {"Autoencoder", "LinearGaussian", "VAE"} <= set(models.__all__)
    assert {"Delta", "MeanField", "FullRank", "Planar"} <= set(guides.__all__)
    assert {"fit", "log_weights", "importance_weighted_evidence"} <= set(inference.__all__)
    assert {"annealed_evidence", "bidirectional_evidence", "to_arviz"} <= set(inference.__all__)
    assert {"inference_gaps", "adaptive_evidence", "check"} <= set(inference.__all__)
    assert {"bridge_evidence", "nuts_reference"} <= set(inference.__all__)
    assert inference.check.__module__ == "evidence.inference.diagnostics.preflight"


def test_functions_are_short():
    """The longest function has at most 50 lines of code, docstring aside."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node
                    assert node.end_lineno - first.lineno < 50, f"{path}: {node.name}"
