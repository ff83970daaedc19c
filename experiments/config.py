"""The options of each command. Imports nothing heavy, so that `--help` answers at once."""

import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Binarization = Literal["auto", "dynamic", "static", "threshold", "none"]
Estimator = Literal["elbo", "iw", "ais", "smc", "bridge", "bdmc"]
Start = Literal["prior", "guide"]
Dtype = Literal["auto", "float32", "float64"]
Compilation = Literal["auto", "on", "off"]
Split = Literal["auto", "test", "validation", "all"]
Launcher = Literal["none", "local", "ray"]

# The least and the most that an option may be, wherever it stands. What else must hold of them is
# said by whoever uses them. A seed is numpy's, and some are added to it.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("num_epochs", "batch_size"), (1, 10**9)),
    **dict.fromkeys(("num_particles", "max_particles"), (1, 10**8)),
    **dict.fromkeys(("num_data", "num_samples", "num_simulations", "num_draws"), (1, 10**7)),
    **dict.fromkeys(("num_chains", "num_temperatures", "num_leapfrog_steps"), (1, 10**6)),
    **dict.fromkeys(("num_warmup", "max_steps"), (1, 10**9)),
    "max_rounds": (1, 10),
    "defensive": (0, 0.99),
    "checkpoint_every": (0, 10**9),
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1000)),
    "seeds": (1, 1000),
    "jobs": (1, 10_000),
}


# Read from files; the others are bundled or simulated.
FROM_FILES = ("mnist", "fashion")
DATA_SUFFIXES = (".npy", ".npz", ".csv", ".parquet", ".safetensors")


def is_data_file(data: str) -> bool:
    """Whether `--data` names a file of one of the known kinds."""
    return data.lower().endswith(DATA_SUFFIXES)


def is_data_code(data: str) -> bool:
    """Whether `--data` names a callable, whose code is run."""
    return "." in data and not is_data_file(data)


def default_root() -> str:
    """The folder of the archives if none is named: the environment's EVIDENCE_DATA, else `data`."""
    return os.environ.get("EVIDENCE_DATA") or "data"


class Options:
    """What all options have in common: they are in their range.

    Raises:
        ValueError: one is not.
    """

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name, None)
            if value is None or least <= value <= most:
                continue
            limit = f"at least {least}" if value < least else f"at most {most:g}"
            limit = "a number" if value != value else limit  # noqa: PLR0124 (NaN)
            raise ValueError(f"expected --{name} of {limit}, got {value}")


# The options of Estimation that make one estimate another than the next, beside those of all.
ANNEALING = ("start", "num_chains", "num_temperatures", "num_leapfrog_steps")
OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "ais": ANNEALING,
    "bdmc": ANNEALING,
    "smc": ("start", "num_chains", "num_leapfrog_steps"),
    "bridge": ("num_samples", "num_warmup"),
}


@dataclass(kw_only=True)
class Experiment(Options):
    """What is modelled, on which data, and how it is trained.

    Args:
        model: model with its options, such as VAE or "VAE(latent_dim=50, hidden_dims=[200, 200])";
            or any Pyro program, class or factory of your own, such as pines.py:density.
        data: digits (bundled), mnist, fashion (by torchvision), toy (simulated), simulated
            (drawn from the model itself) or none (for densities without data); or a file of your
            own (.npy, .npz, .csv, .parquet, .safetensors), or a callable, such as my_data.py:load,
            whose columns go to the model's parameters of the same names.
        split: data to evaluate on; "validation" holds out training data and leaves test data alone,
            "all" holds out none; auto is test or, for a model with latents that the data share,
            all.
        data_root: folder with the archives of mnist or fashion [default: $EVIDENCE_DATA or data].
        binarize: how grey pixels become binary; auto is dynamic for Bernoulli decoders, else none
            (then pixels are dequantized).
        num_epochs: passes over the training data [default: as many as it takes until the ELBO rises
            no more; or, where data share latents, until averages of the iterates gain no more].
        max_steps: the most training steps until then.
        batch_size: data per step [default: 128; up to 4096 where iterates are averaged].
        lr: learning rate [default: 0.001; 0.03, which falls, where iterates are averaged].
        lr_decay: factor on the learning rate after each epoch.
        optimizer: torch optimizer with its options, such as "AdamW(weight_decay=0.01)".
        scheduler: torch learning-rate scheduler, stepped after each epoch, such as
            "CosineAnnealingLR(T_max=100)" [default: none].
        held_out: share of the training data that is held out to decide when to stop, and which
            epoch's weights are kept.
        objective: Pyro's or ours, such as TraceMeanField_ELBO, IWAE, DReG or STL.
        compile: whether training is compiled by Torch's Inductor; auto is where it can be, if
            num_epochs makes it long enough to pay, and otherwise from a recorded graph.
        kl_warmup_epochs: epochs over which the weight of the KL term rises from 0 to 1.
        likelihood_warmup_epochs: epochs over which the weight of the log-likelihood rises from 0
            to 1, for a posterior with several modes.
        clip_norm: largest joint gradient norm [default: no clipping].
        seed: decides every random choice of the training: first weights, order of the data, noise.
        data_seed: decides the data: the binarized or dequantized pixels to evaluate on, simulated
            data, and which of them num_data takes. Runs of one data_seed can be compared.
        device: auto, cpu, cuda, cuda:1, ...; auto is cuda if there is any, and cpu for a model of
            your own.
        checkpoint_every: training steps between checkpoints.
        tensorboard: write a TensorBoard log into the run folder.
    """

    model: str = "VAE"
    data: str = "digits"
    split: Split = "auto"
    data_root: str | None = None
    binarize: Binarization = "auto"
    num_epochs: int | None = None
    max_steps: int = 100_000
    batch_size: int | None = None
    lr: float | None = None
    lr_decay: float = 1.0
    optimizer: str = "Adam"
    scheduler: str | None = None
    held_out: float = 0.0
    objective: str = "Trace_ELBO"
    compile: Compilation = "auto"
    kl_warmup_epochs: float = 0.0
    likelihood_warmup_epochs: float = 0.0
    clip_norm: float | None = None
    seed: int = 0
    data_seed: int = 0
    device: str = "auto"
    checkpoint_every: int = 500
    tensorboard: bool = False


@dataclass(kw_only=True)
class Train(Experiment):
    """Train a model and a guide.

    Args:
        guide: guide with its options, such as MeanField or "Planar(num_flows=16)"; one of Pyro's,
            such as "AutoNormal(init_scale=0.01)"; or your own, such as pines.py:guide.
        frozen_model: run folder whose trained p(x | z) is kept fixed; only the guide is fitted.
        out: run folder [default: runs/MODEL-GUIDE-DATA].
        resume: go on from the newest checkpoint of the run folder.
    """

    guide: str = "MeanField"
    frozen_model: str | None = None
    out: str | None = None
    resume: bool = False


@dataclass(kw_only=True)
class Estimation(Options):
    """How ELBO and evidence are estimated.

    Args:
        estimator: elbo alone; iw, importance weighting with the guide; beside it ais, annealed
            importance sampling, smc, sequential Monte Carlo, or bridge, between the guide and draws
            by NUTS; or bdmc, annealing from below and from above on data simulated from the model,
            which says how far ais is off on such data.
        num_particles: importance weights per datum.
        target_se: add importance weights until the Monte Carlo SE of every datum is this small, in
            nats [default: num_particles for all].
        max_particles: the most that one datum gets with target_se.
        defensive: the share of importance weights, such as 0.2, that come from the guide stretched
            and from the prior, where the guide may be too narrow.
        num_data: evaluate on so many data, chosen by the data_seed; with bdmc, simulate so many
            [default: all; 100 with bdmc].
        start: where ais, bdmc and smc begin, at the prior or at the guide.
        num_chains: annealing chains per datum [default: 16; 100 where data share latents]; of smc,
            chains of each of its 32 islands [default: 2; up to 32 where data share latents].
        num_temperatures: steps of annealing; smc finds its own.
        num_leapfrog_steps: gradients per step of ais, bdmc and smc, at the most.
        num_samples: draws of each of the four chains of bridge.
        num_warmup: steps before them, which are dropped.
        dtype: what evidence is computed in; auto is float64 for models without networks, where that
            costs little, else float32.
    """

    estimator: Estimator = "iw"
    num_particles: int = 5000
    target_se: float | None = None
    max_particles: int = 100_000
    defensive: float = 0.0
    num_data: int | None = None
    start: Start = "prior"
    num_chains: int | None = None
    num_temperatures: int = 1000
    num_leapfrog_steps: int = 10
    num_samples: int = 1000
    num_warmup: int = 500
    dtype: Dtype = "auto"


@dataclass(kw_only=True)
class Launching(Options):
    """Where the parts of a command run that need nothing of each other. The numbers are the same.

    Args:
        launcher: none, one after the other in this process; local, in processes of this machine;
            or ray, as tasks of Ray (`pip install 'evidence[ray]'`). These have one thread each,
            unless the environment's OMP_NUM_THREADS asks for more; what dies is started again and
            goes on from its checkpoint.
        jobs: so many at once [default: as many as there are cores].
        ray_address: of a Ray cluster whose nodes share this file system, such as auto or
            10.0.0.1:6379 [default: one on this machine, for as long as the command runs].
    """

    launcher: Launcher = "none"
    jobs: int | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs is not None and self.launcher == "none":
            raise ValueError(f"--jobs {self.jobs} needs --launcher local, or ray")
        if self.ray_address is not None and self.launcher != "ray":
            raise ValueError(f"--ray_address {self.ray_address} needs --launcher ray")


@dataclass(kw_only=True)
class Compare(Experiment, Estimation, Launching):
    """Train several guides and compare their ELBO and evidence; goes on if it was interrupted.

    With the estimator bdmc the data are annealed too, as with ais.

    Args:
        guides: guides with their options, such as MeanField FullRank "Planar(num_flows=16)", see
            train.
        models: compare these models by their marginal likelihoods instead, without guides, as
            `evidence marginal` does with the same --data, --target_se, --seed and --out.
        decoder: joint, every guide with a model of its own; or frozen, the model is trained once,
            with the first guide, then every guide is fitted anew to that same p(x | z).
        reference: draw from the posterior by NUTS too, for a table and a picture of the guides
            beside it; of guides of one model.
        seeds: fit everything so often, with the seeds seed, seed + 1, ... Their spread is the third
            error bar, and verdicts then hold for other fits too; more can be added later.
        out: run folder [default: runs/compare-MODEL-DATA].
    """

    guides: list[str] = field(default_factory=lambda: ["MeanField", "FullRank", "Planar"])
    models: list[str] = field(default_factory=list)
    reference: bool = False
    decoder: Literal["joint", "frozen"] = "joint"
    seeds: int = 1
    out: str | None = None


@dataclass(kw_only=True)
class Reading(Options):
    """What the commands that read trained runs have in common.

    Args:
        data_root: folder with the archives of mnist or fashion [default: $EVIDENCE_DATA or data].
        device: auto, cpu, cuda, cuda:1, ...
        trust: use the run's classes from elsewhere, which runs their code, and its data.
    """

    data_root: str | None = None
    device: str = "auto"
    trust: bool = False


@dataclass
class Evaluate(Estimation, Reading):
    """Estimate the ELBO and the evidence of a trained run, in one of several ways.

    Args:
        run: run folder.
    """

    run: str


@dataclass
class Gaps(Reading):
    """Say why the ELBO of trained runs falls short of the evidence: the family, or the encoder.

    Args:
        runs: run folders.
        num_data: so many data, chosen by the runs' data_seed.
        num_particles: draws per datum for every term.
        max_steps: the most steps of the search for each datum's best member of the family.
    """

    runs: list[str] = field(default_factory=list)
    num_data: int = 100
    num_particles: int = 1000
    max_steps: int = 10_000


@dataclass
class Calibrate(Reading):
    """Check a guide's posteriors by simulation-based calibration: ranks, bands, coverage.

    Writes calibration.json and calibration.png into the run folder.

    Args:
        run: run folder.
        num_simulations: data simulated from the model, each with the latents that made it.
        num_draws: draws from the guide for each of them.
        seed: decides every random choice.
    """

    run: str
    num_simulations: int = 1000
    num_draws: int = 99
    seed: int = 0


@dataclass
class Reference(Reading):
    """Compare the guides of runs that share one model with NUTS, on a few chosen data.

    Writes reference.json and reference.png.

    Args:
        runs: run folders.
        rows: rows of the evaluation data, such as 0 1 2.
        out: folder to write into [default: the first run's].
        num_samples: draws of every chain.
        num_warmup: steps of every chain that adapt it, and are dropped.
        num_chains: chains, run one after the other.
        target_accept_prob: nearer to 1 for smaller steps, against divergences.
        classifier: what is to tell the guide's draws from those of NUTS.
        seed: decides every random choice.
    """

    runs: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=lambda: [0])
    out: str | None = None
    num_samples: int = 1000
    num_warmup: int = 500
    num_chains: int = 4
    target_accept_prob: float = 0.8
    classifier: Literal["knn", "logistic", "mlp"] = "knn"
    seed: int = 0


@dataclass
class Export(Reading):
    """Save draws, predictions and weights of runs that share one model as netCDF, for ArviZ.

    A file is written in full or not at all; one that is there is kept, unless told otherwise.

    Args:
        runs: run folders.
        out: the file [default: posterior.nc in the first run's folder].
        overwrite: replace the file if there is one.
        num_draws: draws per chain and datum.
        num_chains: chains; draws of a guide are independent, and have chains for ArviZ's sake.
        num_data: so many evaluation data, chosen by the runs' data_seed; all that share latents.
        prior: draw from the prior too.
        predictive: draw data too, which take the most room.
        seed: decides every draw.
    """

    runs: list[str] = field(default_factory=list)
    out: str | None = None
    overwrite: bool = False
    num_draws: int = 250
    num_chains: int = 4
    num_data: int = 20
    prior: bool = True
    predictive: bool = True
    seed: int = 0


@dataclass
class Check(Options):
    """Check that a model and a guide fit each other and the data, before anything is trained.

    Args:
        model: model with its options.
        guide: guide with its options.
        data: see train.
        binarize: see train.
        num_data: so many data.
        data_root: folder with the archives of mnist or fashion [default: $EVIDENCE_DATA or data].
        seed: decides every random choice.
    """

    model: str
    guide: str
    data: str = "digits"
    binarize: Binarization = "auto"
    num_data: int = 16
    data_root: str | None = None
    seed: int = 0


@dataclass
class Sample(Reading):
    """Simulate data from the model of a trained run: a picture, and a file of tensors.

    Args:
        run: run folder.
        num_samples: number of data; of a model of your own, of data sets like the run's.
        seed: decides the draws.
    """

    run: str
    num_samples: int = 100
    seed: int = 0


@dataclass
class Marginal(Launching):
    """Find the marginal likelihood of models, their Bayes factors, and what the priors have in it.

    Every number is confirmed by an estimate of another kind, or not claimed. Writes results.json,
    table.md and marginal.png.

    Args:
        models: of the same data, such as pines.py:density pines.py:adjusted; see train.
        data: see train.
        target_se: the Monte Carlo standard error wanted, in nats of all data.
        max_rounds: the number of particles may grow fourfold so often, less one.
        nested: be confirmed by nested sampling too, which takes long (`pip install
            'evidence[nested]'`).
        prior_scale: sites whose priors are stretched, and by which factors, such as tau=0.5,1,2.
        seed: decides every random choice.
        data_root: folder with the archives of mnist or fashion [default: $EVIDENCE_DATA or data].
        out: folder to write into [default: runs/marginal-DATA].
    """

    models: list[str] = field(default_factory=list)
    data: str = "none"
    target_se: float = 0.05
    max_rounds: int = 3
    nested: bool = False
    prior_scale: list[str] = field(default_factory=list)
    seed: int = 0
    data_root: str | None = None
    out: str | None = None


@dataclass
class Bench(Launching):
    """Try estimators on problems whose evidence is known: is the number right, and is its ± true?

    Writes bench.json, bench.md and bench.png; trials that are done already are not done again.

    Args:
        estimators: built-in ones (auto, smc, bridge, ais; nested, with the extra of this name), or
            your own, such as my.py:estimator, called as estimator(model, data, seed) for an
            Evidence.
        guides: guides that are fitted anew for every seed and weigh, such as FullRank.
        problems: their names [default: all].
        seeds: so many runs of each estimator on each problem.
        seed: the first seed.
        out: folder to write into [default: runs/bench].
    """

    estimators: list[str] = field(default_factory=list)
    guides: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seeds: int = 10
    seed: int = 0
    out: str = "runs/bench"


@dataclass
class Guides:
    """List the guides: name, what it is, options with their defaults, source."""


@dataclass
class Models:
    """List the models: name, what it is, options with their defaults, source."""


# What may differ between a run and its resumption. The model of a frozen run may have moved; that
# it is the same is told by its weights.
_ANYWHERE = {"data_root", "out", "device", "tensorboard", "checkpoint_every"}
_MAY_DIFFER = {
    "Train": _ANYWHERE | {"num_epochs", "max_steps", "resume", "frozen_model"},
    "Compare": _ANYWHERE
    | {"guides", "models", "seeds", "max_steps", "reference"}
    | {option.name for option in (*fields(Estimation), *fields(Launching))},
}


def differences(command: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The options that make two configurations different runs of a command ("Train", "Compare")."""
    names = [name for name in {**theirs, **ours} if name not in _MAY_DIFFER[command]]
    return [
        f"{name} is {_short(ours.get(name))} here and {_short(theirs.get(name))} there"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def _short(value: Any) -> str:
    text = "the default" if value is None else str(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
