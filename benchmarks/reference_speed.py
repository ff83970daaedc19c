"""Effective draws per second: this suite's NUTS and sequential Monte Carlo, and NumPyro's NUTS.

    .venv/bin/pip install -e '.[bench]'
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.reference_speed [rounds]

Logistic regression (1,000 × 10, made data) and eight schools, non-centred; float32, one thread,
four chains of 500 + 1,000, alternated, medians over rounds and their range. Effective draws are the
fewest of a latent, bulk or tail, by ArviZ. Seconds are the CPU's, of a whole call: what compiles
does so in the first round, and is shown apart.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import statistics
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as dist
import torch
from numpyro.infer import MCMC, NUTS
from tabulate import tabulate

from evidence.inference import nuts_reference, smc
from evidence.inference.bridging.posterior_draws import reference_of
from evidence.inference.paths.reference import diagnostic
from evidence.inference.programs.data import as_data, takes

CHAINS, WARMUP, SAMPLES = 4, 500, 1000
SIGMA = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


def logistic(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(10), 2.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=(w.unsqueeze(-2) * x).sum(-1)), obs=y)


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, torch.tensor(SIGMA)), obs=y)


def numpyro_logistic(x, y):
    w = numpyro.sample("w", ndist.Normal(jnp.zeros(10), 2.0).to_event(1))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", ndist.Bernoulli(logits=x @ w), obs=y)


def numpyro_schools(y):
    mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", ndist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        z = numpyro.sample("z", ndist.Normal(0.0, 1.0))
        numpyro.sample("y", ndist.Normal(mu + tau * z, jnp.array(SIGMA)), obs=y)


def made():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 10, generator=generator)
    w = torch.randn(10, generator=generator)
    return x, torch.bernoulli(torch.sigmoid(x @ w), generator=generator)


def by_numpyro(model, data):
    """A kernel once; its second run is compiled already."""
    sampler = MCMC(
        NUTS(model), num_warmup=WARMUP, num_samples=SAMPLES, num_chains=CHAINS, progress_bar=False,
        chain_method="sequential",
    )  # fmt: skip
    arrays = [jnp.array(part.numpy()) for part in data]

    def run(seed):
        sampler.run(jax.random.PRNGKey(seed), *arrays)
        drawn = sampler.get_samples(group_by_chain=True)
        sites = [
            torch.tensor(jax.device_get(v)).reshape(CHAINS, SAMPLES, -1) for v in drawn.values()
        ]
        draws = torch.cat(sites, -1).unsqueeze(2)
        ess = [diagnostic("ess", draws), diagnostic("ess", draws, method="tail", prob=(0.05, 0.95))]
        return torch.stack(ess).min().item()

    return run


def ours(model, data, compile):
    def run(seed):
        sizes = {"num_samples": SAMPLES, "num_warmup": WARMUP, "num_chains": CHAINS}
        found = nuts_reference(model, data, compile=compile, seed=seed, **sizes)
        return found.ess.min().item()

    return run


def by_smc(model, data, compile):
    def run(seed):
        sampled = smc(model, data, compile=compile, seed=seed)
        x = as_data(data)
        return reference_of(takes(model, x), sampled, x).ess.min().item()

    return run


def ways(model, peer, data):
    tensors = data if isinstance(data, tuple) else (data,)
    return {
        "evidence, NUTS, not recorded": ours(model, data, False),
        "evidence, NUTS, recorded": ours(model, data, "auto"),
        "evidence, NUTS, compiled": ours(model, data, True),
        "evidence, SMC, recorded": by_smc(model, data, "auto"),
        "evidence, SMC, compiled": by_smc(model, data, True),
        "NumPyro, NUTS": by_numpyro(peer, tensors),
    }


def main(rounds: int = 3) -> None:
    """Measure so many rounds, after a first one, and print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name, model, peer, data in (
        ("logistic regression", logistic, numpyro_logistic, made()),
        ("eight schools", schools, numpyro_schools, EFFECTS),
    ):
        runs = ways(model, peer, data)
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in runs}
        for number in range(rounds + 1):
            for way, run in runs.items():
                start = time.process_time()
                ess = run(number)
                found[way].append((ess, time.process_time() - start))
        for way, (first, *later) in found.items():
            rates = sorted(ess / seconds for ess, seconds in later)
            rows.append([
                name, way, f"{first[1]:.1f}", f"{statistics.median(s for _, s in later):.1f}",
                f"{statistics.median(e for e, _ in later):,.0f}",
                f"{statistics.median(rates):,.0f} ({rates[0]:,.0f}–{rates[-1]:,.0f})",
            ])  # fmt: skip
    headers = ["model", "way", "s, first call", "s, later", "effective draws", "of them per second"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
