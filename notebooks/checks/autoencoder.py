"""Exercises of notebook 1: a loss that is a likelihood, PCA, and what lies between two codes."""

import math

import torch
from torch import Tensor

from evidence.notebooks.checks.exercise import Case, Exercise

_NUM_DATA, _NUM_PIXELS = 6, 9
_LOG_2_PI = math.log(2 * math.pi)


def _images(generator: torch.Generator, dtype: torch.dtype) -> Case:
    x, x_hat = (
        torch.rand(_NUM_DATA, _NUM_PIXELS, generator=generator, dtype=dtype) for _ in range(2)
    )
    return {"x": x, "x_hat": x_hat}


def _squares(x: Tensor, x_hat: Tensor) -> Tensor:
    return (x - x_hat).square()


_CONSTANT = _NUM_PIXELS / 2 * _LOG_2_PI

loss = Exercise(
    "loss",
    right=lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + _CONSTANT,
    cases=_images,
    mistakes={
        "this is the squared error alone: −log N(x; x̂, I) has the factor ½ and the constant "
        "½ D log 2π": lambda x, x_hat: _squares(x, x_hat).sum(-1),
        "the constant ½ D log 2π is missing": lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2,
        "the squared error has lost its factor ½": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) + _CONSTANT
        ),
        "the constant is that of one pixel; it belongs to each of the D": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + _LOG_2_PI / 2
        ),
        "the constant has lost its factor ½: it is ½ D log 2π": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + 2 * _CONSTANT
        ),
        "the constant is in another logarithm: nats take the natural one, math.log": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + _CONSTANT / math.log(10)
        ),
        "D is the number of pixels, x.shape[-1], not the number of images": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + len(x) / 2 * _LOG_2_PI
        ),
        "D is the number of pixels of x, x.shape[-1]; 64 is that of the digits alone": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + 32 * _LOG_2_PI
        ),
        "the norm is not squared: −log N is quadratic in x − x̂": (
            lambda x, x_hat: (x - x_hat).norm(dim=-1) / 2 + _CONSTANT
        ),
        "this sums over the batch: pixels are the last dimension": (
            lambda x, x_hat: _squares(x, x_hat).sum(0) / 2 + _CONSTANT
        ),
        "this is log p(x | z); the loss is its negative": (
            lambda x, x_hat: -_squares(x, x_hat).sum(-1) / 2 - _CONSTANT
        ),
        "the constant has the wrong sign": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 - _CONSTANT
        ),
        "this is the mean over the pixels: pixels are independent given z, so their terms add up": (
            lambda x, x_hat: _squares(x, x_hat).mean(-1) / 2 + _LOG_2_PI / 2
        ),
        "this is the mean squared error over the pixels (F.mse_loss): expected their sum, its "
        "factor ½ and the constant": lambda x, x_hat: _squares(x, x_hat).mean(-1),
        "this sums over the batch too: expected one number per image": (
            lambda x, x_hat: (_squares(x, x_hat).sum(-1) / 2 + _CONSTANT).sum()
        ),
        "this is the mean over the batch: expected one number per image": (
            lambda x, x_hat: (_squares(x, x_hat).sum(-1) / 2 + _CONSTANT).mean()
        ),
        "the error is not squared: −log N is quadratic in x − x̂": (
            lambda x, x_hat: (x - x_hat).abs().sum(-1) / 2 + _CONSTANT
        ),
        "one number per pixel: sum them over the last dimension": (
            lambda x, x_hat: _squares(x, x_hat) / 2 + _LOG_2_PI / 2
        ),
    },
)


def _sets(generator: torch.Generator, dtype: torch.dtype) -> Case:
    scales = torch.linspace(3.0, 0.3, _NUM_PIXELS, dtype=dtype)
    mix = torch.randn(_NUM_PIXELS, _NUM_PIXELS, generator=generator, dtype=dtype)
    mix = torch.linalg.qr(mix).Q * scales
    offset = 2 * torch.randn(_NUM_PIXELS, generator=generator, dtype=dtype)
    train, x = (
        torch.randn(size, _NUM_PIXELS, generator=generator, dtype=dtype) @ mix.mT + offset
        for size in (60, _NUM_DATA)
    )
    return {"x": x, "x_train": train, "num_components": 3}


def _pca(x: Tensor, away: Tensor, mean: Tensor, rows: slice) -> Tensor:
    """Projection of x − mean on some principal directions of the rows of `away`, and back."""
    directions = torch.linalg.svd(away, full_matrices=False).Vh[rows]
    return (x - mean) @ directions.mT @ directions + mean


pca_reconstruction = Exercise(
    "pca_reconstruction",
    right=lambda x, train, k: _pca(x, train - train.mean(0), train.mean(0), slice(k)),
    cases=_sets,
    has_gradients=False,
    mistakes={
        "the data are not centred: take the mean of the training images off before the SVD, and "
        "add it again at the end": lambda x, train, k: _pca(
            x, train, torch.zeros_like(train[0]), slice(k)
        ),
        "the mean is not added again": (
            lambda x, train, k: (
                _pca(x, train - train.mean(0), train.mean(0), slice(k)) - train.mean(0)
            )
        ),
        "the images are centred by their own mean: use that of the training images": (
            lambda x, train, k: _pca(x, train - train.mean(0), x.mean(0), slice(k))
        ),
        "the directions are those of x: they are learned from the training images": (
            lambda x, train, k: _pca(x, x - x.mean(0), x.mean(0), slice(k))
        ),
        "these are the last directions, of the least variance: the first ones are wanted": (
            lambda x, train, k: _pca(x, train - train.mean(0), train.mean(0), slice(-k, None))
        ),
        "all directions are used, so nothing is compressed: take the first num_components": (
            lambda x, train, k: x.clone()
        ),
        "one direction too many": (
            lambda x, train, k: _pca(x, train - train.mean(0), train.mean(0), slice(k + 1))
        ),
        "one direction too few": (
            lambda x, train, k: _pca(x, train - train.mean(0), train.mean(0), slice(k - 1))
        ),
        "these are the codes: map them back to pixels, and add the mean": (
            lambda x, train, k: (
                (x - train.mean(0))
                @ torch.linalg.svd(train - train.mean(0), full_matrices=False).Vh[:k].mT
            )
        ),
    },
)


def _codes(generator: torch.Generator, dtype: torch.dtype) -> Case:
    codes = torch.randn(40, 4, generator=generator, dtype=dtype)
    mix = torch.randn(4, 4, generator=generator, dtype=dtype)
    return {"codes": codes @ mix + 1.5}


def _covariance(codes: Tensor) -> Tensor:
    return codes.mT.cov()


fitted_gaussian = Exercise(
    "fitted_gaussian",
    right=lambda codes: (codes.mean(0), _covariance(codes)),
    cases=_codes,
    mistakes={
        "the second moments are not centred: Cov = E[(z − m)(z − m)ᵀ]": (
            lambda codes: (codes.mean(0), codes.mT @ codes / (len(codes) - 1))
        ),
        "the second moments are not centred: Cov = E[(z − m)(z − m)ᵀ], and N − 1 in place of N": (
            lambda codes: (codes.mean(0), codes.mT @ codes / len(codes))
        ),
        "this divides by N: with an estimated mean, N − 1 makes it unbiased": (
            lambda codes: (codes.mean(0), codes.mT.cov(correction=0))
        ),
        "only the variances: codes are correlated, so the whole matrix is needed": (
            lambda codes: (codes.mean(0), codes.var(0))
        ),
        "the covariances are left out: off the diagonal the matrix is not zero": (
            lambda codes: (codes.mean(0), torch.diag(codes.var(0)))
        ),
        "these are standard deviations: a covariance matrix is expected": (
            lambda codes: (codes.mean(0), torch.diag(codes.std(0)))
        ),
        "the sum is not divided by N − 1": (
            lambda codes: (codes.mean(0), _covariance(codes) * (len(codes) - 1))
        ),
        "the mean is over the entries of each code: it is over the codes, dimension 0": (
            lambda codes: (codes.mean(1), _covariance(codes))
        ),
        "this is the correlation matrix: the scales of the codes are lost": (
            lambda codes: (codes.mean(0), codes.mT.corrcoef())
        ),
        "this is the covariance of the data with each other: torch.cov takes variables as rows": (
            lambda codes: (codes.mean(0), codes.cov())
        ),
        "covariance and mean are swapped": lambda codes: (_covariance(codes), codes.mean(0)),
    },
)


def _ends(generator: torch.Generator, dtype: torch.dtype) -> Case:
    start, end = (torch.randn(5, generator=generator, dtype=dtype) for _ in range(2))
    return {"start": start, "end": end, "num_points": 6}


def _shares(number: int, like: Tensor) -> Tensor:
    return torch.linspace(0, 1, number, dtype=like.dtype)[:, None]


def _norm_kept(start: Tensor, end: Tensor, number: int) -> Tensor:
    points = start + _shares(number, start) * (end - start)
    return points / points.norm(dim=1, keepdim=True) * start.norm()


segment = Exercise(
    "segment",
    right=lambda start, end, n: start + _shares(n, start) * (end - start),
    cases=_ends,
    mistakes={
        "the points run from end to start": (
            lambda start, end, n: end + _shares(n, start) * (start - end)
        ),
        "the last point falls short of the end: num_points points make num_points − 1 steps": (
            lambda start, end, n: start + _shares(n + 1, start)[:-1] * (end - start)
        ),
        "the first point is not the start": (
            lambda start, end, n: start + _shares(n + 1, start)[1:] * (end - start)
        ),
        "both ends are left out: they belong to the points": (
            lambda start, end, n: start + _shares(n + 2, start)[1:-1] * (end - start)
        ),
        "one point too many: num_points counts both ends": (
            lambda start, end, n: start + _shares(n + 1, start) * (end - start)
        ),
        "the end is added whole: shares of start and end must sum to one": (
            lambda start, end, n: start + _shares(n, start) * end
        ),
        "the points lie as columns: expected [num_points, Z]": (
            lambda start, end, n: (start + _shares(n, start) * (end - start)).mT
        ),
        "the points are scaled to the norm of the start: a segment is straight": _norm_kept,
    },
)
