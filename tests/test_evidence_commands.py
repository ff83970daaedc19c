"""`evaluate` with every estimator, `gaps`, `check`, and the verdicts of `compare`."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats

from evidence.experiments.cli import main
from evidence.experiments.commands import annealing, evaluate
from evidence.experiments.config import OPTIONS_OF, Estimator
from evidence.experiments.reports import plots_comparison, verdicts
from evidence.experiments.setup.estimators import ESTIMATORS
from evidence.experiments.storage import checkpoints, per_datum
from evidence.experiments.storage.records import (
    Annealing,
    Bound,
    BracketRecord,
    Estimate,
    GapsRecord,
    Judge,
    Part,
)
from evidence.inference import Evidence
from tests.rows import a_row
from tests.test_cli import refused, results, run

MODEL = ["--model", "LinearGaussian(latent_dim=3)", "--data", "toy"]
FIT = ["--num_epochs", "12", "--lr", "0.02"]
SHORT = ["--num_temperatures", "60", "--num_leapfrog_steps", "3", "--num_data", "40"]
SHORT += ["--num_particles", "100"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A trained run, which tests copy."""
    folder = tmp_path_factory.mktemp("once") / "run"
    run("train", *MODEL, *FIT, "--guide", "MeanField", "--out", folder)
    return folder


@pytest.fixture
def trained(once):
    shutil.copytree(once, "run")
    return "run"


def row_of(folder):
    (row,) = results(folder)["rows"]
    return row


def estimates(folder):
    return {e["estimator"]: e for e in row_of(folder)["estimates"]}


def test_annealing_stands_beside_the_exact_evidence(trained, capsys):
    run("evaluate", trained, "--estimator", "ais", *SHORT)
    out = capsys.readouterr().out
    assert "AIS lower bound" in out
    assert "AIS, a lower bound in expectation: from the prior, 16 chains, 60 temperatures" in out
    found = estimates(trained)
    assert list(found) == ["elbo", "iw", "ais", "exact"]
    ais, exact = found["ais"], found["exact"]
    assert ais["num_particles"] == 16
    mc_se = per_datum.read(Path("run"))[1]["ais"].mc_se
    assert abs(ais["nats"] - exact["nats"]) < 5 * mc_se + 0.05  # bias of few temperatures
    assert ais["mc_se"] == pytest.approx(mc_se) if ais["reliable"] else ais["mc_se"] is None
    assert found["elbo"]["nats"] < exact["nats"]
    details = row_of(trained)["annealing"]
    assert details["num_temperatures"] == 60
    assert 0.2 < details["acceptance"] < 1
    assert details["seconds"] > 0
    assert details["peak_memory_mib"] > 50
    assert not Path("run/annealing").exists()


def test_the_bracket_of_simulated_data_holds_the_exact_evidence(trained, capsys):
    run("evaluate", trained, "--num_particles", 50)
    before = estimates(trained)
    run("evaluate", trained, "--estimator", "bdmc", *SHORT)
    out = capsys.readouterr().out
    assert "BDMC gap" in out
    assert "Of real data the gap proves nothing" in out
    row = row_of(trained)
    found = row["bracket"]
    slack = 3 * found["gap_se"]
    assert found["lower"] - slack < found["exact"] < found["upper"] + slack
    assert math.isclose(found["gap"], found["upper"] - found["lower"], abs_tol=1e-6)
    assert found["elbo"]["gap"] > found["iw"]["gap"]
    assert (found["num_data"], found["num_chains"]) == (40, 16)
    assert estimates(trained) == before  # of the real data, which the bracket is not about
    run("evaluate", trained, "--num_particles", 60)
    assert row_of(trained)["bracket"] == found


def test_interrupted_annealing_goes_on_to_the_same_numbers(trained, monkeypatch, capsys):
    command = ["evaluate", trained, "--estimator", "ais", *SHORT]
    run(*command)
    expected = estimates(trained)["ais"]
    assert expected["num_evaluations"] > 60 * 16 * 40
    save, saved = checkpoints.save, []

    def interrupted(*arguments):
        saved.append(save(*arguments))
        if len(saved) == 2:
            raise KeyboardInterrupt
        return saved[-1]

    monkeypatch.setattr(annealing.checkpoints, "save", interrupted)
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in command])
    assert stop.value.code == 130
    assert "annealing goes on from its last snapshot" in capsys.readouterr().err
    assert saved[-1].exists()
    resumed = []
    load = checkpoints.load
    monkeypatch.setattr(annealing.checkpoints, "save", save)
    monkeypatch.setattr(checkpoints, "load", lambda p: (resumed.append(p), load(p))[1])
    run(*command)
    assert saved[-1] in resumed
    assert estimates(trained)["ais"] == expected
    assert not Path("run/annealing").exists()


def test_one_annealing_leaves_the_snapshots_of_another(trained):
    other = Path("run/annealing/other/epoch-00000-step-000001")
    other.mkdir(parents=True)
    run("evaluate", trained, "--estimator", "ais", *SHORT)
    assert [path.name for path in Path("run/annealing").iterdir()] == ["other"]
    assert other.exists()


def test_guides_are_compared_by_the_elbo_alone(capsys):
    run("compare", *MODEL, *FIT, "--guides", "MeanField", "FullRank", "--decoder", "frozen",
        "--estimator", "elbo", "--num_particles", 50, "--out", "c")  # fmt: skip
    out = capsys.readouterr().out
    assert "IW" not in out
    assert "FullRank beats MeanField" in out


def test_particles_are_added_where_the_target_needs_them(trained, capsys):
    run("evaluate", trained, "--target_se", "0.1", "--num_data", "60")
    assert "IW, adaptive" in capsys.readouterr().out
    found = estimates(trained)
    assert 200 <= found["iw"]["mean_num_particles"] <= found["iw"]["num_particles"]
    _, records = per_datum.read(Path(trained))
    particles = records["iw"].particles
    assert particles.min() == 200 < particles.max()
    assert records["iw"].log_px_variance.sqrt().median() <= 0.1


def test_the_elbo_alone(trained, capsys):
    run("evaluate", trained, "--estimator", "elbo", "--num_particles", 30)
    assert "IW" not in capsys.readouterr().out
    assert list(estimates(trained)) == ["elbo", "exact"]


def test_every_datum_is_written_and_read_back(trained):
    run("evaluate", trained, "--num_particles", 50, "--num_data", 30)
    rows, records = per_datum.read(Path(trained))
    assert len(rows) == 30 == len(set(rows))
    for name, estimate in estimates(trained).items():
        for field in ("nats", "mc_se", "data_se"):
            ours = getattr(records[name], "mean" if field == "nats" else field)
            if field == "mc_se" and not estimate["reliable"]:
                assert estimate[field] is None
                continue
            assert math.isclose(ours, estimate[field], rel_tol=1e-6, abs_tol=1e-6)
    iw = records["iw"]
    assert iw.ess.max() <= 50
    assert math.isclose(iw.share_bad, row_of(trained)["k_hat"]["share_bad"], abs_tol=1e-6)
    Path("run/per_datum.csv").write_text("datum,iw_nats\n1,x\n")
    with pytest.raises(ValueError, match="run `evidence evaluate run` anew"):
        per_datum.read(Path(trained))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_chains", "0"], "expected --num_chains of at least 1, got 0"),
        (["--estimator", "elbo", "--target_se", "0.1"], "leave out one"),
        (["--target_se", "-1"], "expected a finite target_se > 0"),
        (["--defensive", "1"], "expected --defensive of at most 0.99, got 1"),
        (["--defensive", "0.1", "--target_se", "0.1"], "not for --target_se: leave out one"),
        (["--defensive", "0.1", "--estimator", "bdmc"], "not for --estimator bdmc: leave out"),
        (["--estimator", "nuts"], "nuts"),
    ],
)
def test_bad_options_of_an_estimator_get_one_line(trained, capsys, options, message):
    capsys.readouterr()
    before = results(trained)
    assert message in refused(capsys, "evaluate", trained, *options)
    assert results(trained) == before


def test_gaps_of_the_family_and_of_the_encoder(trained, capsys):
    run("train", *MODEL, *FIT, "--guide", "FullRank", "--out", "full")
    run("gaps", trained, "full", "--num_data", 50, "--num_particles", 300)
    out = capsys.readouterr().out
    assert "approximation gap" in out
    mean_field, full_rank = row_of(trained)["gaps"], row_of("full")["gaps"]
    for found in (mean_field, full_rank):
        parts = [found[name]["nats"] for name in ("approximation", "amortization", "total")]
        assert math.isclose(parts[0] + parts[1], parts[2], abs_tol=1e-6)
        assert found["evidence"]["estimator"] == "exact"
    family = mean_field["approximation"]
    assert family["nats"] > 5 * family["mc_se"]
    family = full_rank["approximation"]
    assert abs(family["nats"]) < 5 * family["mc_se"] + 1e-3
    assert Path("run/gaps.png").exists()


def test_gaps_need_an_encoder(capsys):
    run("compare", *MODEL, *FIT, "--guides", "MeanField", "Unamortized(guide=MeanField)",
        "--decoder", "frozen", "--num_particles", 20, "--out", "c")  # fmt: skip
    capsys.readouterr()
    assert "no amortization gap" in refused(capsys, "gaps", "c/Unamortized-guide-MeanField")
    assert "expected --num_data" in refused(capsys, "gaps", "c/MeanField", "--num_data", 0)


def test_gap_bars_are_drawn_to_scale():
    gap = Part(nats=0.1, mc_se=0.01, data_se=None)
    judge = Judge(estimator="iw", nats=-1.0, reliable=False, reason="few")
    counts = {"num_data": 3, "num_particles": 9, "num_steps": 9, "converged": True}
    parts = dict.fromkeys(("approximation", "amortization", "total"), gap)
    gaps = GapsRecord(**parts, evidence=judge, share_bad=None, **counts)
    (axes,) = plots_comparison.gap_bars([a_row(gaps=gaps)]).axes
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.1]
    assert axes.patches[1].get_x() == 0.1
    assert "NOT RELIABLE" in axes.get_yticklabels()[0].get_text()


def test_check_finds_no_fault_or_names_it(capsys):
    run("check", "VAE(latent_dim=2, hidden_dims=[16])", "Planar(num_flows=2)")
    assert "no fault found" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["check", "VAE(latent_dim=2, hidden_dims=[16])", "Delta"])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "1 found" in out
    assert "choose another guide" in out
    assert "at least 2" in refused(capsys, "check", "VAE", "MeanField", "--num_data", 1)


def test_guides_of_one_model_are_judged_by_their_elbos(capsys):
    run("compare", *MODEL, *FIT, "--guides", "MeanField", "FullRank", "--decoder", "frozen",
        "--num_particles", 100, "--out", "c")  # fmt: skip
    assert "FullRank beats MeanField" in capsys.readouterr().out
    (found,) = results("c")["comparisons"]
    assert found["winner"] == "FullRank"
    assert found["gap"] == 0
    low, high = found["interval_95"]
    assert low < found["difference"] < high < 0
    assert found["data_se"] < estimates("c/FullRank")["elbo"]["data_se"] / 2  # paired


def test_models_are_judged_only_where_the_gap_is_known(capsys):
    model = ["--model", "VAE(latent_dim=2, hidden_dims=[8])", "--num_epochs", "1"]
    command = ["compare", *model, "--guides", "MeanField", "Planar(num_flows=2)", *SHORT]
    command += ["--num_temperatures", "20"]
    run(*command, "--out", "c")
    assert "how far the lower bounds lie below is unknown" in capsys.readouterr().out
    run(*command, "--estimator", "bdmc", "--out", "c")
    out = capsys.readouterr().out
    assert "AIS lower bound" in out
    assert "BDMC gap" in out
    (found,) = results("c")["comparisons"]
    brackets = [row["bracket"] for row in results("c")["rows"]]
    limits = [max(b["gap"], 0) + 2 * b["gap_se"] for b in brackets]
    assert math.isclose(found["gap"], max(limits))
    low, high = found["interval_95"]
    beats = low > found["gap"] or high < -found["gap"]
    assert (found["winner"] is not None) == (beats and found["reliable"])


def test_a_bracket_with_other_options_is_no_bound_of_the_gap():
    options = {"start": "prior", "num_chains": 16, "num_temperatures": 60, "num_leapfrog_steps": 3}
    ends = {"lower": -1.0, "upper": -0.9, "num_data": 9}
    bracket = BracketRecord(**options, **ends, gap=0.1, gap_se=0.01)
    iw = Estimate(
        estimator="iw", nats=-1.0, reliable=True, reason=None, mc_se=0.1, data_se=0.1,
        num_particles=100, num_data=9,
    )  # fmt: skip
    row = a_row(bracket=bracket, annealing=Annealing(**options), estimates=[iw])
    assert math.isclose(verdicts._gap(row, "ais"), 0.12)
    other = Annealing(**options | {"num_temperatures": 30})
    assert verdicts._gap(dataclasses.replace(row, annealing=other), "ais") is None
    bound = Bound(nats=-1.0, reliable=True, reason=None, num_particles=100, gap=0.5, gap_se=0.1)

    def with_bound(**changes):
        changed = dataclasses.replace(bound, **changes)
        return dataclasses.replace(row, bracket=dataclasses.replace(bracket, iw=changed))

    assert math.isclose(verdicts._gap(with_bound(), "iw"), 0.7)
    assert verdicts._gap(with_bound(num_particles=10), "iw") is None


def test_rows_on_different_data_are_not_compared(tmp_path):
    rows = []
    for label, chosen in (("A", [0, 1]), ("B", [0, 2])):
        folder = tmp_path / label
        folder.mkdir()
        record = dataclasses.replace(Evidence.exact(torch.zeros(2)), estimator="exact")
        (folder / per_datum.NAME).write_text(per_datum.to_csv(torch.tensor(chosen), [record]))
        rows.append(a_row(label=label, folder=str(folder)))
    with pytest.raises(ValueError, match="A and B were evaluated on different data"):
        verdicts.comparisons(rows)


def test_collapsed_latents_are_warned_of(trained, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "_DRAWS", 20)
    run("train", "--model", "VAE(latent_dim=8, hidden_dims=[8])", "--num_epochs", 1, "--out", "few")
    run("evaluate", "few", "--num_particles", 9)
    latents = row_of("few")["latents"]
    assert latents["of"] == 8
    assert len(latents["kl"]["z"]) == 8
    assert (latents["warning"] is None) == (latents["active"] == 8)
    if latents["warning"]:
        assert "posterior collapse" in capsys.readouterr().out
    run("evaluate", trained, "--num_particles", 9)
    assert row_of(trained)["latents"]["warning"] is None
    json.dumps(row_of("few"), allow_nan=False)


def test_evidence_is_computed_in_the_dtype_that_is_asked_for(trained):
    """Double where that costs little; float32 gives the same but for its rounding."""
    found = {}
    for dtype in ("auto", "float32", "float64"):
        run("evaluate", trained, "--num_particles", 50, "--dtype", dtype)
        found[dtype] = estimates(trained)
    assert [found[dtype]["iw"]["dtype"] for dtype in found] == ["float64", "float32", "float64"]
    assert found["auto"] == found["float64"]
    ours, theirs = (found[dtype]["exact"]["nats"] for dtype in ("float32", "float64"))
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours != theirs


def test_networks_stay_in_single_precision(in_an_empty_folder):
    run("train", "--model", "VAE(latent_dim=2)", "--num_epochs", 1, "--out", "vae")
    run("evaluate", "vae", "--num_particles", 5, "--num_data", 9)
    assert estimates("vae")["iw"]["dtype"] == "float32"
    run("evaluate", "vae", "--num_particles", 5, "--num_data", 9, "--dtype", "float64")
    assert estimates("vae")["iw"]["dtype"] == "float64"


SHARED = """
import pyro, pyro.distributions as dist

def wide(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
"""
Y = np.array([1.1, 0.4, 2.0, 1.3, 0.9, 1.8, 0.2, 1.5])
EXACT = stats.multivariate_normal(np.zeros(len(Y)), np.eye(len(Y)) + 4).logpdf(Y)


@pytest.fixture
def shared():
    """A model whose latent the data share, and a guide of it that is somewhat too narrow."""
    Path("mine.py").write_text(SHARED)
    Path("y.csv").write_text("y\n" + "\n".join(map(str, Y)) + "\n")
    return ["--model", "mine.py:wide", "--data", "y.csv", "--max_steps", "100"]


@pytest.mark.parametrize(
    ("estimator", "options", "note"),
    [
        ("smc", ["--num_chains", "8"], "SMC, a lower bound in expectation: waste-free, from the"),
        (
            "smc",
            ["--num_chains", "4", "--start", "guide"],
            "waste-free, from the guide",
        ),
        (
            "bridge",
            ["--num_samples", "200", "--num_warmup", "60"],
            "Bridge, no bound: Meng and Wong's between the guide and draws by NUTS",
        ),
    ],
    ids=["smc", "smc from the guide", "bridge"],
)
def test_evidence_of_a_data_set_by_what_is_sampled_beside_the_weights(
    shared, capsys, estimator, options, note
):
    """|z| < 4; a tenth of a nat of error, the twin, is found by the sharper ones."""
    run("train", *shared, "--guide", "AutoNormal", "--out", "run")
    run("evaluate", "run", "--estimator", estimator, *options, "--trust")
    out = capsys.readouterr().out
    assert note in out
    assert "evaluations" in out
    found = estimates("run")[estimator]
    assert found["reliable"], found["reason"]
    assert found["unit"] == "data set"
    assert found["num_data"] == len(Y)
    assert f"{found['num_evaluations']:,.0f}" in out
    assert found["num_evaluations"] > 1000
    assert 0 < found["mc_se"] < 0.05
    assert abs(found["nats"] - EXACT) < 4 * found["mc_se"]
    assert abs(found["nats"] - EXACT + 0.2) > 4 * found["mc_se"]
    made_by = row_of("run")["evaluations"][-1]["made_by"]
    assert set(made_by) >= set(OPTIONS_OF[estimator])


def test_a_number_of_each_datum_by_sequential_monte_carlo(trained, capsys):
    run("evaluate", trained, "--estimator", "smc", "--num_data", 10, "--num_particles", 50)
    assert "SMC lower bound" in capsys.readouterr().out
    found, (_, records) = estimates(trained), per_datum.read(Path("run"))
    assert found["smc"]["reliable"], found["smc"]["reason"]
    assert found["smc"]["num_data"] == 10
    errors = records["smc"].log_px - records["exact"].log_px
    assert (errors.abs() < 5 * records["smc"].log_px_variance.sqrt()).all()
    mc_se = found["smc"]["mc_se"]
    assert abs(found["smc"]["nats"] - found["exact"]["nats"]) < 4 * mc_se < 0.3


def test_guides_are_compared_by_what_is_sampled(shared, capsys):
    words = [*shared, "--guides", "AutoNormal", "AutoMultivariateNormal", "--num_particles", 50]
    run("compare", *words, "--estimator", "smc", "--num_chains", 4, "--out", "c")
    out = capsys.readouterr().out
    assert "SMC lower bound" in out
    assert "they agree" in out
    assert results("c")["comparisons"][-1]["reliable"]


def test_draws_that_have_not_mixed_are_no_bridge(shared, capsys):
    run("train", *shared, "--guide", "AutoNormal", "--out", "run")
    words = ["--estimator", "bridge", "--num_samples", 40, "--num_warmup", 5, "--trust"]
    run("evaluate", "run", *words)
    assert "NOT RELIABLE, bridge of AutoNormal" in capsys.readouterr().out
    assert estimates("run")["bridge"]["mc_se"] is None
    words[3] = 20
    assert "expected 40 or more draws" in refused(capsys, "evaluate", "run", *words)


def test_every_estimator_that_can_be_asked_for_is_known_to_reports():
    asked = set(get_args(Estimator)) - {"bdmc"}
    assert asked == set(ESTIMATORS) - {"exact", "nested"}
    assert asked >= set(OPTIONS_OF) - {"bdmc"}


def test_a_part_of_the_weights_defends_a_narrow_guide(trained, capsys):
    """What it was is with the evaluation, and nothing of it with one that has none."""
    run("evaluate", trained, "--num_particles", 200, "--defensive", "0.2")
    assert row_of(trained)["evaluation"]["defensive"] == 0.2
    found = estimates(trained)
    assert found["elbo"]["num_particles"] == 160  # 13 are of the prior, and three times 9 wider
    iw, exact = found["iw"], found["exact"]
    assert abs(iw["nats"] - exact["nats"]) < 5 * iw["mc_se"]
    run("evaluate", trained, "--num_particles", 200)
    assert "defensive" not in row_of(trained)["evaluation"]
    assert estimates(trained)["elbo"]["num_particles"] == 200
