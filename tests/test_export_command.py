"""`evidence export`: the file, read back, holds the draws and densities of the runs' guides."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

from evidence.experiments.cli import main
from evidence.experiments.setup.one_model import load_runs
from evidence.experiments.storage import files
from evidence.inference import log_weights
from evidence.inference.diagnostics import arviz_datasets
from tests.test_cli import refused, run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz

MODEL = ["--model", "LinearGaussian(latent_dim=3)", "--data", "toy"]
FIT = ["--num_epochs", "2", "--lr", "0.02"]
FEW = ["--num_draws", "6", "--num_chains", "2", "--num_data", "4"]
GUIDES = ["MeanField", "FullRank"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """One frozen comparison, which tests copy."""
    folder = tmp_path_factory.mktemp("runs") / "c"
    run("compare", *MODEL, *FIT, "--guides", *GUIDES, "--decoder", "frozen",
        "--num_particles", 9, "--out", folder)  # fmt: skip
    return folder


@pytest.fixture
def shared(once):
    shutil.copytree(once, "c")
    return [f"c/{guide}" for guide in GUIDES]


@pytest.fixture
def trained(shared):
    shutil.move(shared[0], "run")
    return "run"


def group(path, name):
    with xarray.open_dataset(path, group=name, engine="h5netcdf") as dataset:
        return dataset.load()


def test_one_run_read_back_has_the_models_densities(trained, capsys):
    capsys.readouterr()
    run("export", "run", *FEW)
    out = capsys.readouterr().out
    path = "run/posterior.nc"
    assert f"wrote {path}" in out
    assert "| posterior " in out
    assert "chain 2, draw 6, datum 4, latent 3" in out
    (pair,) = load_runs(["run"]).values()
    z = group(path, "posterior")["z"]
    assert z.dims == ("chain", "draw", "datum", "latent")
    rows = z.coords["datum"].values
    x = pair.x_test[rows.tolist()]
    data = group(path, "observed_data")["x"]
    assert data.dims == ("datum", "entry")
    assert np.array_equal(data.values, x.numpy())
    flat = torch.from_numpy(z.values).flatten(0, 1)  # [S, B, Z]
    stats = group(path, "sample_stats")
    with torch.no_grad():
        log_q = pair.guide.posterior(x).log_prob(flat)
        log_p = pair.model.log_joint(x, flat)
    for name, expected in (("log_q_z", log_q), ("log_p_xz", log_p), ("log_weight", log_p - log_q)):
        assert np.allclose(stats[name].values.reshape(12, 4), expected.numpy(), atol=1e-4)
    planted = log_p - pair.model.prior().log_prob(flat)  # the prior left out
    assert not np.allclose(stats["log_p_xz"].values.reshape(12, 4), planted.detach(), atol=1e-4)
    assert group(path, "prior_predictive")["x"].sizes["entry"] == x.shape[1]


def test_arviz_reads_guides_of_one_model_side_by_side(shared):
    run("export", *shared, *FEW, "--num_draws", 200, "--out", "both.nc", "--predictive", "false")
    read = arviz.from_netcdf("both.nc")
    z = read["posterior"]["z"]
    assert z.dims == ("chain", "draw", "guide", "datum", "latent")
    assert list(z.coords["guide"].values) == GUIDES
    assert "posterior_predictive" not in read
    assert read["prior"]["z"].dims == ("chain", "draw", "datum", "latent")
    pairs = load_runs(shared)
    assert list(pairs) == GUIDES
    for label, pair in pairs.items():
        x = pair.x_test[z.coords["datum"].values.tolist()]
        exact = log_weights(pair.model, pair.guide, x, num_particles=4000).mean(0)
        ours = read["sample_stats"]["log_weight"].sel(guide=label)
        se = ours.std(("chain", "draw")).values / np.sqrt(400) + 1e-3
        assert (np.abs(ours.mean(("chain", "draw")).values - exact.numpy()) < 5 * se).all()
    assert not np.allclose(z.sel(guide="MeanField"), z.sel(guide="FullRank"))


def test_images_have_pixels_and_sites_have_names():
    run("train", "--model", "VAE(latent_dim=2, hidden_dims=[8])", "--num_epochs", 1, "--out", "v")
    run("export", "v", *FEW)
    x = group("v/posterior.nc", "posterior_predictive")["x"]
    assert x.dims == ("chain", "draw", "datum", "pixel")
    assert set(np.unique(x.values)) <= {0.0, 1.0}
    levels = "HierarchicalVAE(latent_dims=[3, 2])"
    run("train", "--model", levels, "--guide", "Hierarchical", "--num_epochs", 1, "--out", "h")
    run("export", "h", *FEW)
    posterior = group("h/posterior.nc", "posterior")
    assert {name: v.dims[-1] for name, v in posterior.data_vars.items()} == {
        "z1": "z1_entry",
        "z2": "z2_entry",
    }
    assert posterior.sizes["z1_entry"] + posterior.sizes["z2_entry"] == 5


def test_the_line_of_arviz_1_is_written_too(trained, monkeypatch):
    monkeypatch.setattr(arviz_datasets, "version", lambda name: "1.0.0")
    run("export", "run", *FEW)
    with xarray.open_datatree("run/posterior.nc", engine="h5netcdf") as tree:
        assert tree["posterior"]["z"].shape == (2, 6, 4, 3)
        assert tree.attrs["model"].startswith("LinearGaussian")


def test_the_record_of_the_file_and_the_seed(trained):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("export", "run", *FEW, "--seed", seed, "--out", f"{name}.nc", "--prior", "false")
    a, b, c = (group(f"{name}.nc", "posterior")["z"].values for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    root = group("a.nc", None)
    assert root.attrs["data"] == "toy"
    assert len(root.attrs["test_sha256"]) == 64
    assert group("a.nc", "posterior").attrs["seed"] == 1
    with pytest.raises(OSError, match="prior"):
        group("a.nc", "prior")


def test_a_file_is_never_replaced_without_leave(trained, capsys):
    Path("mine.nc").write_text("dear")
    message = refused(capsys, "export", "run", *FEW, "--out", "mine.nc")
    assert "mine.nc exists already: pass --overwrite true" in message
    assert Path("mine.nc").read_text() == "dear"
    run("export", "run", *FEW, "--out", "mine.nc", "--overwrite", "true")
    assert group("mine.nc", "posterior")["z"].shape == (2, 6, 4, 3)


def test_an_interrupted_export_leaves_nothing(trained, capsys, monkeypatch):
    before = sorted(Path("run").iterdir())

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)  # the file is written, under another name
    with pytest.raises(SystemExit) as stop:
        main(["export", "run", *FEW])
    assert stop.value.code == 130
    assert "nothing was written" in capsys.readouterr().err
    assert sorted(Path("run").iterdir()) == before


def test_runs_of_different_models_and_data_are_refused(capsys):
    run("train", *MODEL, *FIT, "--out", "a")
    run("train", *MODEL, *FIT, "--lr", "0.01", "--out", "b")
    message = refused(capsys, "export", "a", "b", *FEW, "--out", "x.nc")
    assert "a and b are of different models p(x, z)" in message
    assert "compare --decoder frozen" in message
    capsys.readouterr()
    run("train", *MODEL, *FIT, "--seed", 1, "--model", "GaussianMixture2D", "--data", "simulated",
        "--out", "d")  # fmt: skip
    assert "different evaluation data" in refused(capsys, "export", "a", "d", "--out", "x.nc")
    assert "different runs, got a a" in refused(capsys, "export", "a", "a", "--out", "x.nc")
    assert "--num_draws of at least 1" in refused(capsys, "export", "a", "--num_draws", 0)
    assert "there is no folder" in refused(capsys, "export", "a", "--out", "no/x.nc")
    assert "is a folder" in refused(capsys, "export", "a", "--out", "a")
    assert not Path("x.nc").exists()


def test_two_runs_of_one_guide_are_told_apart_by_their_folders():
    run("train", *MODEL, *FIT, "--out", "a")
    for out in ("one", "two"):
        run("train", *MODEL, *FIT, "--frozen_model", "a", "--lr", "0.01", "--out", out)
    run("export", "one", "two", *FEW, "--out", "x.nc")
    labels = group("x.nc", "posterior").coords["guide"].values
    assert list(labels) == ["MeanField in one", "MeanField in two"]
