"""Every check finds its planted fault, and nothing in pairs that are right."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from evidence.guides import (
    Delta,
    FullRank,
    Hierarchical,
    MeanField,
    Planar,
    Refined,
    Unamortized,
)
from evidence.inference.diagnostics.preflight import check
from evidence.models import VAE, EightSchools, HierarchicalVAE
from tests.conftest import make_oracle
from tests.test_weights import exact_guide, layered_guide, layered_model
from tests.test_wrappers import gamma_model

X = make_oracle()(None, size=6).float()
BITS = (X > 0).float()


def model(x, *, scale=1.0):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.cat([z] * 4, -1)[..., :10], scale).to_event(1), obs=x)


def gaussian(x, loc=0.0, scale=1.0, name="z", dim=3):
    """A guide; `loc` and `scale` expand to [B, 3]."""
    with pyro.plate("data", len(x)):
        loc = torch.as_tensor(loc).expand(len(x), dim)
        return pyro.sample(name, dist.Normal(loc, scale).to_event(1))


def raises(x):
    raise RuntimeError("no such table")


def two_sites(x):
    gaussian(x)
    with pyro.plate("more", len(x)):
        pyro.sample("w", dist.Normal(0.0, 1.0))


def observes_nothing(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def observes_in_the_guide(x):
    gaussian(x)
    with pyro.plate("more", len(x)):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[:, 0])


def without_plate(x):
    pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(2))


def model_without_plate(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(2))
    pyro.sample("x", dist.Normal(torch.cat([z] * 4, -1)[..., :10], 1.0).to_event(2), obs=x)


def global_scale(x):
    tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
    model(x, scale=tau)


def global_guide(x):
    pyro.sample("tau", dist.Gamma(2.0, 2.0))
    gaussian(x)


def undeclared_dims(x):
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0))


def model_of_undeclared_dims(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=x[:, :1])


def positive_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0 * torch.ones(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x[:, :1])


def log_normal(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(torch.zeros(len(x), 3), 1.0).to_event(1))


def shifted(x):
    base = dist.Normal(torch.zeros(len(x), 3), 1.0)
    with pyro.plate("data", len(x)):
        affine = dist.transforms.AffineTransform(-0.5, 1.0)
        pyro.sample("z", dist.TransformedDistribution(base, [affine]).to_event(1))


def subsampled(x):
    with pyro.plate("data", 600, subsample=x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.cat([z] * 4, -1)[..., :10], 1.0).to_event(1), obs=x)


def centred_by_the_batch(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        loc = torch.cat([z] * 4, -1)[..., :10] + x.mean(0)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def row_parameters(x):
    table = pyro.param("table", torch.arange(6.0).unsqueeze(-1))
    gaussian(x, table[: len(x)])


def fixed_plate(x):
    table = pyro.param("table", torch.zeros(6, 3))
    gaussian(x, table)


def not_broadcast(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
        z.reshape(len(x), 3)


def regression(x, covariates):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + covariates, 1.0).to_event(1), obs=x)


def regression_guide(x, covariates):
    slope = pyro.param("slope", torch.tensor(0.4))
    gaussian(x, slope * (x - covariates))


def centred_regression_guide(x, covariates):
    gaussian(x, x - covariates.mean(0))


SEVERAL = X[:, :3], X[:, 3:6]
# Rows that are told apart by the covariates alone.
ALIKE = X[:1, :3].expand(6, 3), X[:, 3:6]


class Normalized(nn.Module):
    """A guide that leaks by BatchNorm, but not in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 3), nn.BatchNorm1d(3))

    def forward(self, x):
        gaussian(x, self.net(x))


class Dead(nn.Module):
    """A guide with a parameter that nothing uses, and one that is cut off."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.cut = (nn.Parameter(torch.ones(3)) for _ in range(3))

    def forward(self, x):
        gaussian(x, self.used + self.cut.detach())


class Rooted(nn.Module):
    """A guide whose gradient is infinite where it stands."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        gaussian(x, self.raw.abs().sqrt())


BROKEN = {
    "NaN data": (model, gaussian, X * math.nan, {("data", None)}),
    "no data": (model, gaussian, X[:0], {("data", None)}),
    "no tensor": (model, gaussian, None, {("data", None)}),
    "grey pixels": (VAE(10, 3), MeanField(3, 10), X.sigmoid(), {("data", "x")}),
    "guide raises": (model, raises, X, {("run", None)}),
    "model raises": (raises, gaussian, X, {("run", None)}),
    "wrong guide size": (
        VAE(10, 3), lambda x: gaussian(x, dim=2), BITS, {("shape", "z")},
    ),
    "wrong data size": (VAE(9, 3), MeanField(3, 10), BITS, {("run", None)}),
    "missing site": (model, lambda x: gaussian(x, name="w"), X, {("sites", "w"), ("sites", "z")}),
    "extra site": (model, two_sites, X, {("sites", "w")}),
    "nothing observed": (observes_nothing, gaussian, X, {("sites", None)}),
    "observed in the guide": (model, observes_in_the_guide, X, {("sites", "y")}),
    "no plate in the guide": (model, without_plate, X, {("shape", "z")}),
    "undeclared dims": (model_of_undeclared_dims, undeclared_dims, X, {("shape", "z")}),
    "real guide, positive prior": (positive_model, gaussian, X, {("support", "z")}),
    "unlucky draws": (positive_model, lambda x: gaussian(x, 9.0, 0.1), X, {("support", "z")}),
    "draws outside the support": (positive_model, shifted, X, {("support", "z")}),
    "positive guide, real prior": (model, log_normal, X, {("support", "z")}),
    "point mass": (VAE(10, 3), Delta(3, 10), BITS, {("density", "z")}),
    "scaled model": (poutine.scale(model, 7.0), gaussian, X, {("scale", "z"), ("scale", "x")}),
    "subsampled plate": (subsampled, gaussian, X, {("scale", "z"), ("scale", "x")}),
    "NaN in the guide": (model, lambda x: gaussian(x, math.nan), X, {("finite", "z")}),
    "guide leaks": (model, lambda x: gaussian(x, x.mean()), X, {("leak", "z")}),
    "guide sees the neighbour": (
        model, lambda x: gaussian(x, x.roll(1, 0)[:, :3]), X, {("leak", "z")},
    ),
    "guide leaks in training": (model, Normalized(), X, {("leak", "z")}),
    "model leaks": (centred_by_the_batch, gaussian, X, {("leak", "x")}),
    "leaks by a second tensor": (regression, centred_regression_guide, SEVERAL, {("leak", "z")}),
    "by the second tensor alone": (regression, centred_regression_guide, ALIKE, {("leak", "z")}),
    "parameters per row": (model, row_parameters, X, {("leak", "z")}),
    "fixed size": (model, fixed_plate, X, {("batch", None)}),
    "dead parameters": (
        model, Dead(), X, {("gradient", "guide.unused"), ("gradient", "guide.cut")},
    ),
    "infinite gradient": (model, Rooted(), X, {("gradient", "guide.raw")}),
}  # fmt: skip


@pytest.mark.parametrize(("model", "guide", "x", "expected"), BROKEN.values(), ids=BROKEN)
def test_the_planted_fault_is_found(model, guide, x, expected):
    findings = check(model, guide, x)
    print(*findings, sep="\n")
    assert expected <= {(finding.check, finding.site) for finding in findings}
    for finding in findings:
        assert "\n" not in str(finding)
        assert finding.problem
        assert finding.mend
    # Nothing else is found, but for what follows from the fault.
    assert {finding.check for finding in findings} <= {check for check, _ in expected} | {"finite"}


def mixture_model(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.3))
        loc = c.unsqueeze(-1) * torch.ones(10)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def mixture_guide(x):
    logits = pyro.param("slope", torch.tensor(1.0)) * (x.sum(-1) - 5)
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Bernoulli(logits=logits))


class DroppedOut(nn.Module):
    """Random numbers of its own, row by row."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x):
        gaussian(x, self.net(x))


def gamma_guide(x):
    """Drawn by rejection, which uses up random numbers of the rows after it."""
    shape = pyro.param("shape", torch.tensor(1.0)) + x.abs()[:, :3]
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Gamma(shape, 1.0).to_event(1))


def clean_pairs():
    oracle, x = make_oracle(), X.double()
    hierarchical = HierarchicalVAE(10, latent_dims=(3, 2), hidden_dims=(8,), layer_hidden_dims=(8,))
    schools = EightSchools(8)
    effects = torch.tensor(schools.effects) + torch.randn(6, 8)
    mean_field = MeanField(3, 10, hidden_dims=(8,)).double()
    return {
        "exact": (oracle, exact_guide(oracle), x),
        "mean field": (oracle, mean_field, x),
        "full rank": (oracle, FullRank(3, 10, hidden_dims=(8,)).double(), x),
        "flow": (oracle, Planar(3, 10, hidden_dims=(8,)).double(), x),
        "vae": (VAE(10, 3, hidden_dims=(8,)), MeanField(3, 10), BITS),
        "gaussian vae": (VAE(10, 3, hidden_dims=(8,), likelihood="gaussian"), FullRank(3, 10), X),
        "layers": (hierarchical, Hierarchical(5, 10, latents=hierarchical.latents), BITS),
        "constrained": (schools, MeanField.for_model(schools, effects), effects),
        "functions": (layered_model, layered_guide, x[:, :4]),
        "discrete": (mixture_model, mixture_guide, X),
        "positive": (
            gamma_model,
            MeanField.for_model(gamma_model, x[:, :4].abs()),
            x[:, :4].abs(),
        ),
        "dropout": (model, DroppedOut(), X),
        "rejection": (positive_model, gamma_guide, X),
        "table": (oracle, Unamortized(mean_field, x), x),
        "no plate": (model_without_plate, without_plate, X),
        "global latent": (global_scale, global_guide, X),
        "does not broadcast": (model, not_broadcast, X),
        "several tensors": (regression, regression_guide, SEVERAL),
        "tensors by name": (
            regression,
            regression_guide,
            dict(zip(("x", "covariates"), ALIKE, strict=True)),
        ),
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", clean_pairs())
def test_nothing_is_found_in_a_pair_that_is_right(name, seed):
    torch.manual_seed(seed)
    model, guide, x = clean_pairs()[name]
    assert [str(finding) for finding in check(model, guide, x, seed=seed)] == []


def test_nothing_is_left_behind():
    guide = Normalized()
    state = {name: tensor.clone() for name, tensor in guide.state_dict().items()}
    before = torch.get_rng_state()
    check(model, guide, X)
    check(mixture_model, mixture_guide, X)
    assert torch.equal(torch.get_rng_state(), before)
    assert not dict(pyro.get_param_store())
    assert guide.training
    assert all(parameter.grad is None for parameter in guide.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in guide.state_dict().items())


def test_noise_that_goes_by_the_row_is_a_leak():
    """`Refined` gives every row of a batch the same random numbers, the planted guide others."""
    oracle = make_oracle()
    refined = Refined(MeanField(3, 10, hidden_dims=(8,)).double(), oracle, num_steps=2)
    assert check(oracle, refined, X.double()) == []

    def by_row(x):
        noise = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(0))
        gaussian(x, noise)

    (finding,) = check(model, by_row, X)
    assert (finding.check, finding.site) == ("leak", "z")
    assert "place in the batch" in finding.problem


def test_data_of_zeros_make_no_dead_parameter():
    assert check(make_oracle(), MeanField(3, 10, hidden_dims=(8,)).double(), 0 * X.double()) == []


def test_a_start_at_zero_is_no_dead_parameter():
    """The last layer starts at zero: no gradient reaches the first one yet."""
    guide = MeanField(3, 10, hidden_dims=(8,))
    nn.init.zeros_(guide.encoder[-1].weight)
    assert check(VAE(10, 3), guide, BITS) == []
