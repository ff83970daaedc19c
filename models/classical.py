"""Classical models in their natural form: plain Pyro functions, whose latents the data share.

`BayesianLinearRegression`, `BayesianLogisticRegression` and `EightSchools` take a whole data set
for a datum, so that an encoder may learn to answer for all data sets. Here a datum is a row, and
there is one data set with one posterior and one evidence, as they are mostly written and asked:

    guide = FullRank.for_model(linear_regression, {"features": X, "y": y})

Their exact evidence is that of the classes, for one datum: `log_evidence(y[None])`.
"""

import pyro
import pyro.distributions as dist
from torch import Tensor


def linear_regression(
    features: Tensor, y: Tensor, *, prior_scale: float = 1.0, noise_scale: float = 0.5
) -> None:
    """y_n ~ N(wᵀφ_n, σ²), with weights w ~ N(0, τ²I) that all data share.

    Args:
        features: φ, `[N, Z]`.
        y: responses `[N]`.
        prior_scale: τ.
        noise_scale: σ.
    """
    weights = _weights(features, prior_scale)
    with pyro.plate("data", len(features)):
        mean = (features * weights).sum(-1)
        pyro.sample("y", dist.Normal(mean, noise_scale), obs=y)


def logistic_regression(features: Tensor, y: Tensor, *, prior_scale: float = 2.0) -> None:
    """y_n ~ Bernoulli(sigmoid(wᵀφ_n)), with weights w ~ N(0, τ²I) that all data share.

    Args:
        features: φ, `[N, Z]`.
        y: labels 0 and 1, `[N]`.
        prior_scale: τ.
    """
    weights = _weights(features, prior_scale)
    with pyro.plate("data", len(features)):
        pyro.sample("y", dist.Bernoulli(logits=(features * weights).sum(-1)), obs=y)


def _weights(features: Tensor, scale: float) -> Tensor:
    """W, `[Z]`, or `[..., 1, Z]` of several particles."""
    return pyro.sample("w", dist.Normal(features.new_zeros(features.shape[1]), scale).to_event(1))


def eight_schools(y: Tensor, standard_errors: Tensor) -> None:
    """y_j ~ N(θ_j, σ_j), θ_j ~ N(μ, τ) for every school; μ ~ N(0, 5) and τ ~ HalfCauchy(5).

    Args:
        y: effects `[8]`, or of any number of schools.
        standard_errors: σ, `[8]`.
    """
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, standard_errors), obs=y)
