"""README and docs are true: commands run, code runs, pictures and targets exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from evidence.experiments.cli import COMMANDS, build_parser, main
from evidence.experiments.config import Experiment
from evidence.experiments.own.pair import names_autoguide
from evidence.experiments.setup import catalogue
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.model_and_data import load_with_model
from evidence.experiments.setup.words import prepared
from evidence.models import VAE

ROOT = Path(__file__).parents[1]
# In the order in which they are read; docs/teaching.md has tests of its own.
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("guides", "evidence", "python", "mnist", "speed")),
]
TEXT = "".join(page.read_text() for page in PAGES)
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    text = "".join(blocks("sh")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


QUICK = {
    "compare": "--num_particles 9 --num_data 9",
    "evaluate": "--num_particles 9",
    "gaps": "--max_steps 100 --num_data 9",
    "calibrate": "--num_simulations 50",
    "export": "--num_draws 20 --num_data 3",
    "reference": "--num_samples 40 --num_warmup 40",
    "marginal": "--target_se 1 --max_rounds 1 --prior_scale bend=4",
}


@pytest.fixture(autouse=True)
def readers_folder(tmp_path, monkeypatch):
    """An empty folder, but for the files that the pages write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (guide,) = [code for code in blocks("python") if "AbstractGuide" in code]
    Path("my_guides.py").write_text(guide)
    for code in blocks("python"):
        if code.startswith("# heights.py"):
            Path("heights.py").write_text(code)
        elif code.startswith("# writes"):
            exec(compile(code, "docs, data", "exec"), {})


def quickly(words):
    """The same command with few epochs and particles: of two equal options the later one holds."""
    more = QUICK.get(words[1], "").split()
    if words[1] in ("train", "compare"):
        more += ["--num_epochs", "1"] if "--num_epochs" in words else ["--max_steps", "12"]
    if "--target_se" in words:
        more += ["--max_particles", "300", "--num_data", "9"]
    if "ais" in words or "bdmc" in words:
        more += ["--num_temperatures", "9", "--num_chains", "4", "--num_data", "9"]
    return [*words, *more]


def test_there_is_something_to_check():
    programs = [words[0] for words in commands()]
    assert programs.count("make") >= 2
    assert programs.count("evidence") >= 5
    assert len(blocks("python")) >= 2


def test_every_target_of_make_exists():
    for words in commands():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), words


def test_every_command_is_one_the_program_takes():
    for words in commands():
        if words[0] == "evidence":
            options = build_parser().parse_args(prepared(words[1:], COMMANDS))
            options = options[options.command].as_dict()
            if options.get("data") == "mnist":
                catalogue.build_model(Spec.parse(options["model"]), data_dim=9)
            elif "model" in options:
                load_with_model(Experiment(model=options["model"], data=options["data"]))
            for guide in options.get("guides") or []:
                if "." not in guide and not names_autoguide(guide):
                    catalogue.build_guide(Spec.parse(guide), VAE(9, 2), torch.zeros(3, 9))


def test_every_command_on_bundled_data_runs_in_order(capsys):
    for words in commands():
        if words[0] == "evidence" and not any("mnist" in word for word in words):
            assert main(quickly(words)[1:]) == 0, words


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_piece_of_code_runs(number):
    exec(compile(blocks("python")[number], f"docs, python block {number}", "exec"), {})


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "docs" / "teaching.md"], ids=lambda page: page.stem
)
def test_every_link_into_the_repository_leads_somewhere(page):
    text = page.read_text()
    for target, anchor in re.findall(r"\]\(([^):#]*)(#[^)]+)?\)", text):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            known = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
            assert anchor[1:] in known, anchor


def test_every_page_is_linked_from_the_readme():
    readme = PAGES[0].read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in readme, page


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60
