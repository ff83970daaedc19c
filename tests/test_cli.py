"""The command line: the whole path on real data, exit codes, and one clear line for bad input."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from safetensors.torch import load_file

from evidence.experiments.cli import main
from evidence.experiments.commands import compare
from evidence.experiments.storage import checkpoints, schema

ROOT = Path(__file__).parents[1]
QUICK = ["--model", "VAE(latent_dim=2, hidden_dims=[16])", "--num_epochs", "2"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*words):
    assert main([str(word) for word in words]) == 0


def refused(capsys, *words):
    """Run a command that must fail: exit code 2, one line on stderr, which is returned."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def weights(folder):
    newest = checkpoints.newest(Path(folder) / "checkpoints")
    return load_file(newest / "tensors.safetensors")


ROW_KEYS = {
    "model", "guide", "data", "split", "binarize", "seed", "num_parameters", "train_seconds",
    "steps_per_second", "estimates", "k_hat", "ess",
}  # fmt: skip


def test_train_evaluate_and_sample(capsys):
    run("train", *QUICK, "--guide", "Planar(num_flows=2)", "--out", "run")
    assert "| Planar(num_flows=2) |" in capsys.readouterr().out
    assert results("run")["command"] == "train"
    pictures = {path.name for path in Path("run").glob("*.png")}
    assert pictures == {
        "latent_codes.png", "manifold.png", "reconstructions.png", "samples.png",
        "training_curves.png",
    }  # fmt: skip

    run("evaluate", "run", "--num_particles", 50)
    assert "IW-50" in capsys.readouterr().out
    document = results("run")
    (row,) = document["rows"]
    assert (document["version"], document["command"]) == (1, "evaluate")
    assert set(row) >= ROW_KEYS
    assert [e["estimator"] for e in row["estimates"]] == ["elbo", "iw"]
    for estimate in row["estimates"]:
        assert set(estimate) == {
            "estimator", "nats", "reliable", "reason", "mc_se", "data_se", "num_particles",
            "num_data", "dtype", "unit", "num_evaluations",
        }  # fmt: skip
        assert estimate["num_data"] == 360
        assert (estimate["mc_se"] is None) == (not estimate["reliable"])
        assert estimate["mc_se"] is None or 0 < estimate["mc_se"] < estimate["data_se"]
    assert row["estimates"][0]["nats"] < row["estimates"][1]["nats"]
    assert set(row["k_hat"]) == {"median", "share_bad", "threshold"}
    assert (row["model"], row["guide"], row["binarize"]) == ("VAE", "Planar", "dynamic")
    assert len(row["data_sha256"]) == len(row["test_sha256"]) == 64

    run("sample", "run", "--num_samples", 7)
    samples = load_file("run/samples/samples.safetensors")
    assert samples["x"].shape == (7, 64)
    assert ((samples["x"] == 0) | (samples["x"] == 1)).all()
    assert results("run/samples")["rows"][0]["num_samples"] == 7
    assert results("run") == document


def test_evaluation_is_the_same_every_time():
    run("train", *QUICK, "--out", "run")
    run("evaluate", "run", "--num_particles", 20)
    first = results("run")["rows"][0]["estimates"]
    run("evaluate", "run", "--num_particles", 20)
    assert results("run")["rows"][0]["estimates"] == first


def test_compare_frozen_compares_posteriors_of_one_model(capsys):
    guides = ["MeanField", "FullRank", "Planar(num_flows=2)"]
    command = ["compare", *QUICK, "--guides", *guides, "--num_particles", 30]
    run(*command, "--decoder", "frozen", "--out", "cmp")
    table = capsys.readouterr().out
    assert all(f"| {guide} " in table for guide in guides)
    assert "decoder frozen" in table
    assert Path("cmp/table.md").read_text() in table
    model = {n: t for n, t in weights("cmp/model").items() if n.startswith("model.")}
    folders = ["cmp/MeanField", "cmp/FullRank", "cmp/Planar-num_flows-2"]
    for folder in folders:
        assert all(torch.equal(weights(folder)[name], tensor) for name, tensor in model.items())
    rows = results("cmp")["rows"]
    assert [row["label"] for row in rows] == guides
    assert {row["decoder"] for row in rows} == {"frozen"}
    assert {"evidence.png", "training_curves.png"} <= {p.name for p in Path("cmp").iterdir()}
    run("evaluate", folders[-1], "--num_particles", 10)


def test_compare_joint_gives_every_guide_its_own_model():
    run("compare", *QUICK, "--guides", "MeanField", "FullRank", "--num_particles", 9, "--out", "c")
    first, second = weights("c/MeanField"), weights("c/FullRank")
    assert not torch.equal(first["model.decoder.0.weight"], second["model.decoder.0.weight"])
    assert not Path("c/model").exists()


def test_an_interrupted_comparison_goes_on_where_it_stopped(monkeypatch, capsys):
    command = ["compare", *QUICK, "--guides", "MeanField", "FullRank"]
    command += ["--num_particles", 30, "--out", "cmp"]
    train_run, trained = compare.train_run, []

    def interrupt(config, **options):
        trained.append(config.guide)
        if config.guide == "FullRank":
            raise KeyboardInterrupt
        return train_run(config, **options)

    monkeypatch.setattr(compare, "train_run", interrupt)
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in command])
    assert stop.value.code == 130
    assert "the same command goes on from the newest checkpoint" in capsys.readouterr().err
    monkeypatch.setattr(compare, "train_run", train_run)
    before = (Path("cmp/MeanField/results.json")).stat().st_mtime_ns
    run(*command)
    assert Path("cmp/MeanField/results.json").stat().st_mtime_ns == before
    assert [row["guide"] for row in results("cmp")["rows"]] == ["MeanField", "FullRank"]
    more = [*command[:-4], "Planar", "--num_particles", 40, "--out", "cmp"]
    run(*more)  # one guide more, and more particles for all
    assert len(results("cmp")["rows"]) == 3


def test_the_exact_evidence_is_in_the_table_where_there_is_one(capsys):
    options = ["--lr", 0.02, "--lr_decay", 0.9, "--num_epochs", 30, "--data", "toy"]
    run("train", "--model", "LinearGaussian(latent_dim=3)", "--guide", "FullRank", *options,
        "--out", "run")  # fmt: skip
    run("evaluate", "run", "--num_particles", 1000)
    elbo, iw, exact = results("run")["rows"][0]["estimates"]
    assert exact["estimator"] == "exact"
    assert elbo["nats"] <= exact["nats"]
    assert abs(iw["nats"] - exact["nats"]) < 5 * iw["mc_se"]
    assert "exact" in capsys.readouterr().out


def test_gaussian_decoders_report_bits_per_dim():
    model = "VAE(latent_dim=2, hidden_dims=[16], likelihood=gaussian)"
    run("train", "--model", model, "--num_epochs", 20, "--out", "run")
    run("evaluate", "run", "--num_particles", 20)
    row = results("run")["rows"][0]
    assert row["binarize"] == "none"
    assert 0 < row["estimates"][1]["bits_per_dim"] < np.log2(17)


def test_options_of_a_likelihood_and_a_prior_are_kept():
    """From training to evaluation; the levels, where none are given, are those of the data."""
    model = "VAE(latent_dim=2, hidden_dims=[16], likelihood={}, prior=flow(num_flows=2))"
    likelihoods = ["discretized-logistic", "gaussian(scale_floor=0.25)"]
    full = ["discretized-logistic(num_levels=17)", "gaussian(scale_floor=0.25)"]
    for given, kept in zip(likelihoods, full, strict=True):
        run("train", "--model", model.format(given), "--num_epochs", 1, "--out", kept)
        config = yaml.safe_load(Path(kept, "config.yaml").read_text())
        assert config["model"].endswith(f"likelihood={kept}, prior=flow(num_flows=2))")
        names = [name for name in weights(kept) if name.startswith("model.prior_network.layers.")]
        assert {name.split(".")[3] for name in names} == {"0", "1"}
        run("evaluate", kept, "--num_particles", 20)
        options = results(kept)["rows"][0]["model_options"]
        assert (options["likelihood"], options["prior"]) == (kept, "flow(num_flows=2)")
        run("train", "--config", f"{kept}/config.yaml", "--out", "again")
        first, second = weights(kept), weights("again")
        assert all(torch.equal(first[name], second[name]) for name in first)
        shutil.rmtree("again")


def test_the_autoencoder_trains_and_has_no_evidence(capsys):
    run("train", "--model", "Autoencoder", "--guide", "Delta", "--num_epochs", 2, "--out", "ae")
    assert not Path("ae/samples.png").exists()
    assert "no prior" in refused(capsys, "evaluate", "ae")
    assert "no prior" in refused(capsys, "sample", "ae")
    assert results("ae")["command"] == "train"


def test_the_resolved_config_makes_the_same_run_again():
    run("train", *QUICK, "--out", "first")
    config = yaml.safe_load(Path("first/config.yaml").read_text())
    assert config["model"].startswith("VAE(latent_dim=2, hidden_dims=[16], activation='elu'")
    assert config["guide"] == "MeanField(hidden_dims=[16], activation='elu', channels=[], site='z')"
    assert config["binarize"] == "dynamic"
    run("train", "--config", "first/config.yaml", "--out", "second")
    first, second = weights("first"), weights("second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resume_takes_more_epochs():
    run("train", *QUICK, "--out", "short")
    run("train", *QUICK[:2], "--num_epochs", 4, "--out", "short", "--resume", "true")
    run("train", *QUICK[:2], "--num_epochs", 4, "--out", "long")
    short, long = weights("short"), weights("long")
    assert all(torch.equal(short[name], long[name]) for name in long)
    assert results("short")["rows"][0]["num_epochs"] == 4


def test_tensorboard_logs_into_the_run_folder():
    pytest.importorskip("tensorboard")
    run("train", *QUICK, "--tensorboard", "true", "--out", "run")
    assert list(Path("run/tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--guide", "Planr"], "unknown guide 'Planr' (did you mean 'Planar'?)"),
        (["train", "--model", "VEA"], "unknown model 'VEA' (did you mean 'VAE'?)"),
        (["train", "--guide", "Planar(num_flow=3)"], "did you mean 'num_flows'?"),
        (["train", "--guide", "Planar(num_flows=many)"], "Planar: "),
        (["train", "--guide", "Planar(3)"], "expected Name or Name(option=value, ...)"),
        (["train", "--model", "VAE(num_flows=3)"], "unknown option of VAE 'num_flows'"),
        (["train", "--model", "VAE(prior=mixture(num_flows=3))"], "expected one of num_components"),
        (["train", "--model", "VAE(likelihood=bernoulli(scale_floor=1))"], "none: leave it out"),
        (["train", "--num_epoch", "3"], "did you mean --num_epochs?"),
        (["train", "--num_epochs", "three"], '"num_epochs"'),
        (["train", "--num_epochs", "0"], "num_epochs of at least 1, got 0"),
        (["train", "--lr", "1e9"], "Likely cause"),
        (["train", "--data", "mnits"], "did you mean 'mnist'?"),
        (["train", "--binarize", "dynamik"], "binarize"),
        (["train", "--binarize", "none"], "Bernoulli expects values 0 and 1, got values such as"),
        (["train", "--objective", "TraceELBO"], "did you mean 'Trace_ELBO'?"),
        (["train", "--objective", "Trace_ELBO(num_particle=2)"], "did you mean 'num_particles'?"),
        (
            ["train", "--objective", "Trace_ELBO(num_particles=two)"],
            "num_particles to be int, got 'two'",
        ),
        (["train", "--objective", "Trace_MMD"], "unknown objective 'Trace_MMD'"),
        (["train", "--checkpoint_every", "0"], "snapshot_every of at least 1"),
        (["compare", "--guides", "MeanField", "Delta"], "point mass"),
        (["compare", "--model", "Autoencoder"], "no prior"),
        (["train", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--data", "toy"], "Bernoulli expects values 0 and 1"),
        (["compare", "--guides", "MeanField", "MeanField"], "different --guides"),
        (["compare", "--guides", "MeanField", "Planr"], "did you mean 'Planar'?"),
        (["compare", "--guides", "MeanField", "Planar(num_flow=2)"], "did you mean 'num_flows'?"),
        (["evaluate", "nowhere"], "nowhere is no run folder"),
        (["sample", "nowhere"], "nowhere is no run folder"),
        (["frobnicate"], "frobnicate"),
        ([], "command"),
    ],
    ids=" ".join,
)
def test_bad_input_gets_one_line_and_leaves_nothing(capsys, words, message):
    where = ["--out", "run"] if words and words[0] in ("train", "compare") else []
    assert message in refused(capsys, *words, *where)
    assert not Path("run").exists() or not any(Path("run").rglob("epoch-*"))


def test_no_network_and_no_copy_says_how_to_get_the_files(capsys, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    message = refused(capsys, "train", "--data", "mnist", "--data_root", "empty", "--out", "run")
    assert "train-images-idx3-ubyte.gz" in message
    assert "--data_root or EVIDENCE_DATA" in message
    assert not Path("run").exists()


def test_a_folder_of_another_run_is_left_alone(capsys):
    run("train", *QUICK, "--out", "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    message = refused(capsys, "train", *QUICK, "--lr", 0.5, "--out", "run", "--resume", "true")
    assert "holds another run (lr is 0.5 here and the default there)" in message
    assert "--resume true" in refused(capsys, "train", *QUICK, "--out", "run")
    assert "no training run" not in refused(capsys, "compare", *QUICK, "--out", "run")
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("dear")
    assert "in use and no run folder" in refused(capsys, "train", *QUICK, "--out", "mine")
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


def test_corrupt_and_foreign_checkpoints_are_named(capsys):
    run("train", *QUICK, "--out", "run")
    newest = checkpoints.newest(Path("run/checkpoints"))
    tensors, meta = newest / "tensors.safetensors", newest / "meta.json"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1])
    assert "corrupt checkpoint" in refused(capsys, "evaluate", "run")
    resume = ["train", *QUICK, "--out", "run", "--resume", "true"]
    assert "corrupt checkpoint" in refused(capsys, *resume)
    tensors.write_bytes(whole)
    document = schema.parse_signed(meta.read_bytes())
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"data_sha256": "0" * 64}))
    assert "it was changed since it was written" in refused(capsys, "evaluate", "run")
    meta.write_bytes(schema.signed(document | {"data_sha256": "0" * 64}))
    assert "trained on other data" in refused(capsys, "evaluate", "run")
    meta.write_bytes(schema.signed(document | {"format": "other"}))
    assert "foreign checkpoint" in refused(capsys, "evaluate", "run")


def test_an_unreadable_config_is_named(capsys):
    Path("run").mkdir()
    Path("run/config.yaml").write_text("{ not yaml")
    assert "cannot be read" in refused(capsys, "evaluate", "run")
    Path("run/config.yaml").write_text("colour: blue")
    assert "is no training run" in refused(capsys, "evaluate", "run")
    Path("run/config.yaml").write_text("guides: [MeanField]")
    assert "is a comparison: name the folder" in refused(capsys, "evaluate", "run")


def test_a_guide_is_never_tabled_with_another_model_than_the_frozen_one(capsys):
    command = ["compare", *QUICK, "--guides", "MeanField", "FullRank", "--decoder", "frozen"]
    command += ["--num_particles", 9, "--out", "cmp"]
    run(*command)
    shutil.rmtree("cmp/FullRank")
    message = refused(capsys, *command, "--num_epochs", 3)
    assert "holds another run (num_epochs is 3 here and 2 there)" in message
    run("train", *QUICK[:2], "--num_epochs", 3, "--out", "cmp/model", "--resume", "true")
    assert "3 epochs behind it" in refused(capsys, *command)
    again = ["train", *QUICK, "--frozen_model", "cmp/model", "--out", "cmp/MeanField"]
    assert "was fitted to other weights" in refused(capsys, *again, "--resume", "true")


def test_a_comparison_may_move():
    command = ["compare", *QUICK, "--guides", "MeanField", "--decoder", "frozen"]
    command += ["--num_particles", 9]
    run(*command, "--out", "here")
    before = results("here")["rows"][0]["estimates"]
    Path("here").rename("there")
    run(*command, "--out", "there")
    assert results("there")["rows"][0]["estimates"] == before


def test_a_folder_in_use_is_left_alone(capsys):
    run("train", *QUICK, "--out", "mine")
    with open("mine/.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = refused(capsys, "train", *QUICK, "--out", "mine", "--resume", "true")
    assert "in use by another process" in message


def test_fewer_epochs_than_done_are_refused_and_the_config_stays(capsys):
    run("train", *QUICK, "--out", "run")
    message = refused(
        capsys, "train", *QUICK[:2], "--num_epochs", 1, "--out", "run", "--resume", "true"
    )
    assert "2 epochs behind it, more than num_epochs = 1" in message
    assert yaml.safe_load(Path("run/config.yaml").read_text())["num_epochs"] == 2


def test_a_guide_that_cannot_be_imported_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("broken_guides.py").write_text("class A(:")
    assert "broken_guides cannot be imported" in refused(
        capsys, "train", "--guide", "broken_guides.A"
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from evidence.experiments.cli import build_parser;"
        "build_parser().format_help();"
        "print({'torch', 'pyro', 'matplotlib', 'sklearn', 'arviz'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    output = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert output.strip() == "set()"


@pytest.mark.parametrize("command", ["train", "evaluate", "compare", "sample"])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "No description" not in text
    if command == "train":
        assert "run folder whose trained p(x | z) is kept fixed" in text
        assert "default: 0.001" in text


@pytest.mark.slow
def test_resumed_after_kill_9_the_weights_are_bit_identical():
    """Killed at three random moments of one run, and gone on with each time."""
    words = ["train", "--guide", "Planar(num_flows=3)", "--num_epochs", "25"]
    words += ["--checkpoint_every", "7", "--lr_decay", "0.99"]
    command = [sys.executable, "-m", "evidence", *words]
    options = {"env": os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}}
    options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    run(*words, "--out", "whole")
    randomness = random.Random(0)
    for start in range(3):
        resume = ["--resume", "true"] if start else []
        process = subprocess.Popen([*command, "--out", "killed", *resume], **options)
        _wait_for_a_new_checkpoint(process)
        time.sleep(randomness.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert not Path("killed/results.json").exists()
    run(*words, "--out", "killed", "--resume", "true")
    whole, killed = weights("whole"), weights("killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def _wait_for_a_new_checkpoint(process):
    def newest():
        return checkpoints.newest(Path("killed/checkpoints"))

    before = newest()
    while newest() == before:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def test_a_reader_that_has_enough_is_no_error():
    command = [sys.executable, "-m", "evidence", "guides"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_labelled_model_with_two_latents_draws_its_pictures():
    run("train", "--model", "ConditionalVAE(latent_dim=2)", "--num_epochs", 1, "--out", "run")
    assert Path("run/samples.png").exists()
