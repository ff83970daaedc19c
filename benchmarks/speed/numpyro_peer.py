"""The same in NumPyro, its fastest way: steps in `lax.scan`, weights in `lax.map`, all jitted."""

import math
import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from benchmarks.speed.alternation import Turn

FLOOR = math.log(0.01)


def layers_of(key, sizes):
    keys = jax.random.split(key, len(sizes))
    return [
        (
            jax.random.uniform(k, (i, o), minval=-1, maxval=1) / i**0.5,
            jax.random.uniform(k, (o,), minval=-1, maxval=1) / i**0.5,
        )
        for k, i, o in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]


def apply(layers, x):
    for weight, bias in layers[:-1]:
        x = jax.nn.elu(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def planar(z, parameters, latent_dim, num_flows):
    """The layers of `evidence.guides.Planar`: z after all, and the sum of the log-slopes."""
    parameters = parameters.reshape(*parameters.shape[:-1], num_flows, 1 + 2 * latent_dim)
    ladj = 0.0
    for layer in range(num_flows):
        b = parameters[..., layer, 0]
        u, w = jnp.split(parameters[..., layer, 1:], 2, -1)
        wu = (w * u).sum(-1)
        new = jnp.sqrt(1 + wu**2) - 1
        u = u + ((new - wu) / (w**2).sum(-1))[..., None] * w
        t = jnp.tanh((w * z).sum(-1) + b)
        z = z + u * t[..., None]
        ladj = ladj + jnp.log1p((1 - t**2) * (w * u).sum(-1))
    return z, ladj


class NumPyroVAE:
    def __init__(self, data_dim, latent_dim, hidden_dims, likelihood, guide="MeanField"):
        self.latent_dim, self.likelihood = latent_dim, likelihood
        self.num_flows = 8 if guide == "Planar" else 0
        outputs = 2 if likelihood == "gaussian" else 1
        encoded = 2 * latent_dim + self.num_flows * (1 + 2 * latent_dim)
        keys = jax.random.split(jax.random.PRNGKey(0))
        self.encoder = layers_of(keys[0], (data_dim, *hidden_dims[::-1], encoded))
        last, bias = self.encoder[-1]
        self.encoder[-1] = last.at[:, latent_dim:].multiply(0.1), bias
        self.decoder = layers_of(keys[1], (latent_dim, *hidden_dims, outputs * data_dim))

    def pixels(self, out):
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=out).to_event(1)
        loc, raw = jnp.split(out, 2, -1)
        return dist.Normal(loc, jnp.exp(FLOOR + jax.nn.softplus(raw - FLOOR))).to_event(1)

    def model(self, x):
        decoder = numpyro.param("decoder", self.decoder)
        with numpyro.plate("data", len(x)):
            prior = dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1)
            z = numpyro.sample("z", prior)
            numpyro.sample("x", self.pixels(apply(decoder, z)), obs=x)

    def guide(self, x):
        encoder = numpyro.param("encoder", self.encoder)
        with numpyro.plate("data", len(x)):
            out = apply(encoder, x)
            loc, log_scale, rest = jnp.split(out, (self.latent_dim, 2 * self.latent_dim), -1)
            base = dist.Normal(loc, jnp.exp(log_scale)).to_event(1)
            if not self.num_flows:
                numpyro.sample("z", base)
                return
            z0 = base.sample(numpyro.prng_key())
            z, ladj = planar(z0, rest, self.latent_dim, self.num_flows)
            log_q = base.log_prob(z0) - ladj
            numpyro.sample("z", dist.Delta(z, log_density=log_q, event_dim=1))

    def trainer(self, x, batch, steps):
        """What trains for so many steps, in one jitted scan."""
        x = jnp.asarray(x.numpy())
        svi = SVI(self.model, self.guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
        state = svi.init(jax.random.PRNGKey(0), x[:batch])

        @jax.jit
        def train(state, key):
            per_epoch = len(x) // batch
            epochs = -(-steps // per_epoch)
            keys = jax.random.split(key, epochs)
            rows = jax.vmap(lambda k: jax.random.permutation(k, len(x)))(keys)
            rows = rows[:, : per_epoch * batch].reshape(-1, batch)[:steps]

            def step(state, rows):
                state, loss = svi.update(state, x[rows])
                return state, loss / batch

            return jax.lax.scan(step, state, rows)

        number = 0

        def turn():
            nonlocal state, number
            number += 1
            state, losses = train(state, jax.random.PRNGKey(number))
            return Turn(steps * batch, float(losses[-steps // 4 :].mean()))

        return turn

    def weigher(self, x, num_particles):
        """Log-mean weights of so many particles for each datum."""
        x = jnp.asarray(x.numpy())

        def log_px(datum, key):
            loc, log_scale = jnp.split(apply(self.encoder, datum), 2, -1)
            noise = jax.random.normal(key, (num_particles, self.latent_dim))
            z = loc + jnp.exp(log_scale) * noise
            prior = dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1)
            log_q = dist.Normal(loc, jnp.exp(log_scale)).to_event(1).log_prob(z)
            log_w = self.pixels(apply(self.decoder, z)).log_prob(datum) + prior.log_prob(z) - log_q
            return jax.scipy.special.logsumexp(log_w) - math.log(num_particles)

        run = jax.jit(lambda x, keys: jax.lax.map(lambda pair: log_px(*pair), (x, keys)))

        def turn():
            found = run(x, jax.random.split(jax.random.PRNGKey(0), len(x)))
            return Turn(len(x) * num_particles, -float(found.mean()))

        return turn


def logistic_trainer(features, labels, steps):
    """SVI of a logistic regression with independent normals, one draw per step."""
    features, labels = jnp.asarray(features.numpy()), jnp.asarray(labels.numpy())

    def model(features, labels):
        scale = jnp.ones(features.shape[1])
        weights = numpyro.sample("weights", dist.Normal(0.0, scale).to_event(1))
        with numpyro.plate("data", len(features)):
            numpyro.sample("y", dist.Bernoulli(logits=features @ weights), obs=labels)

    svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(0.01), Trace_ELBO())
    state = svi.init(jax.random.PRNGKey(0), features, labels)

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda s, _: svi.update(s, features, labels), state, length=steps)

    def turn():
        nonlocal state
        state, losses = train(state)
        return Turn(steps, float(losses[-steps // 4 :].mean()) / len(labels))

    return turn
