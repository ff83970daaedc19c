"""What users install: one import name, with types, that runs outside of any checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("models", "guides", "inference", "experiments")


def run(*words, folder):
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that is built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ("-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))
    run(sys.executable, *words, folder=ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def sources():
    folders = (*FOLDERS, "notebooks/checks")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_the_wheel_holds_every_module_by_one_name(names):
    expected = {f"evidence/{path.relative_to(ROOT)}" for path in sources()}
    assert len(expected) > 100
    assert expected <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"evidence"}


def test_the_wheel_holds_what_is_no_module(names):
    assert {"evidence/py.typed", "evidence/experiments/demo.yaml"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not any("__pycache__" in name or name.startswith("tests") for name in names)


@pytest.mark.slow
def test_the_wheel_runs_outside_a_checkout(wheel, tmp_path):
    """Unpacked in a folder of its own that is searched first, it is what is imported."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    lines = [
        "import sys",
        f"sys.path.insert(0, {str(tmp_path / 'unpacked')!r})",
        "from evidence import experiments, guides, inference, models",
        "print(*(package.__file__ for package in (models, guides, inference, experiments)))",
        "from evidence.experiments.cli import main",
        "sys.exit(main(['compare', '--guides', 'MeanField', 'FullRank', '--decoder', 'frozen',",
        "    '--num_epochs', '1', '--num_particles', '9', '--num_data', '9', '--out', 'run']))",
    ]
    printed = run(sys.executable, "-c", "\n".join(lines), folder=tmp_path)
    files = printed.splitlines()[0].split()
    assert all(file.startswith(str(tmp_path / "unpacked" / "evidence")) for file in files)
    assert "FullRank" in printed
    assert any((tmp_path / "run").iterdir())


def test_modules_of_the_users_own_are_not_shadowed(tmp_path):
    """A script beside `models.py` and `guides/` of its own imports these, and ours by our name."""
    (tmp_path / "models.py").write_text("mine = 'my model'\n")
    (tmp_path / "guides").mkdir()
    (tmp_path / "guides" / "__init__.py").write_text("mine = 'my guide'\n")
    (tmp_path / "script.py").write_text(
        "from evidence.models import VAE\n"
        "from evidence.guides import MeanField\n"
        "import models, guides\n"
        "print(models.mine, guides.mine, VAE.__module__, MeanField.__module__)\n"
    )
    printed = run(sys.executable, "script.py", folder=tmp_path)
    assert printed == "my model my guide evidence.models.vae evidence.guides.mean_field\n"
