"""Speed and peak memory of 5,000 importance weights for each of many data, beside a peer.

The 784-200-200-50 VAE on made-up binary pixels. The peer is the same computation by hand: one datum
at a time, all particles at once, with torch's own binary cross-entropy. Each measurement runs in a
process of its own and reads the peak resident set from the operating system.

    python benchmarks/weights_memory.py [num_data] [num_particles]
"""

import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from evidence.guides import MeanField
from evidence.inference import importance_weighted_evidence
from evidence.models import VAE


def make(num_data):
    torch.manual_seed(0)
    model = VAE(784, 50, hidden_dims=(200, 200))
    guide = MeanField(50, 784, hidden_dims=(200, 200))
    return model, guide, torch.bernoulli(torch.full((num_data, 784), 0.2))


@torch.no_grad()
def by_hand(model, guide, x, num_particles):
    estimates = []
    for datum in x:
        loc, log_scale = guide.encode(datum.unsqueeze(0))
        noise = torch.randn(num_particles, loc.shape[-1])
        z = loc + log_scale.exp() * noise
        log_p_z = (-0.5 * z**2).sum(-1)
        log_q_z = (-0.5 * noise**2 - log_scale).sum(-1)
        logits = model.decoder(z)
        target = datum.expand_as(logits)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        estimates.append((log_p_z - log_q_z - cross_entropy).logsumexp(0))
    return torch.stack(estimates)


def ours(model, guide, x, num_particles):
    return importance_weighted_evidence(model, guide, x, num_particles)


def measure(way, num_data, num_particles):
    model, guide, x = make(num_data)
    way(model, guide, x[:2], num_particles)  # imports and warm-up
    started = time.perf_counter()
    way(model, guide, x, num_particles)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{way.__name__:8s} {num_data:7,} data × {num_particles:,} particles: "
        f"{num_data * num_particles / seconds:10,.0f} weights/s, peak {peak:6,.0f} MiB",
        flush=True,
    )


def main(num_data, num_particles):
    for size in (num_data // 10, num_data):
        for way in ("ours", "by_hand"):
            subprocess.run(
                [sys.executable, __file__, way, str(size), str(num_particles)], check=True
            )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("ours", "by_hand"):
        measure(globals()[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]))
    else:
        arguments = [int(word) for word in sys.argv[1:]]
        main(*(arguments or [400, 5000]))
