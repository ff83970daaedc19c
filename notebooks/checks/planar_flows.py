"""Exercises of notebook 3: a planar layer, its constraint, and the bound of a flow."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from evidence.notebooks.checks.exercise import Case, Exercise, Function

_NUM_DATA, _NUM_LATENTS, _NUM_LAYERS = 8, 3, 3


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _u_and_w(generator: torch.Generator, dtype: torch.dtype) -> Case:
    u, w = (
        2 * torch.randn(_NUM_DATA, _NUM_LATENTS, generator=generator, dtype=dtype) for _ in range(2)
    )
    return {"u": u, "w": w}


def _moved(u: Tensor, w: Tensor, amount: Tensor) -> Tensor:
    """Û = u + amount · w / ‖w‖²."""
    return u + amount * w / _dot(w, w)


def _corrected(u: Tensor, w: Tensor) -> Tensor:
    return _moved(u, w, F.softplus(_dot(w, u)) - 1 - _dot(w, u))


corrected = Exercise(
    "corrected",
    right=_corrected,
    cases=_u_and_w,
    mistakes={
        "u is not corrected: a layer with wᵀu < −1 folds the plane": lambda u, w: u.clone(),
        "the correction is divided by ‖w‖, not by its square: wᵀû is not softplus(wᵀu) − 1 then": (
            lambda u, w: u + (_corrected(u, w) - u) * _dot(w, w).sqrt()
        ),
        "the correction is not divided by ‖w‖²": lambda u, w: (
            u + (_corrected(u, w) - u) * _dot(w, w)
        ),
        "the correction goes along u; it goes along w": (
            lambda u, w: u + (F.softplus(_dot(w, u)) - 1 - _dot(w, u)) * u / _dot(w, w)
        ),
        "wᵀu is not taken off: û keeps the part of u along w": (
            lambda u, w: _moved(u, w, F.softplus(_dot(w, u)) - 1)
        ),
        "the −1 is missing: wᵀû > −1 is all that is needed, and this makes it positive": (
            lambda u, w: _moved(u, w, F.softplus(_dot(w, u)) - _dot(w, u))
        ),
        "+1 for −1: wᵀû = softplus(wᵀu) − 1 lies above −1": (
            lambda u, w: _moved(u, w, F.softplus(_dot(w, u)) + 1 - _dot(w, u))
        ),
        "exp in place of softplus = log(1 + exp)": (
            lambda u, w: _moved(u, w, _dot(w, u).exp() - 1 - _dot(w, u))
        ),
        "softplus of each entry: it is of the number wᵀu": (
            lambda u, w: _moved(u, w, F.softplus(w * u) - 1 - w * u)
        ),
        "relu in place of softplus: the layer is not invertible where wᵀu < 0": (
            lambda u, w: _moved(u, w, F.relu(_dot(w, u)) - 1 - _dot(w, u))
        ),
    },
)


def _layer(generator: torch.Generator, dtype: torch.dtype) -> Case:
    shape = (_NUM_DATA, _NUM_LATENTS)
    z, u, w = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))
    b = torch.randn(_NUM_DATA, 1, generator=generator, dtype=dtype)
    return {"z": z, "b": b, "u_hat": _corrected(u, w), "w": w}


def _bend(z: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(_dot(w, z) + b)


def _f(z: Tensor, b: Tensor, u: Tensor, w: Tensor) -> Tensor:
    return z + u * _bend(z, b, w)


def _log_det(z: Tensor, b: Tensor, u: Tensor, w: Tensor) -> Tensor:
    psi = (1 - _bend(z, b, w) ** 2) * w
    return (1 + _dot(u, psi).squeeze(-1)).abs().log()


def _with(f: Function = _f, log_det: Function = _log_det) -> Function:
    return lambda z, b, u, w: (f(z, b, u, w), log_det(z, b, u, w))


planar = Exercise(
    "planar",
    right=_with(),
    cases=_layer,
    mistakes={
        "the determinant is not in logs": _with(log_det=lambda *a: _log_det(*a).exp()),
        "this is −log|det|, that of the inverse": _with(log_det=lambda *a: -_log_det(*a)),
        "the log-determinant is that of f(z), evaluated at y: ψ is taken at z": _with(
            log_det=lambda z, b, u, w: _log_det(_f(z, b, u, w), b, u, w)
        ),
        "ψ has lost the derivative of tanh, 1 − tanh²": _with(
            log_det=lambda z, b, u, w: (1 + _dot(u, w).squeeze(-1)).abs().log()
        ),
        "the derivative of tanh is 1 − tanh², not 1 − tanh": _with(
            log_det=lambda z, b, u, w: (
                (1 + _dot(u, (1 - _bend(z, b, w)) * w).squeeze(-1)).abs().log()
            )
        ),
        "the determinant is 1 + ûᵀψ: the 1 is missing": _with(
            log_det=lambda z, b, u, w: (
                _dot(u, (1 - _bend(z, b, w) ** 2) * w).squeeze(-1).abs().log()
            )
        ),
        "ûᵀψ is a dot product, a number per point: this has kept one per latent": _with(
            log_det=lambda z, b, u, w: (1 + u * (1 - _bend(z, b, w) ** 2) * w).abs().log()
        ),
        "the log-determinants of the latents are added up: there is one determinant of the whole "
        "layer, 1 + ûᵀψ": _with(
            log_det=lambda z, b, u, w: (1 + u * (1 - _bend(z, b, w) ** 2) * w).abs().log().sum(-1)
        ),
        "the log-determinant keeps a dimension of size 1: expected one number per point": _with(
            log_det=lambda *a: _log_det(*a).unsqueeze(-1)
        ),
        "this sums the log-determinants over the batch: expected one number per point": _with(
            log_det=lambda *a: _log_det(*a).sum()
        ),
        "f has lost the z it begins with: f(z) = z + û tanh(wᵀz + b)": _with(
            lambda z, b, u, w: u * _bend(z, b, w)
        ),
        "f has lost tanh: an affine layer bends nothing": _with(
            lambda z, b, u, w: z + u * (_dot(w, z) + b)
        ),
        "the bias b is missing in f": _with(lambda z, b, u, w: z + u * _bend(z, 0 * b, w)),
        "w·z is kept entry by entry; wᵀz is a dot product": _with(
            lambda z, b, u, w: z + u * torch.tanh(w * z + b)
        ),
        "the roles of û and w are swapped in f": _with(lambda z, b, u, w: z + w * _bend(z, b, u)),
        "expected f(z) and the log-determinant, in this order": (lambda *a: (_log_det(*a), _f(*a))),
        "expected two results, f(z) and the log-determinant; this is f(z) alone": _f,
    },
)


def _flow(generator: torch.Generator, dtype: torch.dtype) -> Case:
    shape = (_NUM_DATA, _NUM_LATENTS)
    mu, z0 = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    logsigma = torch.randn(shape, generator=generator, dtype=dtype) / 2
    layers = []
    for _ in range(_NUM_LAYERS):
        u, w = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
        b = torch.randn(_NUM_DATA, 1, generator=generator, dtype=dtype)
        layers.append((b, _corrected(u, w), w))
    return {
        "z0": mu + logsigma.exp() * z0,
        "mu": mu,
        "logsigma": logsigma,
        "layers": layers,
        "log_likelihood": _example_likelihood,
    }


def _example_likelihood(z: Tensor) -> Tensor:
    """A log p(x | z) that depends on every latent in its own way: `[N]`."""
    weights = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    return -(z - weights / 2).square().mul(weights).sum(-1) / 2


def _log_normal(z: Tensor, mu: Tensor | float = 0.0, logsigma: Tensor | float = 0.0) -> Tensor:
    logsigma = torch.as_tensor(logsigma, dtype=z.dtype)
    standard = (z - mu) / logsigma.exp()
    return -(standard**2 / 2 + logsigma + math.log(2 * math.pi) / 2).sum(-1)


def _through(z: Tensor, layers: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """z_K, and the sum of the log-determinants."""
    total = torch.zeros(z.shape[:-1], dtype=z.dtype)
    for b, u_hat, w in layers:
        total = total + _log_det(z, b.to(z), u_hat.to(z), w.to(z))
        z = _f(z, b.to(z), u_hat.to(z), w.to(z))
    return z, total


def _bound(
    *, likelihood_at: int = -1, prior_at: int = -1, q_at: int = 0, sign: float = 1.0
) -> Function:
    """The bound with the likelihood, prior and q₀ at z₀ (0) or z_K (−1), ± log-determinants."""

    def bound(
        z0: Tensor, mu: Tensor, logsigma: Tensor, layers: list, log_likelihood: Function
    ) -> Tensor:
        z_k, log_det = _through(z0, layers)
        at = {0: z0, -1: z_k}
        log_q0 = _log_normal(at[q_at], mu, logsigma)
        log_p = log_likelihood(at[likelihood_at]) + _log_normal(at[prior_at])
        return log_p - log_q0 + sign * log_det

    return bound


def _closed_form(z0: Tensor, mu: Tensor, logsigma: Tensor, layers: list, log_p: Function) -> Tensor:
    z_k, log_det = _through(z0, layers)
    kl = ((2 * logsigma).exp() + mu**2 - 1 - 2 * logsigma).sum(-1) / 2
    return log_p(z_k) - kl + log_det


bound = Exercise(
    "bound",
    right=_bound(),
    cases=_flow,
    mistakes={
        "the prior is scored at z₀, it belongs at z_K, the latent that the model gets": _bound(
            prior_at=0
        ),
        "the likelihood is scored at z₀, it belongs at z_K": _bound(likelihood_at=0),
        "prior and likelihood are scored at z₀: they belong at z_K": _bound(
            prior_at=0, likelihood_at=0
        ),
        "q₀ is scored at z_K; it is the density of z₀": _bound(q_at=-1),
        "the log-determinants have the wrong sign: −log q(z_K) = −log q₀(z₀) + Σ log|det|": _bound(
            sign=-1.0
        ),
        "the log-determinants are missing": _bound(sign=0.0),
        "this takes the closed-form KL of q₀ for the flow's, which scores the prior at z₀": (
            _closed_form
        ),
        "log q₀(z₀) is added: the bound subtracts it": (
            lambda z0, mu, s, layers, log_p: (
                _bound()(z0, mu, s, layers, log_p) + 2 * _log_normal(z0, mu, s)
            )
        ),
        "log q₀(z₀) is missing": (
            lambda z0, mu, s, layers, log_p: (
                _bound()(z0, mu, s, layers, log_p) + _log_normal(z0, mu, s)
            )
        ),
        "the prior is missing": (
            lambda z0, mu, s, layers, log_p: (
                _bound()(z0, mu, s, layers, log_p) - _log_normal(_through(z0, layers)[0])
            )
        ),
        "the layers are taken in reverse order": (
            lambda z0, mu, s, layers, log_p: _bound()(z0, mu, s, layers[::-1], log_p)
        ),
        "this is the negative: a loss, not the bound": (lambda *a: -_bound()(*a)),
        "this is the mean over the batch: expected one number per datum": (
            lambda *a: _bound()(*a).mean()
        ),
        "this sums over the batch: expected one number per datum": lambda *a: _bound()(*a).sum(),
    },
)
