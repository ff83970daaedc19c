"""Training steps and importance weights on an accelerator, beside the CPU of the same machine.

    .venv/bin/python benchmarks/gpu.py [--device cuda] [--steps 200]

First log p(x, z), log q(z | x) and the gradients of their difference are compared at the same z in
float64: the speed of another number means nothing. Then `fit` and `log_weights` are timed on each
device. A GPU takes a step of small kernels no faster than they can be launched: the last column is
the time of a step over that of so many launches of a kernel that does nothing else. Where there is
no accelerator, the CPU alone is measured. Minutes.
"""

import argparse
import copy
import time

import torch
from pyro import poutine
from tabulate import tabulate
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from evidence.experiments.setup.catalogue import Spec, build_guide
from evidence.guides import AbstractPosterior
from evidence.inference import fit, log_weights
from evidence.models import VAE

GUIDES = ("MeanField", "Planar", "IAF")
SIZES = {"VAE 6–600": (6, (600,), "gaussian"), "VAE 50–200–200": (50, (200, 200), "bernoulli")}
BATCH, NUM_DATA, PARTICLES, LAUNCHES = 128, 12_800, 5_000, 1_000

Pair = tuple[VAE, AbstractPosterior]


def main() -> None:
    """Check, measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    devices = dict.fromkeys(("cpu", options.device))
    torch.manual_seed(0)
    x = torch.rand(NUM_DATA, 784).bernoulli()
    checks, rows = [], []
    for size, (latent_dim, hidden_dims, likelihood) in SIZES.items():
        for name in GUIDES:
            model = VAE(784, latent_dim, hidden_dims=hidden_dims, likelihood=likelihood)
            guide, _ = build_guide(Spec.parse(name), model, x[:2])
            if options.device != "cpu":
                checks.append((size, name, f"{apart((model, guide), x, options.device):.1e}"))
            for device in devices:
                pair = _on((model, guide), device)
                rows.append((size, name, device, *_speeds(pair, x.to(device), options.steps)))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads of the CPU")
    if checks:
        print(torch.cuda.get_device_name(options.device))
        print(_table(checks, ("model", "guide", "relative difference from the CPU")), "\n")
    else:
        print("no accelerator: the CPU alone\n")
    print(_table(rows, ("model", "guide", "device", "steps/s", "weights/s", "step / launches")))


def apart(pair: Pair, x: Tensor, device: str) -> float:
    """The largest relative difference of terms and gradients between CPU and device, in float64."""
    x = x[:BATCH].double()
    ours, theirs = _on(pair, "cpu", torch.float64), _on(pair, device, torch.float64)
    with torch.no_grad():
        z = poutine.trace(ours[1]).get_trace(x).nodes["z"]["value"]
    pairs = zip(_terms(ours, x, z), _terms(theirs, x.to(device), z.to(device)), strict=True)
    return max(((a - b.cpu()).norm() / a.norm().clamp(min=1e-300)).item() for a, b in pairs)


def _terms(pair: Pair, x: Tensor, z: Tensor) -> list[Tensor]:
    """Log p(x, z) and log q(z | x), summed over the data, and what the ELBO has of gradients."""
    model, guide = pair
    log_p, log_q = (
        poutine.trace(poutine.condition(program, {"z": z})).get_trace(x).log_prob_sum()
        for program in (model, guide)
    )
    parameters = [*model.parameters(), *guide.parameters()]
    return [log_p.detach(), log_q.detach(), *torch.autograd.grad(log_p - log_q, parameters)]


def _on(pair: Pair, device: str, dtype: torch.dtype = torch.float32) -> Pair:
    model, guide = (copy.deepcopy(part).to(device, dtype) for part in pair)
    return model, guide


def _speeds(pair: Pair, x: Tensor, steps: int) -> tuple[str, str, str]:
    """Steps and weights per second, and a step over the launches of its kernels."""
    options = {"batch_size": BATCH, "progress": False}
    fit(*pair, x, num_steps=40, **options)  # first steps are slow
    history = fit(*pair, x, num_steps=steps, **options)
    log_weights(*pair, x[:1], PARTICLES)
    num_data = 16
    _wait(x)
    started = time.perf_counter()
    log_weights(*pair, x[:num_data], PARTICLES)
    _wait(x)
    weights = num_data * PARTICLES / (time.perf_counter() - started)
    return f"{history.steps_per_second:,.0f}", f"{weights:,.0f}", _above_floor(pair, x, history)


def _above_floor(pair: Pair, x: Tensor, history: object) -> str:
    if x.device.type != "cuda":
        return "–"
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        fit(*pair, x, num_steps=20, batch_size=BATCH, progress=False)
    kernels = sum(e.count for e in watched.key_averages() if e.device_time_total > 0) / 20
    floor = kernels * _seconds_per_launch(x)
    return f"{1 / (history.steps_per_second * floor):.1f}"


def _seconds_per_launch(x: Tensor) -> float:
    one = x.new_zeros(1)
    one.add_(1)
    _wait(x)
    started = time.perf_counter()
    for _ in range(LAUNCHES):
        one.add_(1)
    _wait(x)
    return (time.perf_counter() - started) / LAUNCHES


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _table(rows: list[tuple[str, ...]], headers: tuple[str, ...]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
