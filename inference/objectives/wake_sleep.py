"""Guides that minimize the forward KL, KL(p(z | x) ‖ q(z | x)): no draw is differentiated."""

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine import Trace
from torch import Tensor

from evidence.inference.objectives.base import AbstractObjective
from evidence.inference.objectives.draws import Draws, Pair
from evidence.inference.objectives.paths import gradient_only
from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.data import Batch, tensors_in, with_replaced
from evidence.inference.programs.estimators import iwae
from evidence.inference.programs.traces import random_sites


class ReweightedWakeSleep(AbstractObjective):
    """The model maximizes the importance-weighted bound, the guide minimizes the forward KL.

    With z_k ~ q(z | x) and their normalized weights w̃_k, the model follows
    Σ_k w̃_k ∇_θ log p(x, z_k) and the guide ("wake-phase" update) Σ_k w̃_k ∇_φ log q(z_k | x). No
    draw is differentiated, so latents may be discrete. The loss that is reported is `IWAE`'s.

    Reference: J. Bornschein, Y. Bengio, "Reweighted Wake-Sleep", 2015,
    https://arxiv.org/abs/1406.2751; T. A. Le, A. R. Kosiorek, N. Siddharth, Y. W. Teh, F. Wood,
    "Revisiting Reweighted Wake-Sleep for Models with Stochastic Control Flow", 2019,
    https://arxiv.org/abs/1805.10469.

    Args:
        num_particles: K, draws per datum; two at least, as one has no weight to speak of.
    """

    min_particles, default_particles = 2, 8

    def surrogate(self, pair: Pair) -> Tensor:
        """−Σ L_K in nats."""
        draws = pair.draw(detach=True)
        return _model_loss(draws) + gradient_only(_cross_entropy(draws))


class ForwardKL(AbstractObjective):
    """The guide minimizes KL(p(z | x) ‖ q(z | x)) by self-normalized weights; the model stays.

    The loss is the estimate Σ_k w̃_k log(K w̃_k), between 0 and log K: where the KL is near log K,
    too few particles were drawn to see it. The gradient is the guide's of `ReweightedWakeSleep`,
    −Σ_k w̃_k ∇_φ log q(z_k | x); latents may be discrete.

    Reference: as `ReweightedWakeSleep`.

    Args:
        num_particles: K, draws per datum, two at least.
    """

    min_particles, default_particles = 2, 8
    trains_model = False

    def surrogate(self, pair: Pair) -> Tensor:
        """Σ KL in nats."""
        draws = pair.draw(detach=True)
        log_w = draws.log_w.detach()
        kl = (log_w.softmax(0) * (log_w - iwae(log_w))).sum(0)
        return draws.total(kl) + gradient_only(_cross_entropy(draws))


class WakeSleep(AbstractObjective):
    """The guide learns from data that the model dreams up, the model from the guide's draws.

    Sleep: (z, x̃) ~ p(z, x) is simulated, one datum in place of each of the batch, and the guide
    maximizes log q(z | x̃), which minimizes the forward KL averaged over the model's own data. Wake:
    the model maximizes the bound of K weights with z ~ q(z | x), the ELBO for K = 1 as in the
    original. No draw is differentiated, so latents may be discrete. The loss reported is `IWAE`'s.

    The simulated data go in the place of the argument whose value is observed, so the model must
    observe an argument as it is. A guide whose draws go through an auxiliary site has no density
    at a z that the model drew.

    Reference: G. E. Hinton, P. Dayan, B. J. Frey, R. M. Neal, "The 'wake-sleep' algorithm for
    unsupervised neural networks", 1995, https://doi.org/10.1126/science.7761831; J. Bornschein,
    Y. Bengio, "Reweighted Wake-Sleep", 2015, https://arxiv.org/abs/1406.2751.

    Args:
        num_particles: K, draws per datum of the wake phase.
    """

    def surrogate(self, pair: Pair) -> Tensor:
        """−Σ L_K in nats."""
        draws = pair.draw(detach=True)
        return _model_loss(draws) + gradient_only(_sleep_loss(pair, draws))


def _model_loss(draws: Draws) -> Tensor:
    """−Σ L_K in nats, a function of the model alone."""
    return -draws.total(iwae(draws.log_p_xz - draws.log_q_z.detach()))


def _cross_entropy(draws: Draws) -> Tensor:
    """−Σ E_p[log q] in nats by self-normalized weights, a function of the guide alone."""
    share = draws.log_w.detach().softmax(0)
    return -draws.total((share * draws.log_q_z).sum(0))


def _sleep_loss(pair: Pair, draws: Draws) -> Tensor:
    """−Σ log q(z | x̃) in nats with (z, x̃) from the model."""
    _check_no_auxiliary(draws)
    dream = _dream(pair)
    data = _in_place_of_data(pair.data, dream)
    guide = poutine.trace(poutine.replay(pair.guide, trace=dream))
    return -draws.total(draws.sum_of_run(random_sites(guide.get_trace(data)), 1).sum(0))


@torch.no_grad()
def _dream(pair: Pair) -> Trace:
    """A trace of the model without observations."""
    return poutine.trace(poutine.uncondition(pair.model)).get_trace(pair.data)


def _in_place_of_data(data: Batch, dream: Trace) -> Batch:
    """The arguments, with simulated data in place of the observed.

    Raises:
        ValueError: an observed site whose value is no argument, or a factor.
    """
    arguments = {id(tensor) for tensor in tensors_in(data)}
    dreamt = {}
    for name, site in random_sites(dream).items():
        if not site["infer"].get("was_observed"):
            continue
        observed = site["infer"]["obs"]
        if isinstance(base_distribution(site["fn"]), Unit) or id(observed) not in arguments:
            raise ValueError(
                f"expected observed site {name!r} to observe an argument as it is, got another "
                "value: the guide cannot be shown what the model simulates"
            )
        dreamt[id(observed)] = site["value"]
    return with_replaced(data, dreamt)


def _check_no_auxiliary(draws: Draws) -> None:
    for name, site in random_sites(draws.runs[0].guide).items():
        if site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"expected a guide that draws the model's latents themselves, got auxiliary site "
                f"{name!r}: use ReweightedWakeSleep"
            )
