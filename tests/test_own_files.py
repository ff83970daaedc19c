"""The command line on a user's own file: data, models and guides from elsewhere."""

import itertools
import json
import math
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from safetensors.torch import load_file, save_file

from evidence.experiments.cli import main
from evidence.experiments.config import Train
from evidence.experiments.reports import pictures_joint, plots_joint, terminal
from evidence.experiments.setup.assembly import assemble
from evidence.experiments.storage import checkpoints
from tests.test_cli import refused, results, run, weights

REGRESSION = """
import torch, pyro, pyro.distributions as dist
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import autoguide

def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    start = pyro.sample("start", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(start + slope * x, 0.5), obs=y)

def guide(x, y=None):
    loc = pyro.param("loc", torch.zeros(2))
    scale = pyro.param("scale", torch.full((2,), 0.1), constraint=dist.constraints.positive)
    pyro.sample("slope", dist.Normal(loc[0], scale[0]))
    pyro.sample("start", dist.Normal(loc[1], scale[1]))

class Guide(torch.nn.Module):
    def __init__(self, start: float = 0.0):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.full((2,), start))

    def forward(self, x, y=None):
        pyro.sample("slope", dist.Normal(self.loc[0], 0.1))
        pyro.sample("start", dist.Normal(self.loc[1], 0.1))

instance = Guide()

def in_parts(model):
    guides = autoguide.AutoGuideList(model)
    for name in ("slope", "start"):
        guides.append(autoguide.AutoNormal(poutine.block(model, expose=[name])))
    return guides

def flow(model):
    make = lambda dim: dist.transforms.affine_autoregressive(dim, hidden_dims=[4])
    return autoguide.AutoNormalizingFlow(model, make)

class Easy(EasyGuide):
    def guide(self, x, y=None):
        group = self.group(match=".*")
        loc = pyro.param("easy", torch.zeros(group.event_shape))
        group.sample("both", dist.Normal(loc, 0.1).to_event(1))

def make(start=0.0):
    return Guide(start)

def matrix(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand(x.shape).to_event(1), obs=x)

number = 3

def load():
    return {"x": torch.linspace(-1, 1, 5), "y": torch.zeros(5)}

def rows():
    return torch.ones(9, 2)
"""
X = np.linspace(-2, 2, 12)
Y = 0.3 + 0.7 * X + 0.4 * np.sin(9 * X)
FIT = ["--num_epochs", 150, "--lr", 0.05]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("reg.py").write_text(REGRESSION)
    write_csv("reg.csv", id=range(12), y=Y, x=X)


def write_csv(name, **columns):
    rows = (",".join(map(str, row)) for row in zip(*columns.values(), strict=True))
    lines = [",".join(columns), *rows]
    Path(name).write_text("\n".join(lines) + "\n")


def assembled(model="reg.py:line", data="reg.csv", guide="AutoNormal", **options):
    return assemble(Train(model=model, data=data, guide=guide, **options))


def exact(x, y):
    """Log evidence of the line: y ~ N(0, 0.25 I + x x' + 1 1')."""
    cov = 0.25 * np.eye(len(x)) + np.outer(x, x) + 1
    _, log_det = np.linalg.slogdet(cov)
    return -0.5 * (y @ np.linalg.solve(cov, y) + log_det + len(x) * math.log(2 * math.pi))


# --- the data ---------------------------------------------------------------------------------


def npz():
    np.savez("reg.npz", y=Y, x=X, more=np.zeros(3))
    return "reg.npz"


def safetensors():
    save_file({"x": torch.tensor(X), "y": torch.tensor(Y)}, "reg.safetensors")
    return "reg.safetensors"


def from_file():
    Path("load.py").write_text(
        "import numpy as np\ndef load(scale=1.0):\n"
        f"    return {{'x': np.array({X.tolist()}), 'y': scale * np.array({Y.tolist()})}}\n"
    )
    return "load.py:load"


def with_options():
    return f"{from_file()}(scale=1.0)"


def in_order():
    arrays = f"torch.tensor({X.tolist()}), torch.tensor({Y.tolist()})"
    Path("loads.py").write_text(f"import torch\ndef load():\n    return {arrays}")
    return "loads.py:load"


def data_frame():
    pytest.importorskip("pandas")
    Path("frame.py").write_text(
        "import pandas as pd\ndef load():\n    return pd.read_csv('reg.csv')"
    )
    return "frame.py:load"


def parquet():
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"x": X, "y": Y}), "reg.parquet")
    return "reg.parquet"


@pytest.mark.parametrize(
    "write",
    [
        lambda: "reg.csv",
        npz,
        safetensors,
        from_file,
        with_options,
        in_order,
        data_frame,
        parquet,
    ],
)
def test_every_kind_of_data_reaches_the_parameters_of_its_names(write):
    pair = assembled(data=write())
    x, y = pair.x_test.kwargs["x"], pair.x_test.kwargs["y"]
    assert x.dtype == y.dtype == torch.float64
    torch.testing.assert_close(x, torch.tensor(X), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(y, torch.tensor(Y), rtol=1e-6, atol=1e-7)
    assert (pair.config.split, pair.unit) == ("all", "data set")


def test_a_dotted_callable_is_imported(monkeypatch):
    monkeypatch.syspath_prepend(".")
    Path("dotted_data.py").write_text("from reg import load")
    assert len(assembled(data="dotted_data.load").x_test) == 5


def test_one_parameter_takes_the_whole_table_or_the_one_array():
    write_csv("table.csv", a=X, b=range(12))
    table = assembled("reg.py:matrix", "table.csv")
    assert table.x_test.shape == (3, 2)  # every fifth of twelve: a latent per datum
    assert (table.unit, table.config.split) == ("datum", "test")
    np.save("array.npy", np.ones((10, 4)))
    assert assembled("reg.py:matrix", "array.npy").x_test.shape == (2, 4)
    assert assembled("reg.py:matrix", "array.npy", split="all").x_test.shape == (10, 4)
    assert assembled("reg.py:matrix", "reg.py:rows", split="validation").x_test.shape == (2, 2)


def test_models_of_the_suite_take_a_file_too():
    write_csv("table.csv", a=X, b=range(12))
    pair = assembled("LinearGaussian(latent_dim=1)", "table.csv", "MeanField")
    assert pair.x_train.shape == (9, 2)
    assert pair.x_test.dtype == torch.float32


def test_what_no_parameter_takes_is_said(capsys):
    run("train", "--model", "reg.py:line", "--guide", "AutoNormal", "--data", "reg.csv", *FIT)
    assert capsys.readouterr().err == "evidence: reg.py:line takes no id of reg.csv\n"


TYPES = """
import torch, pyro, pyro.distributions as dist

def groups(group, y):
    theta = pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(theta[group].exp()), obs=y)

def product(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x.unsqueeze(-1) @ w, 1.0), obs=y)

def masked(x, seen):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

def net(x, y):
    assert x.dtype == torch.float32, "expected float32"
    product(x, y)

def never(x, y):
    torch.zeros(3).double() @ torch.zeros(3).float()
"""


@pytest.mark.parametrize(
    ("model", "columns", "dtypes"),
    [
        ("groups", {"group": [0, 1, 2, 1], "y": [3, 0, 9, 2]}, (torch.int64, torch.float64)),
        ("product", {"x": [1, 2, 3], "y": [3, 4, 5]}, (torch.float64, torch.float64)),
        ("masked", {"x": [1, 2, 3], "seen": [1, 0, 1]}, (torch.float64, torch.bool)),
        ("net", {"x": [1.5, 2, 3], "y": [3, 4, 5]}, (torch.float32, torch.float32)),
    ],
)
def test_numbers_have_the_type_that_the_model_wants(model, columns, dtypes):
    Path("types.py").write_text(TYPES)
    write_csv("t.csv", **columns)
    pair = assembled(f"types.py:{model}", "t.csv")
    assert tuple(tensor.dtype for tensor in pair.x_test.kwargs.values()) == dtypes


def test_whole_numbers_with_a_type_stay_whole():
    Path("types.py").write_text(TYPES)
    np.savez("t.npz", group=np.array([0, 1, 2]), y=np.array([3, 0, 9]))
    assert assembled("types.py:groups", "t.npz").x_test.kwargs["y"].dtype == torch.int64


# --- what is refused --------------------------------------------------------------------------


def bad(name, content):
    def write():
        Path(name).write_text(content)
        return name

    return write


def pickled():
    np.save("p.npy", np.array([{"a": 1}, 2], dtype=object), allow_pickle=True)
    return "p.npy"


REFUSALS = {
    "missing file": (lambda: "none.csv", "there is no such file"),
    "missing column": (
        bad("a.csv", "a,y\n1,2\n"),
        "reg.py:line expects x, y, and no column is called x: got a, y",
    ),
    "words": (
        bad("a.csv", "x,y\n1,2\n3,red\n"),
        "column 'y' holds no numbers (row 1: '2')",
    ),
    "empty cell": (
        bad("a.csv", "x,y\n1,2\n3,\n5,6\n"),
        "a value of column 'y' is missing (NaN) in row 2, the first of 1",
    ),
    "NA": (bad("a.csv", "x,y\nNA,2\n3,4\n"), "column 'x' is missing (NaN) in row 1"),
    "infinite": (bad("a.csv", "x,y\n1,inf\n"), "column 'y' is infinite in row 1"),
    "no names": (bad("a.csv", "1,2\n3,4\n"), "the names of the columns in the first line"),
    "twice": (bad("a.csv", "x,x\n3,4\n"), "expected columns of different names"),
    "ragged": (bad("a.csv", "x,y\n3\n"), "expected 2 cells in row 1, got 1"),
    "no rows": (bad("a.csv", "x,y\n"), "has no data in it"),
    "empty": (bad("a.csv", ""), "it is empty"),
    "no array": (bad("a.npy", "nonsense"), "a.npy cannot be read"),
    "pickle": (pickled, "allow_pickle=False"),
    "no tensors": (bad("a.safetensors", "nonsense" * 9), "a.safetensors cannot be read"),
    "too few arrays": (lambda: "reg.py:many", "unknown data in reg.py 'many'"),
    "callable fails": (bad("a.py", "def load(): 1 / 0"), "a.py cannot"),
    "no such set": (lambda: "digit", "did you mean 'digits'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_data_are_refused_in_one_line_and_nothing_is_written(capsys, case):
    write, message = REFUSALS[case]
    data = write()
    if case == "callable fails":
        data, message = "a.py:load", "--data a.py:load fails: ZeroDivisionError"
    before = set(Path().iterdir())
    command = ["--model", "reg.py:line", "--data", data, "--guide", "AutoNormal"]
    assert message in refused(capsys, "train", *command)
    assert set(Path().iterdir()) - before <= {Path("__pycache__")}


def test_parquet_needs_a_package(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Path("a.parquet").write_text("PAR1")
    command = ["train", "--model", "reg.py:line", "--data", "a.parquet", "--guide", "AutoNormal"]
    assert "pip install 'evidence[parquet]'" in refused(capsys, *command)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        ("reg.py:lime", "AutoNormal", "unknown model in reg.py 'lime' (did you mean 'line'?)"),
        ("none.py:line", "AutoNormal", "there is no file none.py"),
        ("broken.py:line", "AutoNormal", "broken.py cannot be imported: SyntaxError"),
        ("exits.py:line", "AutoNormal", "exits.py cannot be imported: SystemExit"),
        ("reg.py:number", "AutoNormal", "unknown model in reg.py 'number'"),
        ("reg.py:line", "Unamortized(guide=MeanField)", "Unamortized expects data of one tensor"),
        ("reg.py:line", "AutoNormall", "did you mean 'AutoNormal'"),
        ("reg.py:line", "pyro.infer.autoguide.AutoDelta", "AutoDelta is not made here, as it is"),
        ("reg.py:line", "AutoLaplaceApproximation", "trained: use FullRank"),
        ("reg.py:line", "AutoGuideList", "name a function that does so, FILE.py:NAME"),
        ("reg.py:line", "AutoNormalizingFlow", "name a function that makes it, FILE.py:NAME"),
        ("reg.py:line", "AutoNormal(scale=1)", "unknown option of AutoNormal 'scale'"),
        ("reg.py:line", "Guide(start='a')", "unknown guide 'Guide'"),
        ("reg.py:line", "reg.py:Guide(stop=1)", "reg.py:Guide(stop=1) cannot be made: TypeError"),
        ("reg.py:line", "reg.py:instance()", "leave the brackets out"),
        ("reg.py:line", "reg.py:guide(3)", "expected Name or Name(option=value"),
        ("types.py:never", "AutoNormal", "whatever type their numbers are given (id int64 [12]"),
    ],
)
def test_bad_programs_are_refused_in_one_line(capsys, model, guide, message):
    Path("broken.py").write_text("def f(:")
    Path("exits.py").write_text("import sys; sys.exit(3)")
    Path("types.py").write_text(TYPES)
    command = ["--model", model, "--data", "reg.csv", "--guide", guide]
    assert message in refused(capsys, "train", *command)
    assert not Path("runs").exists()


# --- the programs -----------------------------------------------------------------------------

GUIDES = [
    "AutoNormal(init_scale=0.05)",
    "pyro.infer.autoguide.AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal(rank=1)",
    "AutoDiagonalNormal(init_loc_fn=init_to_mean)",
    "AutoIAFNormal(num_transforms=1)",
    "AutoGaussian",
    "AutoStructured(conditionals=normal)",
    "reg.py:in_parts()",
    "reg.py:flow()",
    "reg.py:Easy",
    "reg.py:guide",
    "reg.py:Guide(start=0.5)",
    "reg.py:make(start=0.5)",
    "reg.py:make()",
    "reg.py:instance",
    "FullRank",
    "Planar(num_flows=2, standardize=none)",
]


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_comes_back_from_its_folder_as_it_was_trained(guide):
    model = ["--model", "reg.py:line", "--data", "reg.csv"]
    run("train", *model, "--guide", guide, "--num_epochs", 30, "--lr", 0.05, "--out", "run")
    trained = weights("run")
    parameters = [name for name in trained if name.startswith("guide.")]
    assert parameters
    assert not [name for name in trained if name.startswith("param.")]  # none in Pyro's store
    assert any("optimizer" in name for name in trained)
    run("evaluate", "run", "--trust", "true", "--num_particles", 500)
    (row,) = results("run")["rows"]
    assert row["weights_sha256"] == checkpoints.weights_sha256(trained)
    first = row["estimates"]
    run("evaluate", "run", "--trust", "true", "--num_particles", 500)
    assert results("run")["rows"][0]["estimates"] == first


def test_a_file_may_stand_beside_models_of_the_users_own():
    Path("models.py").write_text("SLOPE = 3.0")
    Path("mine.py").write_text("import models\nfrom reg import line\nassert models.SLOPE == 3.0\n")
    assert assembled("mine.py:line").unit == "data set"
    Path("other").mkdir()
    Path("other/models.py").write_text("SLOPE = 4.0")
    Path("other/reg.py").write_text(REGRESSION)
    Path("other/mine.py").write_text(
        "import models\nfrom reg import line\nassert models.SLOPE == 4.0\n"
    )
    assert assembled("other/mine.py:line").unit == "data set"


def test_a_network_on_the_top_level_of_a_file_is_fresh_for_every_fit():
    Path("nets.py").write_text(
        REGRESSION + "net = torch.nn.Linear(1, 2)\n"
        "def encoded(x, y=None):\n"
        "    pyro.module('net', net)\n"
        "    loc = net(y.mean().reshape(1))\n"
        "    pyro.sample('slope', dist.Normal(loc[0], 0.1))\n"
        "    pyro.sample('start', dist.Normal(loc[1], 0.1))\n"
    )
    command = ["--model", "nets.py:line", "--data", "reg.csv", "--guide", "nets.py:encoded"]
    for out in ("one", "two"):
        run("train", *command, "--num_epochs", 20, "--out", out)
    one, two = weights("one"), weights("two")
    assert {"guide.parts.0.weight", "guide.parts.0.bias"} <= one.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items() if "rng" not in name)


# --- who may run what -------------------------------------------------------------------------


def test_a_run_folder_and_a_file_of_options_name_no_file(capsys):
    run("train", "--model", "reg.py:line", "--guide", "reg.py:guide", "--data", "reg.csv",
        "--num_epochs", 2, "--out", "run")  # fmt: skip
    capsys.readouterr()
    Path("reg.py").write_text(f"open('executed', 'w')\n{REGRESSION}")
    assert "asks for reg.py:" in refused(capsys, "evaluate", "run")
    Path("options.yaml").write_text("model: reg.py:line\nguide: AutoNormal\ndata: reg.csv\n")
    assert "reg.py:line" in refused(capsys, "train", "--config", "options.yaml")
    Path("options.yaml").write_text("data: reg.py:load\n")
    command = ["train", "--guide", "AutoNormal", "--config", "options.yaml"]
    assert "asks for the data reg.py:load" in refused(capsys, *command)
    assert not Path("executed").exists()


def test_a_run_folder_cannot_choose_what_is_read(capsys):
    write_csv("table.csv", a=X, b=range(12))
    run("train", "--model", "LinearGaussian(latent_dim=1)", "--guide", "MeanField",
        "--data", "table.csv", "--num_epochs", 2, "--out", "run")  # fmt: skip
    assert "cannot choose what is read" in refused(capsys, "evaluate", "run")
    run("evaluate", "run", "--trust", "true", "--num_particles", 9)


def test_a_changed_file_is_said_and_its_numbers_are_kept_apart(capsys):
    command = [
        "--model",
        "reg.py:line",
        "--guide",
        "AutoNormal",
        "--data",
        "reg.csv",
        "--out",
        "run",
    ]
    run("train", *command, *FIT)
    run("evaluate", "run", "--trust", "true", "--num_particles", 100)
    assert len(results("run")["rows"][0]["evaluations"]) == 1
    Path("reg.py").write_text(REGRESSION.replace("0.5)", "0.6)"))
    capsys.readouterr()
    run("evaluate", "run", "--trust", "true", "--num_particles", 200)
    assert "reg.py has changed since run was trained" in capsys.readouterr().err
    (row,) = results("run")["rows"]
    assert len(row["evaluations"]) == 1  # what was found of the other model is gone
    assert row["sources"]["reg.py"] != json.loads(_meta("run"))["sources"]["reg.py"]
    message = refused(capsys, "train", *command, *FIT, "--resume", "true")
    assert "reg.py has changed since run was trained: choose another --out" in message


def _meta(folder):
    return (checkpoints.newest(Path(folder) / "checkpoints") / "meta.json").read_text()


# --- the whole way ----------------------------------------------------------------------------

COMPARE = ["compare", "--model", "reg.py:line", "--data", "reg.csv", "--guides",
           "AutoMultivariateNormal", "reg.py:guide", *FIT, "--num_particles", 2000]  # fmt: skip


def test_a_comparison_finds_the_exact_evidence(capsys):
    run(*COMPARE, "--out", "out")
    out = capsys.readouterr().out
    assert "Log evidence of the data set, 12 data, in nats" in out
    assert "per datum" not in out
    document = results("out")
    truth = exact(X, Y)
    for row in document["rows"]:
        (iw,) = (e for e in row["estimates"] if e["estimator"] == "iw")
        assert (iw["unit"], iw["num_data"]) == ("data set", 12)
        assert abs(iw["nats"] - truth) < 4 * iw["mc_se"], row["label"]
        assert iw["mc_se"] < 0.1
        assert iw["data_se"] is None
    assert Path("out/evidence.png").exists()
    assert Path("out/training_curves.png").exists()


def test_an_interrupted_comparison_goes_on_as_if_nothing_had_been(monkeypatch, capsys):
    run(*COMPARE, "--out", "whole")
    save, count = checkpoints.save, itertools.count()

    def dies(*arguments):
        path = save(*arguments)
        if next(count) == 2:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dies)
        with pytest.raises(SystemExit) as stop:
            main([*map(str, COMPARE), "--checkpoint_every", "40", "--out", "parts"])
    assert stop.value.code == 130
    run(*COMPARE, "--checkpoint_every", 40, "--out", "parts")
    whole, parts = results("whole")["rows"], results("parts")["rows"]
    for one, other in zip(whole, parts, strict=True):
        assert one["estimates"] == other["estimates"]


def test_training_by_averages_goes_on_and_is_evaluated(capsys):
    """Without a number of epochs averages decide; a checkpoint holds them."""
    words = ["--model", "reg.py:line", "--guide", "AutoNormal", "--data", "reg.csv"]
    whole = ["train", *words, "--max_steps", "220"]
    run(*whole, "--out", "whole")
    run("train", *words, "--max_steps", "110", "--out", "parts")
    run(*whole, "--resume", "true", "--out", "parts")
    ours, theirs = weights("parts"), weights("whole")
    assert any(name.startswith("averages.") for name in ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    run("evaluate", "parts", "--num_particles", "50", "--trust")
    assert "IW-50" in capsys.readouterr().out


def test_two_estimates_of_one_number_are_said_to_agree(capsys):
    run(*COMPARE, "--out", "out")
    found = results("out")["comparisons"]
    assert [one["quantity"].split()[0] for one in found] == ["ELBO", "log"]
    assert found[1]["verdict"].startswith("they agree (")
    assert found[1]["data_se"] is None
    assert "Two estimates of one number" in capsys.readouterr().out


def test_estimates_of_two_kinds_are_in_no_table(capsys):
    write_csv("table.csv", a=X, b=range(12))
    command = ["compare", "--model", "reg.py:matrix", "--data", "table.csv", "--guides"]
    message = refused(capsys, *command, "AutoNormal", "AutoMultivariateNormal", "--out", "out")
    assert "AutoNormal has an estimate for each datum and AutoMultivariateNormal one for" in message
    assert not Path("out").exists()


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Two guides of one model, which tests copy."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("reg.py").write_text(REGRESSION)
        write_csv("reg.csv", y=Y, x=X)
        run(*COMPARE, "--out", "out")
    return folder


@pytest.fixture
def fitted(once):
    shutil.copytree(once, ".", dirs_exist_ok=True)
    return ["out/AutoMultivariateNormal", "out/reg.py_guide"]


def test_guides_stand_beside_nuts_by_the_names_of_their_sites(fitted, monkeypatch, capsys):
    drawn = []
    corner = plots_joint.corner
    monkeypatch.setattr(
        pictures_joint, "corner", lambda *a, **k: (drawn.append((*a, k)), corner(*a, **k))[1]
    )
    short = ["--num_samples", 150, "--num_warmup", 100, "--num_chains", 2, "--trust", "true"]
    run("reference", *fitted, *short, "--out", "beside")
    document = json.loads(Path("beside/reference.json").read_text())
    assert document["latents"] == ["slope", "start"]
    assert (document["unit"], document["num_data"], document["rows"]) == ("data set", 12, [])
    assert document["nuts"]["num_chains"] == 2
    ((truth, guides, names, _),) = drawn
    assert names == ["slope", "start"]
    precision = np.linalg.inv(np.eye(2) + 4 * np.array([[X @ X, X.sum()], [X.sum(), 12]]))
    posterior = np.array([1.0, 1.0]) * (precision @ (4 * np.array([X @ Y, Y.sum()])))
    for draws in (truth, *guides.values()):
        assert np.abs(draws.mean(0).numpy() - posterior).max() < 0.1
    assert "--rows" in refused(capsys, "reference", *fitted, *short, "--rows", "1")


def test_a_model_with_latents_of_every_datum_stands_beside_nuts_too():
    Path("each.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def each(y, x):\n"
        "    with pyro.plate('data', len(y)):\n"
        "        z = pyro.sample('z', dist.Normal(0.0, 1.0))\n"
        "        pyro.sample('y', dist.Normal(z + x, 1.0), obs=y)\n"
    )
    pair = ["--model", "each.py:each", "--data", "reg.csv", "--guide", "MeanField"]
    run("train", *pair, "--num_epochs", 1, "--out", "run")
    short = ["--num_samples", 40, "--num_warmup", 40, "--num_chains", 2, "--trust", "true"]
    run("reference", "run", *short, "--rows", 0, 1)
    document = json.loads(Path("run/reference.json").read_text())
    assert document["unit"] == "datum"
    assert document["rows"] == [0, 1]
    assert Path("run/reference.png").exists()
    run("gaps", "run", "--max_steps", 20, "--trust", "true")
    assert results("run")["rows"][0]["gaps"]["num_steps"] == 20


def test_marginals_and_pairs_are_drawn_of_every_guide_without_nuts_too(fitted):
    assert Path("out/posterior.png").exists()


def test_entries_have_the_names_of_their_places():
    shapes = {"mu": torch.Size([]), "w": torch.Size([2, 2]), "tau": torch.Size([1])}
    names = pictures_joint.entry_names(shapes)
    assert names == ["mu", "w[0, 0]", "w[0, 1]", "w[1, 0]", "w[1, 1]", "tau"]


def test_an_export_has_the_dims_of_the_sites_plates(fitted):
    run("export", *fitted, "--num_draws", 20, "--num_chains", 2, "--trust", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the 0.x line says at import
        groups = {
            name: xarray.load_dataset("out/AutoMultivariateNormal/posterior.nc", group=name)
            for name in ("posterior", "log_likelihood", "observed_data", "prior_predictive")
        }
    assert groups["posterior"]["slope"].dims == ("chain", "draw", "guide")
    log_p = groups["log_likelihood"]["y"]
    assert log_p.dims == ("chain", "draw", "guide", "data")
    assert groups["observed_data"]["y"].dims == ("data",)
    assert groups["prior_predictive"]["y"].sizes == {"chain": 2, "draw": 20, "data": 12}
    y, slope, start = (
        groups["observed_data"]["y"], groups["posterior"]["slope"], groups["posterior"]["start"],
    )  # fmt: skip
    x = xarray.DataArray(X, dims="data", coords={"data": y["data"]})
    expected = -2 * (y - start - slope * x) ** 2 - math.log(0.5) - 0.5 * math.log(2 * math.pi)
    xarray.testing.assert_allclose(expected.transpose(*log_p.dims), log_p, rtol=1e-6)
    np.testing.assert_allclose(y, Y)


def test_data_sets_are_simulated_from_the_prior(fitted, capsys):
    run("sample", fitted[0], "--num_samples", 400, "--trust", "true")
    drawn = load_file(f"{fitted[0]}/samples/samples.safetensors")
    assert drawn["y"].shape == (400, 12)
    spread = drawn["y"].var(0).numpy()
    assert np.abs(spread / (X**2 + 1.25) - 1).max() < 5 * math.sqrt(2 / 400)
    assert "400 data sets; y: mean" in capsys.readouterr().out


def test_what_has_no_meaning_for_shared_latents_is_said(fitted, capsys):
    trust = ["--trust", "true"]
    assert "no amortization gap" in refused(capsys, "gaps", fitted[0], *trust)
    assert "no other data than its own" in refused(capsys, "calibrate", fitted[0], *trust)
    message = refused(capsys, "evaluate", fitted[0], *trust, "--num_data", 3)
    assert "leave out --num_data" in message


def test_annealing_finds_the_exact_evidence_of_the_data_set(fitted):
    short = ["--trust", "true", "--num_temperatures", 200, "--num_particles", 300]
    short += ["--num_chains", 32, "--num_leapfrog_steps", 4]
    run("evaluate", fitted[0], "--estimator", "ais", *short)
    (row,) = results(fitted[0])["rows"]
    (ais,) = (e for e in row["estimates"] if e["estimator"] == "ais")
    assert abs(ais["nats"] - exact(X, Y)) < 4 * ais["mc_se"]
    run("evaluate", fitted[0], "--estimator", "bdmc", *short)
    bracket = results(fitted[0])["rows"][0]["bracket"]
    assert (bracket["unit"], bracket["num_data"]) == ("data set", 12)
    assert abs(bracket["gap"]) < 0.5


def test_a_pair_is_checked_before_it_is_trained(capsys):
    run("check", "reg.py:line", "reg.py:guide", "--data", "reg.csv")
    assert "no fault found: reg.py:line with reg.py:guide on 12 data" in capsys.readouterr().out


OTHERS = """
import torch, pyro, pyro.distributions as dist
from pyro.infer import config_enumerate

def density():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("half", -0.5 * z**2)

@config_enumerate
def mixture(y):
    locs = pyro.sample("locs", dist.Normal(torch.tensor([-2.0, 2.0]), 0.5).to_event(1))
    with pyro.plate("data", len(y)):
        which = pyro.sample("which", dist.Categorical(torch.tensor([0.5, 0.5])))
        pyro.sample("y", dist.Normal(locs[which], 1.0), obs=y)
"""


def evidence_of(folder):
    (iw,) = (e for e in results(folder)["rows"][0]["estimates"] if e["estimator"] == "iw")
    return iw["nats"], iw["mc_se"]


def test_a_density_needs_no_data():
    Path("others.py").write_text(OTHERS)
    command = ["--model", "others.py:density", "--data", "none", "--guide", "FullRank"]
    run("train", *command, "--num_epochs", 100, "--lr", 0.05, "--out", "run")
    run("evaluate", "run", "--trust", "true", "--num_particles", 2000)
    nats, mc_se = evidence_of("run")
    assert abs(nats + 0.5 * math.log(2)) < 4 * mc_se
    assert mc_se < 0.02


@pytest.mark.filterwarnings("ignore:the pair does not broadcast")
def test_latents_that_pyro_sums_out_need_no_guide():
    Path("others.py").write_text(OTHERS)
    y = np.array([-2.5, -1.8, 1.0, 2.2, 0.3])
    write_csv("mixed.csv", y=y)
    command = ["--model", "others.py:mixture", "--data", "mixed.csv", "--guide", "AutoNormal"]
    run("train", *command, "--num_epochs", 200, "--lr", 0.03, "--out", "run")
    run("evaluate", "run", "--trust", "true", "--num_particles", 300)
    nats, mc_se = evidence_of("run")
    grid = np.linspace(-6, 6, 481)
    prior = [np.exp(-2 * (grid - loc) ** 2) * math.sqrt(2 / math.pi) for loc in (-2, 2)]
    density = np.exp(-0.5 * (grid[:, None] - y) ** 2) / math.sqrt(2 * math.pi)  # [G, N]
    likelihood = (0.5 * (density[:, None] + density[None])).prod(-1)
    mass = (prior[0][:, None] * prior[1][None] * likelihood).sum() * (grid[1] - grid[0]) ** 2
    truth = math.log(mass)
    assert abs(nats - truth) < 4 * mc_se
    assert mc_se < 0.1


def test_a_warning_is_one_line_said_once(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with terminal.plain_warnings():
            for _ in range(3):
                warnings.warn("slow\n going", stacklevel=1)
    assert capsys.readouterr().err == "evidence: slow going\n"
