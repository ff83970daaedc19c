"""The VAE and its weights written out in PyTorch: the least that they cost there."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

FLOOR = math.log(0.01)


class VAEByHand(nn.Module):
    """Encoder, decoder and the negative ELBO, one draw per datum, the KL in closed form."""

    def __init__(self, data_dim, latent_dim, hidden_dims, likelihood):
        super().__init__()
        self.likelihood = likelihood
        outputs = data_dim * (2 if likelihood == "gaussian" else 1)
        self.encoder = mlp(data_dim, hidden_dims[::-1], 2 * latent_dim)
        self.decoder = mlp(latent_dim, hidden_dims, outputs)

    def log_likelihood(self, x, z):
        out = self.decoder(z)
        if self.likelihood == "bernoulli":
            return -F.binary_cross_entropy_with_logits(out, x, reduction="none").sum(-1)
        loc, raw = out.chunk(2, -1)
        log_scale = FLOOR + F.softplus(raw - FLOOR)
        squared = ((x - loc) / log_scale.exp()) ** 2
        return (-0.5 * squared - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

    def forward(self, x, noise):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 2 * log_scale - 1).sum(-1)
        return (kl - self.log_likelihood(x, loc + log_scale.exp() * noise)).mean()

    @torch.no_grad()
    def log_weights(self, x, num_particles):
        """`[S, B]`, one datum after another, all of its particles at once."""
        columns = []
        for datum in x:
            loc, log_scale = self.encoder(datum).chunk(2, -1)
            noise = torch.randn(num_particles, len(loc))
            z = loc + log_scale.exp() * noise
            log_ratio = (-0.5 * z**2 + 0.5 * noise**2 + log_scale).sum(-1)
            columns.append(self.log_likelihood(datum.expand(num_particles, -1), z) + log_ratio)
        return torch.stack(columns, 1)


def mlp(start, hidden, end):
    sizes = [start, *hidden, end]
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ELU()]
    return nn.Sequential(*layers[:-1])
