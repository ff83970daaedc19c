"""Time and peak memory of annealed importance sampling on a deep latent Gaussian model.

The 784-200-200-50 Bernoulli VAE on made-up binary pixels, in float32: 16 chains for each of 100
data, 1,000 temperatures, 10 leapfrog steps, the pilot run included. Each measurement runs in a
process of its own and reads the peak resident set from the operating system. Beside it: the most
gradients that this may take, of the same log-density by hand, without Pyro.

    python benchmarks/annealing.py [num_data] [num_chains] [num_temperatures]
"""

import math
import resource
import subprocess
import sys
import time

import torch

from evidence.inference.annealing.pilot import MAX_PILOT_CHAINS, NUM_WARMUP_STEPS
from evidence.inference.estimation.annealed import anneal
from evidence.inference.programs.precision import fast_matmul
from evidence.models import VAE

LEAPFROG_STEPS = 10
PILOT_TEMPERATURES = 200


def make(num_data):
    torch.manual_seed(0)
    model = VAE(784, 50, hidden_dims=(200, 200))
    return model, torch.bernoulli(torch.full((num_data, 784), 0.2))


def by_hand(model, x, num_chains, num_temperatures):
    """The most gradients that measured and pilot run may take, of the whole batch at once."""
    model.requires_grad_(False)
    pilot = (PILOT_TEMPERATURES + NUM_WARMUP_STEPS) * min(num_chains, MAX_PILOT_CHAINS)
    num_gradients = LEAPFROG_STEPS * (num_temperatures + math.ceil(pilot / num_chains))
    z = torch.randn(num_chains, len(x), 50)
    with fast_matmul(x.device):
        for _ in range(num_gradients):
            z = z.detach().requires_grad_()
            logits = model.decoder(z)
            log_p_x = (x * logits + (-logits).sigmoid().log()).sum(-1)
            log_p = log_p_x - 0.5 * z.square().sum(-1)
            (grad,) = torch.autograd.grad(log_p.sum(), z)
            z = z + 1e-4 * grad


def ours(model, x, num_chains, num_temperatures):
    result = anneal(
        model,
        x,
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        num_leapfrog_steps=LEAPFROG_STEPS,
        num_pilot_temperatures=PILOT_TEMPERATURES,
    )
    print(f"  {result.evidence}, acceptance {result.acceptance.mean():.2f}", flush=True)


def measure(way, num_data, num_chains, num_temperatures):
    model, x = make(num_data)
    way(model, x[:2], num_chains, 2)  # imports and warm-up
    started, busy = time.perf_counter(), time.process_time()
    way(model, x, num_chains, num_temperatures)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{way.__name__:8s} {num_data:,} data × {num_chains} chains × {num_temperatures:,} "
        f"temperatures: {seconds:6.1f} s ({busy:.1f} s of CPU, {torch.get_num_threads()} "
        f"threads), peak {peak:,.0f} MiB",
        flush=True,
    )


def main(sizes):
    for way in ("ours", "by_hand"):
        subprocess.run([sys.executable, __file__, way, *map(str, sizes)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("ours", "by_hand"):
        measure(globals()[sys.argv[1]], *map(int, sys.argv[2:]))
    else:
        main([int(word) for word in sys.argv[1:]] or [100, 16, 1000])
