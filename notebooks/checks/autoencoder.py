"""Exercises of notebook 1: a loss that is a likelihood, PCA, and what lies between two codes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from evidence.notebooks.checks.cases import batches, size
from evidence.notebooks.checks.exercise import Case, Exercise

_LOG_2_PI = math.log(2 * math.pi)


def _images(generator: torch.Generator, dtype: torch.dtype, batch: tuple[int, ...]) -> Case:
    shape = (*batch, size(generator, 8, 20))
    x, x_hat = (torch.rand(shape, generator=generator, dtype=dtype) for _ in range(2))
    return {"x": x, "x_hat": x_hat}


def _squares(x: Tensor, x_hat: Tensor) -> Tensor:
    return (x - x_hat).square()


def _constant(x: Tensor) -> float:
    return x.shape[-1] / 2 * _LOG_2_PI


loss = Exercise(
    "loss",
    right=lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + _constant(x),
    cases=batches(_images),
    mistakes={
        "this is the squared error alone: −log N(x; x̂, I) has the factor ½ and the constant "
        "½ D log 2π": lambda x, x_hat: _squares(x, x_hat).sum(-1),
        "the constant ½ D log 2π is missing": lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2,
        "the squared error has lost its factor ½": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) + _constant(x)
        ),
        "the constant is that of one pixel; it belongs to each of the D": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + _LOG_2_PI / 2
        ),
        "the constant has lost its factor ½: it is ½ D log 2π": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + 2 * _constant(x)
        ),
        "the constant is in another logarithm: nats take the natural one, math.log": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + _constant(x) / math.log(10)
        ),
        "D is the number of pixels, x.shape[-1], not the number of images": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + len(x) / 2 * _LOG_2_PI
        ),
        "D is the number of pixels of x, x.shape[-1]; 64 is that of the digits alone": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + 32 * _LOG_2_PI
        ),
        "the norm is not squared: −log N is quadratic in x − x̂": (
            lambda x, x_hat: (x - x_hat).norm(dim=-1) / 2 + _constant(x)
        ),
        "this sums over the batch: pixels are the last dimension": (
            lambda x, x_hat: _squares(x, x_hat).sum(0) / 2 + _constant(x)
        ),
        "this is log p(x | z); the loss is its negative": (
            lambda x, x_hat: -_squares(x, x_hat).sum(-1) / 2 - _constant(x)
        ),
        "the constant has the wrong sign": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 - _constant(x)
        ),
        "this is the mean over the pixels: pixels are independent given z, so their terms add up": (
            lambda x, x_hat: _squares(x, x_hat).mean(-1) / 2 + _LOG_2_PI / 2
        ),
        "this is the mean squared error over the pixels (F.mse_loss): expected their sum, its "
        "factor ½ and the constant": lambda x, x_hat: _squares(x, x_hat).mean(-1),
        "this sums over the batch too: expected one number per image": (
            lambda x, x_hat: (_squares(x, x_hat).sum(-1) / 2 + _constant(x)).sum()
        ),
        "this is the mean over the batch: expected one number per image": (
            lambda x, x_hat: (_squares(x, x_hat).sum(-1) / 2 + _constant(x)).mean()
        ),
        "the error is not squared: −log N is quadratic in x − x̂": (
            lambda x, x_hat: (x - x_hat).abs().sum(-1) / 2 + _constant(x)
        ),
        "one number per pixel: sum them over the last dimension": (
            lambda x, x_hat: _squares(x, x_hat) / 2 + _LOG_2_PI / 2
        ),
        "the squared error is summed over the batch too: over the last dimension alone": (
            lambda x, x_hat: _squares(x, x_hat).sum() / 2 + _constant(x)
        ),
        "the differences are summed before they are squared: square each": (
            lambda x, x_hat: (x - x_hat).sum(-1) ** 2 / 2 + _constant(x)
        ),
        "the squared error has the wrong sign": (
            lambda x, x_hat: -_squares(x, x_hat).sum(-1) / 2 + _constant(x)
        ),
        "the log is missing in the constant: ½ D log 2π": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + x.shape[-1] * math.pi
        ),
        "the constant is log √(2π) of each pixel: its log is missing": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + x.shape[-1] * math.sqrt(2 * math.pi)
        ),
        "the constant has log 2 · π, or log(2) * math.pi: it is the log of the product 2π": (
            lambda x, x_hat: (
                _squares(x, x_hat).sum(-1) / 2 + x.shape[-1] / 2 * math.log(2) * math.pi
            )
        ),
        "the constant has lost the 2 of 2π": (
            lambda x, x_hat: _squares(x, x_hat).sum(-1) / 2 + x.shape[-1] / 2 * math.log(math.pi)
        ),
        "this is the density itself: expected minus its log": (
            lambda x, x_hat: (-_squares(x, x_hat).sum(-1) / 2 - _constant(x)).exp()
        ),
        "this is a cross-entropy, of pixels that are on or off: expected the squared error of a "
        "Gaussian": lambda x, x_hat: F.binary_cross_entropy(x_hat, x, reduction="none").sum(-1),
    },
)


def _sets(generator: torch.Generator, dtype: torch.dtype) -> Case:
    num_pixels, num_data = size(generator, 7, 10), size(generator, 6, 9)
    scales = torch.linspace(3.0, 0.3, num_pixels, dtype=dtype)
    mix = torch.randn(num_pixels, num_pixels, generator=generator, dtype=dtype)
    mix = torch.linalg.qr(mix).Q * scales
    offset = 2 * torch.randn(num_pixels, generator=generator, dtype=dtype)
    train, x = (
        torch.randn(number, num_pixels, generator=generator, dtype=dtype) @ mix.mT + offset
        for number in (size(generator, 50, 80), num_data)
    )
    return {"x": x, "x_train": train, "num_components": size(generator, 2, 4)}


def _directions(away: Tensor, k: int) -> Tensor:
    return torch.linalg.svd(away, full_matrices=False).Vh[:k]


def _scaled_pca(x: Tensor, train: Tensor, k: int) -> Tensor:
    mean, std = train.mean(0), train.std(0)
    return _pca((x - mean) / std, (train - mean) / std, 0 * mean, slice(k)) * std + mean


def _stretched_pca(x: Tensor, train: Tensor, k: int) -> Tensor:
    mean = train.mean(0)
    svd = torch.linalg.svd(train - mean, full_matrices=False)
    return (x - mean) @ svd.Vh[:k].mT * svd.S[:k] @ svd.Vh[:k] + mean


def _columns_pca(x: Tensor, train: Tensor, k: int) -> Tensor:
    mean = train.mean(0)
    columns = torch.linalg.svd(train - mean, full_matrices=False).Vh[:, :k]
    return (x - mean) @ columns @ columns.mT + mean


def _of_training_images(x: Tensor, train: Tensor, k: int) -> Tensor:
    return _pca(train, train - train.mean(0), train.mean(0), slice(k))


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
        "x is not centred: take the mean of the training images off x too, before projecting": (
            lambda x, train, k: (
                x @ _directions(train - train.mean(0), k).mT @ _directions(train - train.mean(0), k)
                + train.mean(0)
            )
        ),
        "x is not centred, and no mean is added at the end": (
            lambda x, train, k: _pca(x, train - train.mean(0), 0 * train[0], slice(k))
        ),
        "the mean is one number, over all pixels: expected one per pixel, mean(0)": (
            lambda x, train, k: _pca(x, train - train.mean(), 0 * train[0] + train.mean(), slice(k))
        ),
        "the mean is over the pixels of an image: it is over the images, dimension 0": (
            lambda x, train, k: _pca(
                x, train - train.mean(1, keepdim=True), x.mean(1, keepdim=True), slice(k)
            )
        ),
        "the mean is added twice": (
            lambda x, train, k: (
                _pca(x, train - train.mean(0), train.mean(0), slice(k)) + train.mean(0)
            )
        ),
        "these are columns of Vᵀ: the principal directions are its first rows, Vh[:k]": (
            _columns_pca
        ),
        "the codes are multiplied by the singular values: projecting needs the directions alone": (
            _stretched_pca
        ),
        "the pixels are divided by their standard deviations: PCA only centres them": _scaled_pca,
        "these are the training images, reconstructed: expected x": _of_training_images,
        "these are the codes: map them back to pixels, and add the mean": (
            lambda x, train, k: (
                (x - train.mean(0))
                @ torch.linalg.svd(train - train.mean(0), full_matrices=False).Vh[:k].mT
            )
        ),
    },
)


def _codes(generator: torch.Generator, dtype: torch.dtype) -> Case:
    num_codes, num_latents = size(generator, 30, 50), size(generator, 3, 6)
    codes = torch.randn(num_codes, num_latents, generator=generator, dtype=dtype)
    mix = torch.randn(num_latents, num_latents, generator=generator, dtype=dtype)
    return {"codes": codes @ mix + 1.5}


def _covariance(codes: Tensor) -> Tensor:
    return codes.mT.cov()


fitted_gaussian = Exercise(
    "fitted_gaussian",
    right=lambda codes: (codes.mean(0), _covariance(codes)),
    cases=_codes,
    has_gradients=False,
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
        "these are standard deviations alone: a covariance matrix is expected": (
            lambda codes: (codes.mean(0), codes.std(0))
        ),
        "the covariance matrix alone: expected the mean before it": _covariance,
        "this is the median: expected the mean": (
            lambda codes: (codes.median(0).values, _covariance(codes))
        ),
        "this is the sum of the codes: the mean divides it by N": (
            lambda codes: (codes.sum(0), _covariance(codes))
        ),
        "the mean is one number, over all entries: expected one per entry, mean(0)": (
            lambda codes: (codes.mean(), _covariance(codes))
        ),
        "this is the Cholesky factor of the covariance matrix: expected the matrix": (
            lambda codes: (codes.mean(0), torch.linalg.cholesky(_covariance(codes)))
        ),
        "this is the inverse, the precision matrix: expected the covariance matrix": (
            lambda codes: (codes.mean(0), torch.linalg.inv(_covariance(codes)))
        ),
    },
)


def _ends(generator: torch.Generator, dtype: torch.dtype) -> Case:
    num_latents = size(generator, 3, 8)
    start, end = (torch.randn(num_latents, generator=generator, dtype=dtype) for _ in range(2))
    return {"start": start, "end": end, "num_points": size(generator, 4, 9)}


def _shares(number: int, like: Tensor) -> Tensor:
    return torch.linspace(0, 1, number, dtype=like.dtype)[:, None]


def _norm_kept(start: Tensor, end: Tensor, number: int) -> Tensor:
    points = start + _shares(number, start) * (end - start)
    return points / points.norm(dim=1, keepdim=True) * start.norm()


def _arc(start: Tensor, end: Tensor, number: int) -> Tensor:
    angle = torch.acos(start @ end / start.norm() / end.norm())
    shares = _shares(number, start)
    return (((1 - shares) * angle).sin() * start + (shares * angle).sin() * end) / angle.sin()


segment = Exercise(
    "segment",
    right=lambda start, end, n: start + _shares(n, start) * (end - start),
    cases=_ends,
    has_gradients=False,
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
        "this is an arc (slerp): a segment is straight": _arc,
        "the difference is end − start, not their sum": (
            lambda start, end, n: start + _shares(n, start) * (start + end)
        ),
        "the start is missing: these are steps from the origin": (
            lambda start, end, n: _shares(n, start) * (end - start)
        ),
        "the distances are not equal: the shares rise evenly, as linspace(0, 1, num_points) does": (
            lambda start, end, n: start + _shares(n, start) ** 2 * (end - start)
        ),
        "num_points is not used: these are the two ends alone": (
            lambda start, end, n: torch.stack([start, end])
        ),
        "the points are scaled to the norm of the start: a segment is straight": _norm_kept,
    },
)
