"""The same in Pyro, the way of its tutorials."""

import functools
import warnings

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI
from pyro.infer.importance import vectorized_importance_weights

from benchmarks.speed.alternation import Turn
from benchmarks.speed.by_hand import FLOOR, VAEByHand


class TutorialVAE(VAEByHand):
    """The nets of `VAEByHand` between `pyro.module` and `pyro.sample`."""

    def model(self, x):
        pyro.module("decoder", self.decoder)
        latent_dim = self.decoder[0].in_features
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent_dim), 1.0).to_event(1))
            out = self.decoder(z)
            if self.likelihood == "bernoulli":
                pixels = dist.Bernoulli(logits=out)
            else:
                loc, raw = out.chunk(2, -1)
                pixels = dist.Normal(loc, (FLOOR + F.softplus(raw - FLOOR)).exp())
            pyro.sample("x", pixels.to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def with_own_parameters(turn):
    """The turn in a parameter store of its own: peers would share parameters of one name."""
    state = None

    @functools.wraps(turn)
    def turn_of_its_own():
        nonlocal state
        with pyro.get_param_store().scope(state) as state:
            return turn()

    return turn_of_its_own


def trainer(net, x, batch, steps, elbo):
    """`SVI` with `pyro.optim.Adam`, data in memory, a number of NaN looked for per step."""
    svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), elbo)

    @with_own_parameters
    def turn():
        losses = []
        while len(losses) < steps:
            order = torch.randperm(len(x))[: len(x) // batch * batch].split(batch)
            losses += [svi.step(x[rows]) / batch for rows in order[: steps - len(losses)]]
        last = losses[-steps // 4 :]
        return Turn(steps * batch, sum(last) / len(last))

    return turn


def weigher(net, x, num_particles):
    """`vectorized_importance_weights`, a datum after another: it sums over the data."""

    @torch.no_grad()
    def turn():
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for datum in x.split(1):
                log_w, _, _ = vectorized_importance_weights(
                    net.model, net.guide, datum, num_samples=num_particles, max_plate_nesting=1
                )
                found.append(log_w.logsumexp(0) - torch.tensor(float(num_particles)).log())
        return Turn(len(x) * num_particles, -torch.stack(found).mean().item())

    return turn


def logistic_trainer(model, guide, features, labels, steps, elbo):
    """`SVI` of a model with shared latents, one draw per step."""
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)

    @with_own_parameters
    def turn():
        losses = [svi.step(features, labels) / len(labels) for _ in range(steps)]
        last = losses[-steps // 4 :]
        return Turn(steps, sum(last) / len(last))

    return turn
