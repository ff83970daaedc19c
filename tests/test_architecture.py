"""Who may know whom, and the names that other code relies on."""

import ast
from pathlib import Path

import pytest

import guides
import inference
import models

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "guides", "inference", "experiments")
ALLOWED = {
    "models": {"models"},
    "guides": {"guides", "models.networks", "models.chain"},
    "inference": {"inference"},
    "experiments": {"experiments", "inference", "guides", "models"},
}


def forbidden_imports(package: str, source: str) -> list[str]:
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            imported.append(node.module)
    ours = [name for name in imported if name.split(".")[0] in PACKAGES]
    allowed = ALLOWED[package]
    return [n for n in ours if n not in allowed and n.split(".")[0] not in allowed]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may_know(package):
    for path in (ROOT / package).rglob("*.py"):
        assert forbidden_imports(package, path.read_text()) == [], path


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("inference", "from models import VAE"),
        ("inference", "import guides.planar"),
        ("guides", "from models import VAE"),
        ("guides", "import inference"),
        ("models", "from inference.training import fit"),
    ],
)
def test_a_forbidden_import_is_found(package, line):
    assert forbidden_imports(package, line)


def test_private_names_stay_in_their_module():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES:
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
    assert inference.check.__module__ == "inference.preflight"


def test_functions_are_short():
    """The longest function has at most 50 lines of code, docstring aside."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node
                    assert node.end_lineno - first.lineno < 50, f"{path}: {node.name}"
