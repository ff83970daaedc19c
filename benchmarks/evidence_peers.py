"""Marginal likelihoods beside peers: dynesty's nested sampling, and R's bridgesampling.

Five problems of known evidence, several seeds; error and cost in evaluations of the log joint, with
or without its gradient. R's bridge is given the very posterior draws that ours is given, those of
sequential Monte Carlo, and both are charged for them. All in one run, alternating; trials that are
done are not done again.

    python benchmarks/evidence_peers.py [--seeds 5] [--out runs/evidence_peers]

Needs dynesty (`pip install 'evidence[nested]'`), and R with bridgesampling (Debian:
r-cran-bridgesampling): what is not there is left out, and said.
"""

import argparse
import json
import math
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from evidence.experiments.own.program import default_dtype
from evidence.experiments.reports.report import markdown
from evidence.experiments.setup.trials import BUILT_IN, Scorecard, Trial, trial
from evidence.inference import Evidence, annealed_evidence, bridge_evidence, nested_evidence, smc
from evidence.inference.programs.data import as_data
from evidence.models.problems import PROBLEMS

NAMES = ("pines", "eight-schools", "shells-5", "rosenbrock", "pumps")
SCRIPT = Path(__file__).with_name("bridgesampling.R")
BUDGET = 100_000  # evaluations, to which errors are brought


@cache
def draws_of(name, seed):
    """Posterior draws by site, which both bridges are given, what they cost, and the seconds."""
    problem, started = PROBLEMS[name], time.perf_counter()
    found = smc(problem.model, problem.arguments, seed=1000 + seed)
    return found.draws, found.num_evaluations, time.perf_counter() - started


def our_bridge(problem, seed):
    draws, spent, _ = draws_of(problem.name, seed)
    found = bridge_evidence(problem.model, None, problem.arguments, draws=draws, seed=seed)
    return replace(found, num_evaluations=spent + len(next(iter(draws.values()))))


def their_bridge(problem, seed):
    """R's, as a record: it says nothing against itself, whatever the draws are."""
    draws, spent, _ = draws_of(problem.name, seed)
    columns = {}
    for name, value in draws.items():
        entries = value.reshape(len(value), -1).mT
        columns |= {f"{name}{n}" if len(entries) > 1 else name: v for n, v in enumerate(entries)}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("draws.csv", "data.csv")]
        observed = {f"data{n}": column for n, column in enumerate(problem.data)}
        for path, table in zip(paths, (columns, observed), strict=True):
            rows = np.column_stack([c.double().numpy() for c in table.values()] or [[]])
            np.savetxt(path, rows, "%.17g", ",", header=",".join(table), comments="")
        words = ["Rscript", SCRIPT, problem.name, *paths, seed]
        said = subprocess.run([*map(str, words)], check=True, capture_output=True, text=True)
    log_ml, se, _ = map(float, said.stdout.split())
    unknown, count = torch.tensor([math.nan]), len(next(iter(draws.values())))
    return Evidence(
        "bridge",
        count,
        torch.tensor([log_ml], dtype=torch.float64),
        torch.tensor([se**2], dtype=torch.float64),
        unknown,
        unknown,
        data_set_size=len(as_data(problem.arguments)),
        num_evaluations=spent + count,  # half of the draws, and as many of the proposal
    )


def short_annealing(problem, seed):
    """About as many evaluations as sequential Monte Carlo takes."""
    return annealed_evidence(problem.model, problem.arguments, num_temperatures=300, seed=seed)


def dynesty(problem, seed):
    return nested_evidence(problem.model, as_data(problem.arguments), num_live=150, seed=seed)


def estimators():
    found = {"marginal_likelihood": BUILT_IN["auto"], "smc": BUILT_IN["smc"]}
    found |= {"bridge": our_bridge, "ais": short_annealing}
    try:
        import dynesty as package  # noqa: PLC0415

        found[f"dynesty {package.__version__}"] = dynesty
    except ImportError:
        print("without dynesty: pip install 'evidence[nested]'")
    if (
        shutil.which("Rscript") is None
        or subprocess.run(
            ["Rscript", "-e", "library(bridgesampling)"], capture_output=True, check=False
        ).returncode
    ):
        print("without R's bridgesampling: it is not installed (Debian: r-cran-bridgesampling)")
    else:
        found["R bridgesampling"] = their_bridge
    return found


def one_trial(name, label, run, seed):
    problem, seconds = PROBLEMS[name], 0.0
    if run in (our_bridge, their_bridge):
        with default_dtype(torch.float64 if problem.double else torch.float32):
            *_, seconds = draws_of(name, seed)
    found = trial(problem, label, run, seed)
    return replace(found, seconds=found.seconds + seconds)


def cards_of(trials):
    """By problem and estimator, in their orders."""
    labels = dict.fromkeys(one.estimator for one in trials)
    found = {(p, n): [t for t in trials if (t.problem, t.estimator) == (p, n)]
             for p in NAMES for n in labels}  # fmt: skip
    return {key: Scorecard(some) for key, some in found.items() if some}


def table(trials):
    rows = [
        {
            "problem": problem,
            "estimator": label,
            "error": f"{card.rmse:.3f}",
            "claimed": f"{card.claimed:.3f}",
            "evaluations": f"{card.num_evaluations:,.0f}",
            "seconds": f"{card.seconds:.0f}",
            f"error at {BUDGET:,}": f"{brought(card.rmse, card):.3f}",
            f"claimed at {BUDGET:,}": f"{brought(card.claimed, card):.3f}",
            "reliable": f"{len(card.reliable)}/{len(card.trials)}",
            "missed": str(card.silent_misses),
        }
        for (problem, label), card in cards_of(trials).items()
    ]
    return markdown(rows, left=["estimator"])


def brought(nats, card):
    """To the budget, as if errors fell with the square root of evaluations."""
    return nats * math.sqrt(card.num_evaluations / BUDGET)


def short_table(trials):
    """Error and claimed error at the budget, and seconds, in one line per problem."""
    lines = {problem: {"problem": problem} for problem in NAMES}
    for (problem, label), card in cards_of(trials).items():
        error, claimed = (brought(nats, card) for nats in (card.rmse, card.claimed))
        lines[problem][label] = f"{error:.3f} ({claimed:.3f}), {card.seconds:.0f} s"
    return markdown(list(lines.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="runs/evidence_peers")
    options = parser.parse_args()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trials.json"
    trials = [Trial(**row) for row in json.loads(path.read_text())] if path.exists() else []
    done = {(one.problem, one.estimator, one.seed) for one in trials}
    runs = estimators()
    for seed in range(options.seeds):
        for name in NAMES:
            for label, run in runs.items():
                if (name, label, seed) in done:
                    continue
                one = one_trial(name, label, run, seed)
                print(f"{name}, {label}, seed {seed}: {one.error:+.3f} ± {one.claimed:.3f}, "
                      f"{one.num_evaluations} evaluations, {one.seconds:.0f} s, "
                      f"{one.not_reliable or 'reliable'}", flush=True)  # fmt: skip
                trials.append(one)
                path.write_text(json.dumps([asdict(one) for one in trials], indent=1))
    text = f"{table(trials)}\n\n{short_table(trials)}\n"
    (folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
