"""Every case and every peer, in turn: `python -m benchmarks.speed`; see `make bench`.

Training steps of a VAE on made-up pixels, importance weights with k̂, and a model with shared
latents. Speeds are of one thread, per second of CPU, so that a busy machine disturbs them less;
each peer's last loss stands beside its speed, and must agree.

    python -m benchmarks.speed [--cases seminar weights ...] [--rounds 5] [--out runs/bench]
"""

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from benchmarks.speed import evidence_peer, pyro_peer
from benchmarks.speed.alternation import Result, Turn, alternate, table, write
from benchmarks.speed.by_hand import VAEByHand

try:
    from benchmarks.speed import numpyro_peer
except ImportError:  # the extra `bench`
    numpyro_peer = None

SEMINAR = (784, 6, (600,), "gaussian")
DEEP = (784, 50, (200, 200), "bernoulli")
IMAGES = 12_800  # per turn


def made_up(likelihood, num_data=6_400):
    """Pixels that a few hidden causes light up, so that there is something to learn."""
    causes = torch.randn(num_data, 5) @ torch.randn(5, 784)
    if likelihood == "bernoulli":
        return (causes > 1).float()
    return causes.sigmoid() + 0.2 * torch.randn(num_data, 784)  # noise that no σ falls below


def by_hand_trainer(x, batch, steps, sizes, *, fused, compiled):
    net = VAEByHand(*sizes)
    loss_of = torch.compile(net) if compiled else net
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, fused=fused)

    def turn():
        losses = []
        while len(losses) < steps:
            for rows in torch.randperm(len(x)).split(batch)[: steps - len(losses)]:
                if len(rows) < batch:
                    continue
                loss = loss_of(x[rows], torch.randn(batch, sizes[1]))
                loss.backward()
                adam.step()
                adam.zero_grad()
                losses.append(loss.item())
        last = losses[-steps // 4 :]
        return Turn(steps * batch, sum(last) / len(last))

    return turn


def training(name, sizes, batch, guide, rounds):
    x, steps = made_up(sizes[-1]), IMAGES // batch
    ours = partial(evidence_peer.trainer, x=x, batch=batch, steps=steps)
    peers = {}
    if guide == "MeanField":
        hand = partial(by_hand_trainer, x, batch, steps, sizes)
        peers |= {
            "PyTorch by hand": partial(hand, fused=False, compiled=False),
            "PyTorch by hand, fused Adam": partial(hand, fused=True, compiled=False),
            "PyTorch by hand, torch.compile": partial(hand, fused=True, compiled=True),
            "Pyro, Trace_ELBO": lambda: pyro_peer.trainer(
                pyro_peer.TutorialVAE(*sizes), x, batch, steps, Trace_ELBO()
            ),
            "Pyro, JitTrace_ELBO": lambda: pyro_peer.trainer(
                pyro_peer.TutorialVAE(*sizes),
                x,
                batch,
                steps,
                JitTrace_ELBO(ignore_jit_warnings=True),
            ),
        }
    peers |= {
        "evidence, eager": lambda: ours(*evidence_peer.pair(*sizes, guide), compiled=False),
        "evidence, compiled": lambda: ours(*evidence_peer.pair(*sizes, guide), compiled=True),
    }
    if numpyro_peer and guide in ("MeanField", "Planar"):
        peers["NumPyro"] = lambda: numpyro_peer.NumPyroVAE(*sizes, guide).trainer(x, batch, steps)
    return alternate(name, "images", peers, rounds)


def weights(rounds, num_data=16, num_particles=5_000):
    x = made_up("bernoulli", num_data)
    net = pyro_peer.TutorialVAE(*DEEP)

    def by_hand():
        log_px = net.log_weights(x, num_particles).logsumexp(0).mean().item()
        offset = torch.tensor(float(num_particles)).log().item()
        return Turn(num_data * num_particles, offset - log_px)

    ours = partial(evidence_peer.weigher, *evidence_peer.pair(*DEEP), x, num_particles)
    peers = {
        "PyTorch by hand": lambda: by_hand,
        "Pyro": lambda: pyro_peer.weigher(net, x, num_particles),
        "evidence, eager": partial(ours, compiled=False),
        "evidence, compiled": partial(ours, compiled=True),
    }
    if numpyro_peer:
        peers["NumPyro"] = lambda: numpyro_peer.NumPyroVAE(*DEEP).weigher(x, num_particles)
    return alternate("weights, 5,000 per datum", "weights", peers, rounds)


def logistic(features, labels):
    weights = pyro.sample(
        "weights", dist.Normal(features.new_zeros(features.shape[1]), 1.0).to_event(1)
    )
    with pyro.plate("data", len(features)):
        pyro.sample("y", dist.Bernoulli(logits=features @ weights), obs=labels)


def shared(rounds, steps=400):
    features = torch.randn(1_000, 10)
    labels = torch.bernoulli((features @ torch.randn(10)).sigmoid())
    data = features, labels
    by_pyro = partial(pyro_peer.logistic_trainer, logistic, AutoNormal(logistic), *data, steps)
    ours = partial(evidence_peer.logistic_trainer, logistic, AutoNormal(logistic), data, steps)
    peers = {
        "Pyro, Trace_ELBO": lambda: by_pyro(Trace_ELBO()),
        "Pyro, JitTrace_ELBO": lambda: by_pyro(JitTrace_ELBO(ignore_jit_warnings=True)),
        "evidence, eager": partial(ours, compiled=False),
        "evidence, compiled": partial(ours, compiled=True),
    }
    if numpyro_peer:
        peers["NumPyro"] = lambda: numpyro_peer.logistic_trainer(*data, steps)
    return alternate("logistic regression, 1,000 × 10", "steps", peers, rounds)


CASES = {
    "seminar": partial(training, "VAE 6–600, batch 128", SEMINAR, 128, "MeanField"),
    **{
        f"{guide}-{batch}".lower(): partial(
            training, f"VAE 50–200–200, batch {batch}, {guide}", DEEP, batch, guide
        )
        for batch in (20, 100, 512)
        for guide in ("MeanField", "Planar", "IAF")
    },
    "weights": weights,
    "shared": shared,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results: list[Result] = []
    for name in options.cases:
        torch.manual_seed(0)
        results += CASES[name](options.rounds)
        write(results, options.out / "speed.json")
        print(table([r for r in results if r.case == results[-1].case]), "\n", flush=True)
    text = f"torch {torch.__version__}, one thread, {options.rounds} rounds, seconds of CPU"
    (options.out / "speed.md").write_text(f"{text}\n\n{table(results)}\n")


if __name__ == "__main__":
    sys.exit(main())
