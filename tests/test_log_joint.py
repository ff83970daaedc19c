"""The log joint of annealing against that of Pyro, for many programs and ways of running them."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroSample
from torch.distributions import biject_to

from evidence.inference import smc_evidence
from evidence.inference.paths import hmc
from evidence.inference.paths.guide_path import path_of
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.paths.log_joint import Way
from evidence.inference.programs.data import as_data, takes
from evidence.inference.programs.unconstrained import Assignment

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double()
Y = X @ X.new_tensor([1.0, -1.0])
ZERO = X.new_tensor(0.0)


def factor():
    z = pyro.sample("z", dist.Uniform(-2 + ZERO, 2).expand([2]).to_event(1))
    pyro.factor("bowl", -z.square().sum(-1))


def masked(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        with poutine.mask(mask=y > 0):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def partly_observed(y):
    mean = pyro.sample("mean", dist.Normal(ZERO, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=y > 0)


def several_observed(x, y):
    slope, sigma = pyro.sample("slope", dist.Normal(ZERO, 1.0)), pyro.sample("sigma", half_cauchy())
    with pyro.plate("data", len(y)):
        pyro.sample("x", dist.Normal(ZERO, sigma).expand([2]).to_event(1), obs=x)
        pyro.sample("y", dist.Normal(slope * x[:, 0], sigma), obs=y)


def half_cauchy():
    return dist.HalfCauchy(ZERO + 1.0)


class Network(PyroModule):
    """A weight with a prior, inside a module."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](2, 1).double()
        for name, shape in (("weight", [1, 2]), ("bias", [1])):
            prior = dist.Normal(ZERO, 1.0).expand(shape).to_event(len(shape))
            setattr(self.layer, name, PyroSample(prior))

    def forward(self, x, y):
        mean = self.layer(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def dirichlet(x):
    shares = pyro.sample("shares", dist.Dirichlet(X.new_tensor([1.0, 2.0, 3.0])))
    scales = pyro.sample("scales", half_cauchy().expand([2]).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(2, ZERO + 1.5))
    with pyro.plate("data", len(x)):
        loc = X.new_tensor([-1.0, 0.0, 1.0])
        tril = scales.unsqueeze(-1) * factor
        mean = (shares * loc).sum(-1, keepdim=True) + x.new_zeros(2)
        pyro.sample("x", dist.MultivariateNormal(mean, scale_tril=tril), obs=x)


def plate_on_the_left(x):
    with pyro.plate("rows", len(x), dim=-3):
        top = pyro.sample("top", dist.Normal(ZERO, 1.0))
        with pyro.plate("columns", 2, dim=-1):
            pyro.sample("x", dist.Normal(top, 1.0), obs=x.unsqueeze(1))


def crossed(x):
    rows, columns = pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", 2, dim=-1)
    with rows:
        row = pyro.sample("row", dist.Normal(ZERO, 1.0))
    with columns:
        column = pyro.sample("column", dist.Gamma(ZERO + 2.0, 1.0))
    with rows, columns:
        pyro.sample("x", dist.Normal(row, column), obs=x)


def nested(x):
    with pyro.plate("rows", len(x), dim=-2):
        scale = pyro.sample("scale", dist.LogNormal(ZERO, 0.5))
        with pyro.plate("columns", 2, dim=-1):
            level = pyro.sample("level", dist.Normal(ZERO, scale))
            pyro.sample("x", dist.Normal(level, 0.5), obs=x)


def dependent_support(y):
    low = pyro.sample("low", dist.Normal(ZERO, 1.0))
    high = pyro.sample("high", dist.Uniform(low, low + 3))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(high, 1.0), obs=y)


@config_enumerate
def summed_out(y):
    share = pyro.sample("share", dist.Beta(ZERO + 2.0, 2.0))
    with pyro.plate("data", len(y)):
        which = pyro.sample("which", dist.Bernoulli(share))
        pyro.sample("y", dist.Normal(2 * which - 1, 1.0), obs=y)


def scaled(y):
    with poutine.scale(scale=3.0):
        unscaled(y)


def unscaled(y):
    mean = pyro.sample("mean", dist.Normal(ZERO, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def from_the_left(x, y):
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def as_many_chains_as_latents(y):
    """Under three chains `len(z)` is what it is alone, and `z[0]` is not."""
    z = pyro.sample("z", dist.Normal(ZERO, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z[0] * len(z), 1.0), obs=y)


PROGRAMS = {
    "factor": (factor, ()),
    "mask": (masked, (Y,)),
    "obs_mask": (partly_observed, (Y,)),
    "several observed": (several_observed, {"y": Y, "x": X}),
    "network": (Network(), (X, Y)),
    "Dirichlet and LKJ": (dirichlet, (X,)),
    "plate on the left": (plate_on_the_left, X),
    "crossed plates": (crossed, (X,)),
    "nested plates": (nested, X),
    "support that moves": (dependent_support, (Y,)),
    "scale": (scaled, (Y,)),
    "from the left": (from_the_left, (X, Y)),
    "as many chains as latents": (as_many_chains_as_latents, (Y,)),
}


def log_joint(model, path, u):
    """By Pyro, of one chain `[1, M, Z]`, and the Jacobian of each latent's own bijection."""
    with Assignment(path.packing, u, has_chains=False) as assignment:
        trace = poutine.trace(path.model).get_trace(path.x)
    values = {name: trace.nodes[name]["value"] for name in assignment.values}
    # Evidence is that of unscaled densities.
    program, args = (unscaled, Y) if model is scaled else (path.model, path.x)
    total = poutine.trace(poutine.condition(program, values)).get_trace(args).log_prob_sum()
    for name, latent in assignment.values.items():
        transform = biject_to(trace.nodes[name]["fn"].support)
        total = total + transform.log_abs_det_jacobian(latent, transform(latent)).sum()
        if name.endswith("_unobserved"):  # the prior draws of `obs_mask` what Pyro does not score
            site = trace.nodes[name]
            total = total + site["fn"].log_prob(site["value"])[~site["mask"]].sum()
    return total


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_log_joint_is_pyros_however_chains_are_run(name):
    """A way that is another number, or fails, is not the way that is taken."""
    model, data = PROGRAMS[name]
    x = as_data(data)
    with annealing_mode(takes(model, x), None, 0, X.device):
        path = path_of(takes(model, x), None, x)
        u = torch.cat([path.sample(1) for _ in range(3)])
        expected = torch.stack([log_joint(model, path, row.unsqueeze(0)) for row in u])
        assert torch.allclose(path(u).log_p_xz.sum(1), expected)
        assert not torch.allclose(path(u.flip(0)).log_p_xz.sum(1), expected)  # the twin
        for way in Way:
            try:
                found = path._terms_by(way, u).log_p_xz.sum(1)
            except Exception:
                assert path.way is not way
            else:
                assert torch.allclose(found, expected) or path.way is not way


def test_programs_from_the_left_are_not_run_under_a_plate():
    for name in ("from the left", "as many chains as latents", "network"):
        model, data = PROGRAMS[name]
        x = as_data(data)
        with annealing_mode(takes(model, x), None, 0, X.device):
            assert path_of(takes(model, x), None, x).way is not Way.PLATE


def test_discrete_latents_are_summed_out():
    """Against the sum by hand."""
    x = as_data((Y,))
    with annealing_mode(takes(summed_out, x), None, 0, X.device):
        path = path_of(takes(summed_out, x), None, x)
        u = path.sample(4)
        share = u[:, 0, 0].sigmoid().unsqueeze(1)
        by_value = [
            log_share + dist.Normal(loc, 1.0).log_prob(Y)
            for loc, log_share in ((1.0, share.log()), (-1.0, (1 - share).log()))
        ]
        expected = torch.logaddexp(*by_value).sum(1)
        assert torch.allclose(path(u).log_p_x[:, 0], expected)


@config_enumerate
def indexed():
    """What is summed out is an index into latents, which no plate of chains survives."""
    locs = pyro.sample("locs", dist.Normal(ZERO, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(Y)):
        number = pyro.sample("number", dist.Categorical(X.new_ones(2)))
        pyro.sample("y", dist.Normal(locs[number], 1.0), obs=Y)


def test_discrete_latents_are_summed_out_under_vmap():
    """Values and gradients are those of one chain after the other; see `enumeration._SafeLog`."""
    x = as_data(())
    with annealing_mode(takes(indexed, x), None, 0, X.device):
        path = path_of(takes(indexed, x), None, x)
        assert path.way is Way.VMAP
        u = path.sample(3)
        together = hmc.init(u, path)
        alone = hmc.init(u, lambda z: path._terms_by(Way.ONE_BY_ONE, z))
    assert torch.allclose(together.log_probs, alone.log_probs)
    assert torch.allclose(together.grads, alone.grads)
    assert together.grads.abs().min() > 0


def test_latents_of_another_dtype_than_the_data():
    """Beside others a scalar float32 decides the dtype of what is float64 alone."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for n in range(len(y)):
            pyro.sample(f"y_{n}", dist.Normal(mean, 1.0), obs=y[n])

    x = as_data(Y.double())
    with annealing_mode(takes(model, x), None, 0, X.device):
        path = path_of(takes(model, x), None, x)
        assert path.way is Way.PLATE


def sometimes(y, *, always=False):
    """A second latent where the first is positive; with `always`, as the error advises."""
    first = pyro.sample("first", dist.Normal(y.new_tensor(0.0), 1.0))
    if always:
        second = torch.where(first > 0, pyro.sample("second", dist.Normal(0 * y[0], 2.0)), 0.0)
    else:
        second = pyro.sample("second", dist.Normal(0 * y[0], 2.0)) if first > 0 else 0.0
    mean = (first + second).unsqueeze(-1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("seed", range(4))  # the first run has the second latent, or has not
def test_latents_that_vary_from_run_to_run_are_refused(seed):
    with pytest.raises(ValueError, match=r"latent site 'second' is there in some .*torch\.where"):
        smc_evidence(sometimes, Y[:3], seed=seed)


def test_the_advice_for_these_leads_to_the_evidence():
    y = Y[:3]
    grid = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    mean = torch.where(first > 0, first + second, first)
    log_p = dist.Normal(mean.unsqueeze(-1), 1.0).log_prob(y).sum(-1)
    log_p += dist.Normal(0.0, 1.0).log_prob(first) + dist.Normal(0.0, 2.0).log_prob(second)
    exact = log_p.flatten().logsumexp(0) + 2 * math.log(24 / 1200)
    found = smc_evidence(functools.partial(sometimes, always=True), y)
    assert found.not_reliable is None
    assert abs(found.mean - exact) < 4 * found.mc_se < 0.2
