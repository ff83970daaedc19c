"""Several fits of one comparison: one test set, a folder per seed, and the spread over the fits."""

import math
from pathlib import Path

import pytest
import torch

from evidence.experiments.commands import compare as comparing
from evidence.experiments.commands import train
from evidence.experiments.reports.fits import over_fits
from evidence.experiments.setup.labels import folder_name, shortened
from evidence.experiments.storage.records import Count, Estimate, Weights
from tests.rows import a_row
from tests.test_cli import QUICK, refused, results, run, weights

COMPARE = ["compare", *QUICK, "--guides", "MeanField", "FullRank", "--num_particles", 50]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_seed_decides_the_fit_and_the_data_seed_the_test_set():
    for name, options in {"a": [], "b": ["--seed", 1], "c": ["--data_seed", 1]}.items():
        run("train", *QUICK, *options, "--out", name)
    a, b, c = (results(name)["rows"][0] for name in "abc")
    assert a["test_sha256"] == b["test_sha256"] != c["test_sha256"]
    first, second = weights("a"), weights("b")
    assert not torch.equal(first["model.decoder.0.weight"], second["model.decoder.0.weight"])
    assert (b["seed"], b["data_seed"], c["seed"], c["data_seed"]) == (1, 0, 0, 1)


def test_simulated_data_are_the_same_for_every_seed():
    digests = set()
    for seed in (0, 1):
        run("train", "--model", "GaussianMixture2D", "--data", "simulated", "--num_epochs", 1,
            "--seed", seed, "--out", seed)  # fmt: skip
        digests.add(results(str(seed))["rows"][0]["data_sha256"])
    assert len(digests) == 1


def test_more_fits_are_added_to_the_first_and_judged_together(monkeypatch, capsys):
    monkeypatch.setattr(train, "draw_run", lambda *_: None)  # takes most of the time
    command = [*COMPARE, "--decoder", "frozen", "--num_data", 60, "--out", "c"]
    run(*command)
    out = capsys.readouterr().out
    assert "± fit SE" not in out
    assert "`--seeds 3`" in out
    alone = results("c")
    train_run, trained = comparing.train_run, []

    def record(config, **options):
        trained.append((config.seed, config.out))
        return train_run(config, **options)

    monkeypatch.setattr(comparing, "train_run", record)
    before = weights("c/FullRank")
    run(*command, "--seeds", 3)
    out = capsys.readouterr().out
    assert "± fit SE, means over 3 fits" in out
    assert "`--seeds" not in out
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights("c/FullRank").items())
    folders = ["c", "c/seed-1", "c/seed-2"]
    assert {Path(out).parent.as_posix() for _, out in trained} == set(folders)
    assert all(Path(folder, "model/checkpoints").exists() for folder in folders)
    found = results("c")
    assert [(row["label"], row["seed"]) for row in found["rows"]] == [
        (guide, seed) for seed in range(3) for guide in ("MeanField", "FullRank")
    ]
    assert len({row["test_sha256"] for row in found["rows"]}) == 1
    assert found["rows"][:2] == alone["rows"]
    _check_difference(found)
    for row in found["summary"]:
        nats = [r["estimates"][0]["nats"] for r in found["rows"] if r["label"] == row["label"]]
        values = torch.tensor(nats, dtype=torch.float64)
        (elbo,) = (e for e in row["estimates"] if e["estimator"] == "elbo")
        assert elbo["nats"] == pytest.approx(values.mean().item())
        assert elbo["fit_se"] == pytest.approx(values.std().item() / math.sqrt(3))


def _check_difference(found):
    """The difference is that of the fits of one seed, which share their model."""
    (pair,) = found["comparisons"]
    elbos = {(r["label"], r["seed"]): r["estimates"][0]["nats"] for r in found["rows"]}
    by_seed = [elbos["MeanField", s] - elbos["FullRank", s] for s in range(3)]
    by_seed = torch.tensor(by_seed, dtype=torch.float64)
    assert pair["difference"] == pytest.approx(by_seed.mean().item(), rel=1e-4)
    assert pair["fit_se"] == pytest.approx(by_seed.std().item() / math.sqrt(3), abs=0.01)
    assert pair["num_fits"] == 3
    low, high = pair["interval_95"]
    assert high - low > 2 * 4.3 * by_seed.std().item() / math.sqrt(3)  # t with two degrees


def test_a_comparison_needs_a_fit(capsys):
    assert "--seeds of at least 1, got 0" in refused(capsys, *COMPARE, "--seeds", 0)


def fit_of(label, nats, *, reason=None, mc_se=0.3):
    estimate = Estimate(
        estimator="iw", nats=nats, mc_se=mc_se, data_se=0.5, num_particles=9, num_data=9,
        reliable=reason is None, reason=reason,
    )  # fmt: skip
    k_hat = Weights(median=nats / 10, share_bad=0.0, threshold=0.7)
    return a_row(label=label, estimates=[estimate], k_hat=k_hat, active_units=Count(count=2, of=2))


def test_the_row_over_fits_is_their_mean_and_their_spread():
    rows = [fit_of("A", 1.0), fit_of("B", 5.0), fit_of("A", 2.0), fit_of("A", 6.0)]
    a, b = over_fits(rows)
    (estimate,) = a.estimates
    assert estimate.nats == 3.0
    assert estimate.mc_se == pytest.approx(0.3 / math.sqrt(3))
    assert estimate.data_se == 0.5
    assert estimate.fit_se == pytest.approx(math.sqrt(7 / 3))
    assert a.k_hat.median == pytest.approx(0.3)
    assert (a.num_fits, a.active_units) == (3, Count(count=2, of=2))
    assert b == rows[1]
    (joined,) = over_fits([fit_of("A", 1.0), fit_of("A", 2.0, reason="ESS 1", mc_se=None)])
    (estimate,) = joined.estimates
    assert (estimate.reliable, estimate.reason) == (False, "ESS 1")
    assert estimate.mc_se is None


def test_long_labels_are_cut_in_the_middle_and_stay_different():
    long = [f"Refined(guide=Planar(num_flows=16, hidden_dims=[{k}00, 200]), num_steps={n})"
            for k in (1, 2) for n in (1, 2)]  # fmt: skip
    short = shortened(["MeanField", *long], 40)
    assert short["MeanField"] == "MeanField"
    assert len(set(short.values())) == 5
    assert max(map(len, short.values())) <= 40
    assert short[long[0]].startswith("Refined(guide=Planar(")
    assert short[long[1]].endswith("num_steps=2)") or short[long[1]].endswith("(2)")
    names = [folder_name(100 * "a" + end) for end in "bc"]
    assert len(set(names)) == 2
    assert max(map(len, names)) <= 100
    assert folder_name("Planar-num_flows-2") == "Planar-num_flows-2"


def test_a_guide_with_a_long_spec_has_a_table_and_pictures(capsys):
    guide = f"Refined(guide=Refined(guide=MeanField(hidden_dims={[16] * 30})), num_steps=1)"
    run("compare", *QUICK, "--guides", "MeanField", guide, "--num_particles", 5, "--num_data", 9,
        "--out", "c")  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if line.startswith("|")) < 250
    assert results("c")["rows"][1]["label"] == guide
    assert Path("c/evidence.png").exists()
