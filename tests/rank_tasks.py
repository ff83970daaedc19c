"""One of several processes that train a pair together, as a launcher's task."""

import warnings

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from evidence import guides
from evidence.inference import Ranks, fit
from evidence.inference.training.ranks import ALONE
from evidence.models import VAE


def regression(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0 * y, 1.0))
        pyro.sample("y", dist.Normal(x @ w + u, 0.5), obs=y)


def regression_guide(x, y):
    loc = pyro.param("loc", lambda: torch.zeros(3, dtype=torch.float64))
    scale = pyro.param("scale", lambda: torch.ones(3, dtype=torch.float64),
                       constraint=dist.constraints.positive)  # fmt: skip
    slope = pyro.param("slope", lambda: torch.zeros((), dtype=torch.float64))
    w = pyro.sample("w", dist.Normal(loc, scale).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(slope * (y - x @ w), 0.7))


class Normed(guides.MeanField):
    """Whose data see each other."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.encoder = nn.Sequential(nn.BatchNorm1d(12), self.encoder)


class Dropped(guides.MeanField):
    """Whose encoder draws outside of every site."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.encoder = nn.Sequential(nn.Dropout(0.5), self.encoder)


def pair_of(name):
    """A pair in float64, its data, and the transform of its minibatches."""
    pyro.set_rng_seed(0)
    if name == "regression":
        x = torch.randn(50, 3, dtype=torch.float64)
        return regression, regression_guide, (x, x.sum(1)), None
    family = {"Normed": Normed, "Dropped": Dropped}.get(name) or getattr(guides, name)
    pair = VAE(12, 4, hidden_dims=[16]).double(), family(4, 12, hidden_dims=[16]).double()
    return *pair, torch.rand(80, 12, dtype=torch.float64), torch.bernoulli


def trained(name, batch_size, ranks=ALONE):
    """Losses and parameters after 100 steps."""
    model, guide, data, transform = pair_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gradients that are noise
        history = fit(model, guide, data, num_steps=100, batch_size=batch_size, lr=0.01, seed=3,
                      transform=transform, compile=False, progress=False, ranks=ranks)  # fmt: skip
    modules = [m for m in (model, guide) if isinstance(m, nn.Module)]
    found = dict(pyro.get_param_store().items()) if not modules else {}
    found |= {f"{i}.{n}": p for i, m in enumerate(modules) for n, p in m.named_parameters()}
    losses = [record.train_loss for record in history.epochs]
    return losses, {n: p.detach().numpy() for n, p in found.items()}


def trained_with_others(rank, size, place, name, batch_size):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{place}", rank=rank, world_size=size
    )
    try:
        return trained(name, batch_size, Ranks.of_torch())
    finally:
        torch.distributed.destroy_process_group()
