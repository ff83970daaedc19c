"""What all tests share: the exact oracle, and a clean state of Pyro around every test."""

import functools
import os

# One thread for each worker of pytest-xdist, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pyro
import pytest
import torch
from matplotlib.figure import Figure

from evidence.experiments import cli
from evidence.models import LinearGaussian

torch.set_num_threads(1)  # a plugin may have imported torch before


@pytest.fixture(autouse=True)
def clean_pyro():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="module")
def pictures_of_no_size(request):
    """Commands compose their pictures, but only modules with `DRAWN = True` have them drawn."""
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "DRAWN", False):
            patch.setattr(Figure, "savefig", lambda figure, file, **_: file.write(b"picture"))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_parser_for_all():
    """To build the parser takes as long as many a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "build_parser", functools.cache(cli.build_parser))
        yield


@pytest.fixture
def oracle() -> LinearGaussian:
    """A factor-analysis model in float64, D = 10, Z = 3, whose evidence is known exactly."""
    return make_oracle()


def make_oracle(data_dim: int = 10, latent_dim: int = 3, noise: str = "diagonal") -> LinearGaussian:
    generator = torch.Generator().manual_seed(1)
    model = LinearGaussian(data_dim, latent_dim, noise=noise).double()
    with torch.no_grad():
        for parameter, scale in ((model.weight, 0.25), (model.loc, 1.0), (model.log_scale, 0.1)):
            draws = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(scale * draws)
    return model.requires_grad_(False)


def pytest_collection_modifyitems(items):
    """What is long is slow, too."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)
