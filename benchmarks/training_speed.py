"""Training speed of `fit` beside two peers, alternated in one process; medians and ratios.

The seminar's model, 784-600-6-600-(784 × 2) with ELU units and a Gaussian decoder, batch 128,
float32, one ELBO draw per datum, on made-up pixels:

- by hand: a plain PyTorch loop, same nets, floor on σ, closed-form KL, fused Adam, data in
  memory: the least that this model costs;
- tutorial: Pyro's VAE tutorial's way, `pyro.module`, `SVI`, `pyro.optim.Adam` and a `DataLoader`;
- fit: ours; it multiplies matrices with oneDNN where that is as exact, so also without it.

    python benchmarks/training_speed.py [rounds]
"""

import math
import statistics
import sys
import time
import warnings

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from evidence.guides import MeanField
from evidence.inference import fit
from evidence.inference.programs import precision
from evidence.inference.programs.precision import medium_is_exact
from evidence.models import VAE

NUM_DATA, BATCH, DATA_DIM, LATENT_DIM, HIDDEN = 12_800, 128, 784, 6, 600
EPOCHS = 2  # per turn: `fit` is called for many epochs, not for one
FLOOR = math.log(0.01)


class ByHand(nn.Module):
    """The model and its loss, written out."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(DATA_DIM, HIDDEN), nn.ELU(), nn.Linear(HIDDEN, 2 * LATENT_DIM)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT_DIM, HIDDEN), nn.ELU(), nn.Linear(HIDDEN, 2 * DATA_DIM)
        )

    def forward(self, x):
        mu, logsigma = self.encoder(x).chunk(2, -1)
        z = mu + logsigma.exp() * torch.randn_like(mu)
        loc, raw = self.decoder(z).chunk(2, -1)
        log_scale = FLOOR + F.softplus(raw - FLOOR)
        squared = ((x - loc) / log_scale.exp()) ** 2
        log_p = (-0.5 * squared - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)
        kl = 0.5 * (mu**2 + (2 * logsigma).exp() - 2 * logsigma - 1).sum(-1)
        return (kl - log_p).mean()


class Tutorial(nn.Module):
    """The same nets the way of Pyro's tutorial."""

    def __init__(self):
        super().__init__()
        net = ByHand()
        self.encoder, self.decoder = net.encoder, net.decoder

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT_DIM), 1.0).to_event(1))
            loc, raw = self.decoder(z).chunk(2, -1)
            scale = (FLOOR + F.softplus(raw - FLOOR)).exp()
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            mu, logsigma = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mu, logsigma.exp()).to_event(1))


def make_by_hand(x):
    net = ByHand()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def epoch():
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(BATCH):
                loss = net(x[rows])
                adam.zero_grad()
                loss.backward()
                adam.step()
                loss.item()

    return epoch


def make_tutorial(x):
    pyro.clear_param_store()
    net = Tutorial()
    svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    loader = DataLoader(TensorDataset(x), batch_size=BATCH, shuffle=True)

    def epoch():
        for _ in range(EPOCHS):
            for (batch,) in loader:
                svi.step(batch)

    return epoch


def make_fit(x):
    model = VAE(DATA_DIM, LATENT_DIM, hidden_dims=(HIDDEN,), likelihood="gaussian")
    guide = MeanField(LATENT_DIM, DATA_DIM, hidden_dims=(HIDDEN,))

    def epoch():
        fit(model, guide, x, num_epochs=EPOCHS, batch_size=BATCH, progress=False)

    return epoch


def make_fit_default_matmul(x):
    epoch = make_fit(x)

    def with_default_matmul():
        precision.medium_is_exact = lambda: False
        epoch()
        precision.medium_is_exact = medium_is_exact

    return with_default_matmul


def main(rounds):
    torch.manual_seed(0)
    x = torch.rand(NUM_DATA, DATA_DIM)
    ways = {
        "by hand": make_by_hand(x),
        "tutorial": make_tutorial(x),
        "fit": make_fit(x),
        "fit, default matmul": make_fit_default_matmul(x),
    }
    images_per_second = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, epoch in ways.items():
            started = time.perf_counter()
            epoch()
            if number > 0:  # the first round warms up
                seconds = time.perf_counter() - started
                images_per_second[name].append(EPOCHS * NUM_DATA / seconds)
    medians = {name: statistics.median(values) for name, values in images_per_second.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds")
    for name, value in medians.items():
        spread = f"{min(images_per_second[name]):,.0f} to {max(images_per_second[name]):,.0f}"
        print(f"{name:20s} {value:10,.0f} images/s   ({spread})")
    for ours in ("fit", "fit, default matmul"):
        for peer in ("by hand", "tutorial"):
            print(f"{ours} / {peer}: {medians[ours] / medians[peer]:.2f}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
