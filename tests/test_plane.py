"""Models in the plane: divergences beside exact ones, the picture, and the zoo's first part."""

import json
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

from evidence.experiments import zoo
from evidence.experiments.cli import main
from evidence.experiments.reports.plane import mean_divergences, plane_of
from evidence.guides import AbstractGuide, MeanField
from evidence.models import VAE, Energy2D, GaussianMixture2D

DRAWN = True


class Exact(AbstractGuide):
    """The exact posterior of a model, moved by a shift."""

    def __init__(self, model, shift=0.0):
        super().__init__(2, 2, output_dims=(2,))
        self.of, self.shift = (model,), shift

    def posterior(self, x):
        exact = self.of[0].posterior(x)
        move = dist.transforms.AffineTransform(self.shift, 1.0, event_dim=1)
        return dist.TransformedDistribution(exact, [move])


def test_the_exact_posterior_has_no_divergence_and_a_moved_one_has():
    model = GaussianMixture2D(2).double()
    x = model(None, size=20)
    exact = mean_divergences(model, Exact(model), x)
    assert abs(exact.forward) < 1e-4
    assert abs(exact.reverse) < 1e-4
    assert exact.mass == pytest.approx(1.0, abs=1e-3)
    moved = mean_divergences(model, Exact(model, 0.2), x)
    assert moved.forward > 0.02
    assert moved.reverse > 0.02


def test_the_integral_over_the_plane_is_the_evidence():
    for model in (GaussianMixture2D(2).double(), Energy2D(2, energy="U3").double()):
        x = torch.randn(1, 2).double()
        plane = plane_of(model, MeanField(2, 2).double(), x)
        assert plane.divergences.log_px.item() == pytest.approx(
            model.log_evidence(x).item(), abs=2e-3
        )


def test_other_models_have_no_plane():
    model = VAE(8, 2)
    assert mean_divergences(model, MeanField(2, 8), torch.rand(3, 8)) is None
    with pytest.raises(ValueError, match="expected a model in the plane, got VAE"):
        plane_of(model, MeanField(2, 8), torch.rand(1, 8))


def test_a_comparison_in_the_plane_reports_divergences(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--model GaussianMixture2D --guides MeanField Planar --data simulated --num_epochs 1"
    words += " --num_data 10 --num_particles 30 --out cmp"
    assert main(["compare", *words.split()]) == 0
    assert "KL(q ‖ p)" in capsys.readouterr().out
    rows = json.loads(Path("cmp/results.json").read_text())["rows"]
    for row in rows:
        assert row["divergences"]["num_data"] == 10
        assert row["estimates"][0]["num_data"] == 10
        assert {e["estimator"] for e in row["estimates"]} == {"elbo", "iw", "exact"}
    assert Path("cmp/densities.png").stat().st_size > 10_000


def test_the_zoo_runs_and_leaves_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    quick = zoo.FIT | {"num_epochs": 1, "num_particles": 30, "num_data": 2}
    monkeypatch.setattr(zoo, "PLANAR_FIT", quick)
    monkeypatch.setattr(zoo, "ENERGIES", ("U2",))
    monkeypatch.setattr(zoo, "PLANAR", ("Planar(num_flows=2)",))
    assert zoo.main(["planar", "--out", str(tmp_path)]) == 0
    assert "ln Z − ELBO, Planar(num_flows=2)" in (tmp_path / "planar" / "table.md").read_text()
    assert (tmp_path / "planar" / "planar.png").stat().st_size > 10_000


def test_the_zoo_runs_the_parts_that_are_named_or_all(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(zoo, "PARTS", dict.fromkeys(zoo.PARTS, done.append))
    assert zoo.main([]) == 0
    assert [out.name for out in done] == ["zoo"] * 3
    assert zoo.main(["noise", "--out", "elsewhere"]) == 0
    assert done[3].name == "elsewhere"
    with pytest.raises(SystemExit) as stopped:
        zoo.main(["nois"])
    assert stopped.value.code == 2
    assert "expected parts of planar, plane, noise, got nois" in capsys.readouterr().err


def test_the_zoo_measures_signal_to_noise(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "PARTICLES", (1, 16))
    monkeypatch.setattr(zoo, "OBJECTIVES", (zoo.STL,))
    monkeypatch.setattr(zoo, "_DRAWS", 300)
    assert zoo.main(["noise", "--out", str(tmp_path)]) == 0
    assert "STL" in (tmp_path / "noise" / "table.md").read_text()
    assert (tmp_path / "noise" / "noise.png").stat().st_size > 10_000
