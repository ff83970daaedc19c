"""`evidence reference`: guides beside NUTS; exact ones are not told apart, wrong ones are."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.experiments.cli import main
from evidence.experiments.commands import reference
from evidence.experiments.reports import pictures_posterior, plots_posterior
from evidence.experiments.reports.reference import reference_table
from evidence.experiments.setup.one_model import load_runs
from evidence.guides import AbstractPosterior
from evidence.inference.bridging.posterior_draws import reference_of
from evidence.inference.diagnostics.discrepancy import compare_to_reference
from evidence.inference.paths.reference import nuts_reference
from evidence.inference.programs.data import takes
from evidence.models import GaussianMixture2D
from tests.test_cli import refused, run

DRAWN = True

FIT = ["--num_epochs", "2", "--lr", "0.02", "--data", "toy", "--decoder", "frozen"]
SHORT = ["--num_samples", "150", "--num_warmup", "100", "--num_chains", "2"]
GUIDES = ["MeanField", "FullRank"]


class Given(AbstractPosterior):
    """The exact posterior of a linear Gaussian model, or the best factorized Gaussian."""

    def __init__(self, model, *, exact):
        super().__init__(model.latent_dim, model.data_dim)
        self.of, self.exact = [model], exact  # in a list: no module of this one

    def posterior(self, x):
        posterior = self.of[0].posterior(x)
        if self.exact:
            return posterior
        scale = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
        return dist.Normal(posterior.mean, scale).to_event(1)

    def local_parameters(self, x):
        raise NotImplementedError

    def given(self, local_parameters):
        raise NotImplementedError


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Frozen comparisons with two and with three latents, which tests copy."""
    folder = tmp_path_factory.mktemp("runs")
    for dim in (2, 3):
        run("compare", "--model", f"LinearGaussian(latent_dim={dim})", *FIT, "--guides", *GUIDES,
            "--num_particles", 9, "--out", folder / str(dim))  # fmt: skip
    return folder


@pytest.fixture
def runs(once):
    shutil.copytree(once, "runs")
    return {dim: [f"runs/{dim}/{guide}" for guide in GUIDES] for dim in (2, 3)}


@pytest.fixture
def planted(monkeypatch):
    """In place of the trained guides the exact and the best factorized one, z₁ + z₂ observed."""

    def load(names, *options):
        loaded = load_runs(names, *options)
        pair = next(iter(loaded.values()))
        with torch.no_grad():
            pair.model.weight.fill_(0.3)
            pair.model.log_scale.fill_(-0.7)
        guides = {"Factorized": False, "Exact": True}
        return {
            label: dataclasses.replace(pair, guide=Given(pair.model, exact=exact))
            for label, exact in guides.items()
        }

    monkeypatch.setattr(reference, "load_runs", load)


def document(folder):
    return json.loads((Path(folder) / "reference.json").read_text())


@pytest.mark.slow
def test_mean_field_on_a_correlated_posterior_is_told_apart_and_the_exact_guide_is_not(
    runs, planted, capsys
):
    # Half as many draws, and R̂ of chains that are right is above 1.01 for one seed in ten.
    options = ["--num_samples", 1000, "--num_warmup", 200, "--num_chains", 4]
    run("reference", *runs[2], "--rows", 0, 2, *options, "--out", "made")
    out = capsys.readouterr().out
    found = document("made")
    assert found["nuts"]["converged"]
    factorized, exact = found["guides"]
    assert {"sd", "C2ST"} <= set(factorized["told_apart_by"])
    assert exact["told_apart_by"] == []
    assert factorized["sd"]["of_the_posterior_sd"] < -0.3
    assert exact["log_q_z"]["mean"] > factorized["log_q_z"]["mean"]
    assert factorized["c2st"]["mean"] - 0.5 > 5 * factorized["c2st"]["se"]
    assert exact["sliced_wasserstein"] < 2 * exact["sliced_wasserstein_floor"]
    assert "Factorized is told apart by" in out
    assert "Exact is not told apart" in out
    assert out.rstrip().endswith(found["verdict"])


def test_the_document_the_table_and_where_they_go(runs, capsys):
    run("reference", *runs[3], "--rows", 1, *SHORT)
    out = capsys.readouterr().out
    found = document(runs[3][0])
    assert not Path(runs[3][1], "reference.json").exists()
    assert Path(runs[3][0], "reference.png").stat().st_size > 10_000
    assert (found["version"], found["command"], found["rows"]) == (1, "reference", [1])
    assert found["latents"] == ["z[0]", "z[1]", "z[2]"]
    assert [guide["label"] for guide in found["guides"]] == GUIDES
    assert [guide["folder"] for guide in found["guides"]] == runs[3]
    nuts = found["nuts"]
    assert f"R̂ up to {nuts['r_hat_max']:.3f}" in out
    for guide in found["guides"]:
        assert guide["mean"]["row"] == 1
        assert f"{guide['c2st']['mean']:.3f} ± {guide['c2st']['se']:.3f}" in out
        assert len(guide["per_datum"]["log_q_z"]) == 1
        assert guide["per_datum"]["log_q_z"][0] == pytest.approx(guide["log_q_z"]["mean"])
        assert guide["per_datum"]["eubo"][0] == pytest.approx(guide["eubo"]["mean"])
        assert f"{guide['eubo']['mean']:.3f} ± {guide['eubo']['se']:.3f}" in out
        assert f"{guide['forward_kl']['mean']:.3f}" in out
        assert f"{guide['wasserstein']['worst']:.3f} (floor" in out
        assert guide["wasserstein"]["latent"] in found["latents"]
        assert guide["modes"] is None
    brief = reference.in_brief(found)
    assert [one["eubo"] for one in brief] == [one["eubo"] for one in found["guides"]]
    assert {one["converged"] for one in brief} == {nuts["converged"]}


def test_shares_of_known_modes_are_in_the_document_and_in_the_table():
    """Of a guide that has one of four components, for each of two data."""
    model, x = GaussianMixture2D(2).double(), torch.tensor([[0.0, 0.0], [1.0, 2.0]]).double()
    draws = reference_of(takes(model, x), {"z": model.posterior(x).sample([4, 100])}, x)

    def guide(x):
        with pyro.plate("data", len(x)):
            at = model.centres[0].double().expand(len(x), 2)
            pyro.sample("z", dist.Normal(at, 0.4).to_event(1))

    options = {"modes": model.modes(x), "classifier": "logistic"}
    seen = compare_to_reference(model, guide, draws, **options)
    found = reference._of_guide(seen, ["z[0]", "z[1]"], draws, [0, 7])
    assert np.array(found["modes"]["exact"]).shape == (2, 4)
    assert found["modes"]["guide"]["shares"][0] == pytest.approx([1, 0, 0, 0], abs=0.02)
    assert found["modes"]["reference"]["jensen_shannon"]["mean"] < 0.02
    document = {
        "guides": [found | {"label": "One"}], "model_name": "GaussianMixture2D", "rows": [0, 7],
        "unit": "datum", "num_data": 2, "data": "simulated", "split": "test", "classifier": "knn",
        "nuts": {"num_chains": 4, "num_samples": 100, "num_independent": 400},
    }  # fmt: skip
    table = reference_table(document)
    assert "exactly 0.250, 0.250, 0.250, 0.250" in table
    assert f"(JS {found['modes']['guide']['jensen_shannon']['mean']:.3f})" in table


def test_a_reference_that_has_not_converged_says_so(runs, capsys):
    few = ["--num_samples", 60, "--num_warmup", 30, "--num_chains", 2]
    run("reference", runs[2][0], *few)
    out = capsys.readouterr().out
    found = document(runs[2][0])
    assert not found["nuts"]["converged"]
    assert found["guides"][0]["told_apart_by"] is None
    assert "NUTS has NOT CONVERGED" in out
    assert "| NOT CONVERGED |" in " ".join(out.split())
    message = refused(capsys, "reference", runs[2][0], "--num_samples", 4, "--num_warmup", 1)
    assert "nothing to compare with: raise --num_warmup" in message
    assert document(runs[2][0]) == found


def test_contours_hold_the_mass_that_they_say(runs):
    """Of the exact Gaussian: log p falls by log 2 to the 50% contour, by log 10 to that of 90%."""
    (pair,) = load_runs([runs[2][0]]).values()
    x = pair.x_test[:1]
    with torch.no_grad():
        posterior = pair.model.posterior(x)
        draws = posterior.sample([20_000])[:, 0]
        guides = {"q": Given(pair.model, exact=True)}
        panel = pictures_posterior._panel(pair.model, guides, x, draws, {"q": draws}, "datum 0")
        top = posterior.log_prob(posterior.mean).item()
    low, high = panel.guides["q"].levels
    assert top - high == pytest.approx(np.log(2), abs=0.05)
    assert top - low == pytest.approx(np.log(10), abs=0.1)
    offset = panel.truth.log_density - panel.guides["q"].log_density  # log p(x), everywhere
    assert np.ptp(offset) < 1e-2
    (left, right), (bottom, up) = panel.bounds
    assert right - left == pytest.approx(up - bottom)
    row, column = np.unravel_index(panel.truth.log_density.argmax(), panel.truth.log_density.shape)
    size = len(panel.truth.log_density)
    peak = (
        left + (column + 0.5) * (right - left) / size,
        bottom + (row + 0.5) * (up - bottom) / size,
    )
    assert peak == pytest.approx(posterior.mean[0].tolist(), abs=2 * (right - left) / size)


def test_pictures_have_a_panel_per_datum_and_guide_or_latent():
    contours = plots_posterior.Contours(-np.ones((4, 4)).cumsum(0), (-3.0, -2.0))
    panel = plots_posterior.Panel(
        "datum 5", ((0, 1), (0, 1)), contours, {"A": contours, "B": contours}
    )
    figure = plots_posterior.contours([panel, panel], title="t")
    assert [axes.get_title() for axes in figure.axes] == ["A", "B", "", ""]
    assert figure.axes[2].get_xlabel() == "z₁"
    draws = torch.randn(500, 2, 3)
    figure = plots_posterior.marginals(
        draws, {"A": draws + 1}, ["z[0]", "z[1]", "z[2]"], ["datum 5", "datum 7"], title="t"
    )
    assert len(figure.axes) == 6
    assert figure.axes[3].get_ylabel() == "datum 7\ndensity"
    assert figure.axes[5].get_xlabel() == "z[2]"


def test_mixtures_are_moved_by_nuts_too():
    model = GaussianMixture2D(2, radius=0.01)  # components on one another: a Gaussian
    found = nuts_reference(model, torch.zeros(1, 2), num_samples=50, num_warmup=50, num_chains=2)
    exact = model.posterior(torch.zeros(1, 2)).sample([4000]).std(0)
    assert torch.allclose(found.draws.flatten(0, 1).std(0), exact, rtol=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "0", "0"], "expected one or more different --rows, got [0, 0]"),
        (["--rows", "100000"], "expected --rows between 0 and"),
        (["--rows", "-1"], "rows"),
        (["--rows", "one"], "rows"),
        (["--num_chains", "1"], "expected --num_chains of at least 2, got 1"),
        (["--target_accept_prob", "1.5"], "expected --target_accept_prob between 0 and 1"),
        (["--classifier", "tree"], "tree"),
        (["--out", "taken"], "--out taken is a file"),
    ],
    ids=" ".join,
)
def test_bad_options_get_one_line(runs, capsys, options, message):
    Path("taken").write_text("mine")
    assert message in refused(capsys, "reference", runs[2][0], *options)
    assert not Path(runs[2][0], "reference.json").exists()


def test_runs_of_different_models_are_refused(runs, capsys):
    message = refused(capsys, "reference", runs[2][0], runs[3][0], *SHORT)
    assert "are of different models p(x, z)" in message
    assert "is no run folder" in refused(capsys, "reference", "nowhere")


def test_an_interrupted_reference_leaves_nothing(runs, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(reference, "nuts_reference", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["reference", runs[2][0], "--out", "made"])
    assert stop.value.code == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not Path("made").exists()
