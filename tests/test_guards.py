"""What `fit` and the estimators refuse or name, where Pyro's ELBOs would, and data of all rows."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

from evidence.guides import MeanField
from evidence.inference import (
    IWAE,
    STL,
    ForwardKL,
    NonFiniteLossError,
    adaptive_evidence,
    annealed_evidence,
    fit,
    importance_weighted_evidence,
    inference_gaps,
    latent_diagnostics,
    log_weights,
)
from evidence.models import VAE

X = torch.randn(40, generator=torch.Generator().manual_seed(0))


def quick(model, guide, x=X, **options):
    return fit(
        model, guide, x, **({"num_epochs": 3, "batch_size": 16, "progress": False} | options)
    )


class Line(nn.Module):
    """A guide of one latent: N(a x, 1), or that of another site or shape."""

    def __init__(self, site="z", shape=(), detach=False):
        super().__init__()
        self.slope, self.site, self.shape = nn.Parameter(torch.tensor(0.1)), site, shape
        self.log_scale, self.detach = nn.Parameter(torch.tensor(0.0)), detach

    def forward(self, x):
        loc = self.slope * x
        with pyro.plate("data", len(x)):
            loc = (loc.detach() if self.detach else loc).reshape(len(x), *self.shape)
            pyro.sample(self.site, dist.Normal(loc, self.log_scale.exp()))


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def wide_model(x):
    """A mean [B, 1], as a network's last layer has it, against data [B]."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def wide_guide(x):
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x[:, None], 1.0).to_event(1))


def wide_data_model(x):
    """Data [B, 1] against a mean [B]."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.unsqueeze(-1))


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [(wide_model, wide_guide), (wide_data_model, Line()), (model, Line(shape=(1,)))],
)
@pytest.mark.parametrize(
    "run",
    [
        quick,
        lambda m, g: importance_weighted_evidence(m, g, X[:16], 16),  # 16 particles, 16 data
        lambda m, g: annealed_evidence(m, X, guide=g, num_temperatures=2),
        lambda m, g: latent_diagnostics(m, g, X),
        lambda m, g: IWAE(40).loss(m, g, X),
        lambda m, g: STL().loss(m, g, X),
    ],
)
def test_dimensions_of_no_plate_are_refused_in_one_line(run, wide, narrow):
    narrow(X)
    with pytest.raises(ValueError, match=r"site '[xz]' .*belong to (no|a) plate.*") as error:
        run(wide, narrow)
    assert "\n" not in str(error.value)


def test_shapes_that_fit_are_let_through():
    def plates(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(slope * x.mean(1, keepdim=True), 1.0))

    assert math.isfinite(quick(plates, guide, torch.randn(20, 3)).train_loss[-1])


def test_a_misspelt_site_is_refused():
    with pytest.raises(ValueError, match=r"does not sample the model's latent sites \['z'\]"):
        quick(model, Line("zz"))

    def more(x):
        Line()(x)
        pyro.sample("other", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(ValueError, match=r"the guide samples \['other'\]"):
        quick(model, more)


def test_latents_that_the_model_enumerates_need_no_guide():
    @config_enumerate
    def mixture(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    history = quick(mixture, lambda x: None, objective=TraceEnum_ELBO(max_plate_nesting=1))
    exact = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(pyro.param("loc").detach(), 1.0)
    ).log_prob(X)
    assert -history.train_loss[-1] == pytest.approx(exact.mean().item(), abs=0.01)


def test_parameters_that_no_gradient_reaches_are_named():
    guide = Line(detach=True)
    with pytest.warns(UserWarning, match=r"no gradient reaches guide\.slope: training leaves"):
        quick(model, guide)
    with pytest.warns(UserWarning, match=r"no gradient reaches guide\.slope:"):
        quick(model, guide, num_epochs=1)
    quick(model, Line())  # the twin: nothing to name


def test_parameters_that_are_multiplied_by_zero_are_named_after_some_steps():
    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.1))
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * slope * x, scale))

    with pytest.warns(UserWarning, match=r"no gradient reaches param\.slope:"):
        quick(model, guide)


def test_an_objective_that_leaves_the_model_alone_is_no_fault():
    pair = VAE(6, 2, hidden_dims=(4,)), MeanField(2, 6, hidden_dims=(4,))
    quick(*pair, torch.bernoulli(torch.full((40, 6), 0.5)), objective=ForwardKL())


class Reshaped(nn.Module):
    """Binary pixels, observed in another form than that of the data."""

    def __init__(self, form):
        super().__init__()
        self.net, self.form = nn.Linear(2, 16), form

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.net(z)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=self.form(x))


FORMS = {
    "flattened": lambda x: x.flatten(1),
    "joined": lambda x: torch.cat([x[:, 0], x[:, 1:].flatten(1)], 1),
    "cloned": lambda x: x.clone().reshape(len(x), 16),
}


def grey_later(row=300):
    x = torch.bernoulli(torch.full((320, 4, 4), 0.5))
    x[row] = 0.3
    return x


def flat_guide():
    guide = MeanField(2, 16, hidden_dims=(8,))
    return guide, lambda x: guide(x.flatten(1))


@pytest.mark.parametrize("form", FORMS)
def test_every_row_is_checked_before_training_whatever_the_model_observes(form):
    model, (module, guide) = Reshaped(FORMS[form]), flat_guide()
    before = [p.clone() for p in (*model.parameters(), *module.parameters())]
    with pytest.raises(ValueError, match=r"outside the support of site 'x'.*0\.3") as error:
        quick(model, guide, grey_later())
    assert "\n" not in str(error.value)
    after = [*model.parameters(), *module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    quick(model, guide, grey_later()[:300])


def test_a_support_that_depends_on_the_datum_is_checked_for_every_row():
    def counts(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Binomial(5, logits=z), obs=x)

    x = torch.arange(40.0) % 6
    quick(counts, Line(), x)
    x[35] = 6.0
    with pytest.raises(ValueError, match=r"got values such as 6"):
        quick(counts, Line(), x)


def test_the_check_of_all_rows_leaves_training_as_it_was():
    """It draws, and runs modules, without a trace: an identity of another form trains alike."""

    def weights(form):
        pyro.set_rng_seed(1)
        model, (module, guide) = Reshaped(form), flat_guide()
        module.encoder.insert(1, nn.BatchNorm1d(8))
        quick(model, guide, grey_later()[:300].flatten(1))
        return torch.cat([t.flatten().float() for t in module.state_dict().values()])

    assert torch.equal(weights(lambda x: x), weights(torch.clone))


@pytest.mark.parametrize(("good", "found"), [(2, 3), (31, 41)])
def test_what_a_transform_makes_is_checked_for_an_epoch_and_now_and_then(good, found):
    calls = []

    def transform(x):
        calls.append(1)
        return x + 0.5 * (len(calls) > 1 + good)

    model, (_, guide) = Reshaped(FORMS["flattened"]), flat_guide()
    x = grey_later()[:64]
    with pytest.raises(ValueError, match=r"outside the support of site 'x'") as error:
        quick(model, guide, x, num_epochs=20, transform=transform)
    assert len(calls) == 1 + found
    assert "\n" not in str(error.value)


def test_rows_that_the_model_subsamples_by_itself_are_checked_as_they_come():
    def subsampled(x):
        with pyro.plate("data", len(x), subsample_size=8) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x[rows])

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x), subsample_size=8):
            pyro.sample("z", dist.Normal(loc, 1.0))

    x = torch.ones(320)
    x[300] = 0.3
    with pytest.raises(ValueError, match=r"got values such as 0\.3"):
        quick(subsampled, guide, x, batch_size=320, num_epochs=500)


@pytest.mark.parametrize(
    "estimate",
    [
        lambda m, g, x: importance_weighted_evidence(m, g, x, 4, chunk_size=64),
        lambda m, g, x: importance_weighted_evidence(m, g, x, 100, chunk_size=64),
        lambda m, g, x: adaptive_evidence(m, g, x, target_se=0.5, chunk_size=64),
        lambda m, g, x: annealed_evidence(m, x, num_temperatures=2, num_chains=2, chunk_size=64),
        lambda m, g, x: annealed_evidence(
            m, x, guide=g, num_temperatures=2, num_chains=2, chunk_size=64
        ),
        lambda m, g, x: latent_diagnostics(m, g, x, num_draws=2, chunk_size=64),
        lambda m, g, x: inference_gaps(m, g, x.flatten(1), max_steps=1, num_particles=4),
        log_weights,
    ],
)
def test_estimators_check_every_chunk(estimate):
    model, (module, guide) = Reshaped(FORMS["flattened"]), flat_guide()
    if "inference_gaps" in estimate.__code__.co_names:
        guide = module
    with pytest.raises(ValueError, match=r"outside the support of site 'x'"):
        estimate(model, guide, grey_later())


def test_data_of_thousands_are_to_be_standardized():
    x = 1e4 * torch.randn(40, 6)
    pair = VAE(6, 2, hidden_dims=(8,), likelihood="gaussian"), MeanField(2, 6, hidden_dims=(8,))
    with pytest.raises(ValueError, match="standardize the data") as error:
        quick(*pair, x)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    assert "learning rate" not in message
    quick(*pair, x / 1e4)


@pytest.mark.parametrize("scale", [-1.0, math.nan])
def test_bad_arguments_of_a_distribution_are_one_line(scale):
    def guide(x):
        slope = pyro.param("slope", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, torch.full((len(x),), scale)))

    expected = rf"^expected scale of Normal in GreaterThan.*such as {scale:g}"
    with pytest.raises(ValueError, match=expected) as error:
        quick(model, guide)
    assert "\n" not in str(error.value)
    assert "learning rate" not in str(error.value)
    pyro.param("slope", torch.tensor(1.0))
    with pytest.raises(ValueError, match=expected):
        log_weights(model, guide, X)


def test_before_any_update_nobody_blames_the_learning_rate():
    def far(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1e-30), obs=x)

    with pytest.raises(NonFiniteLossError, match=r"nothing was updated yet: .*site 'x'") as error:
        quick(far, Line())
    assert "learning rate" not in str(error.value)


@pytest.mark.parametrize("batch_size", [16, 40])
def test_losses_are_per_datum_under_any_plate(batch_size):
    """A batch that stands for all N, and one that the plate draws by itself, as an ordinary one."""

    def pair(plate):
        def model(x):
            with plate(x) as rows:
                data = x if rows is None else x[rows]
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=data)

        def guide(x):
            loc, scale = pyro.param("loc", torch.tensor(0.0)), pyro.param("s", torch.tensor(1.0))
            with plate(x):
                pyro.sample("z", dist.Normal(loc, scale))

        return model, guide

    class Plate:
        def __init__(self, x, **options):
            self.plate = pyro.plate("data", **options)
            self.inside = "subsample_size" in options

        def __enter__(self):
            rows = self.plate.__enter__()
            return rows if self.inside else None

        def __exit__(self, *error):
            return self.plate.__exit__(*error)

    losses = []
    for plate in (
        lambda x: Plate(x, size=len(x)),
        lambda x: Plate(x, size=1000, subsample=torch.arange(len(x))),
        lambda x: Plate(x, size=len(x), subsample_size=len(x) // 2),
    ):
        pyro.clear_param_store()
        options = {"batch_size": batch_size, "lr": 1e-9, "num_epochs": 100}
        losses.append(sum(quick(*pair(plate), **options).train_loss) / 100)
    exact = 0.5 * math.log(2 * math.pi) + 0.5 * (X.square().mean().item() + 1)  # KL(q ‖ p) = 0
    assert losses == pytest.approx([exact] * 3, abs=0.06)
