"""Tensors by particle and datum as the object of whichever ArviZ is installed."""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray
from torch import Tensor

Groups = dict[str, dict[str, Tensor]]  # name of the group -> name of the variable -> tensor
Labels = Mapping[str, Sequence[Hashable]]

# What is of the model alone, and what has no dim of draws.
_OF_THE_MODEL = ("prior", "prior_predictive", "observed_data")
_PER_DATUM = (("observed_data", None), ("sample_stats", "k_hat"))


class Plates(NamedTuple):
    """The names of every site's plates, from the left.

    Args:
        of_values: of its values.
        of_likelihoods: of its log-likelihoods, which may be sums over some of them.
    """

    of_values: dict[str, list[str]]
    of_likelihoods: dict[str, list[str]]


@dataclass(frozen=True)
class Axes:
    """The dims of all variables: (chain, draw, guide, datum, …), and the labels along them.

    Args:
        num_chains: C.
        num_draws: draws per chain; S = C × num_draws.
        several: whether there is a dim of guides.
        dims: names of a variable's own dims, which come last.
        coords: labels of any dim; 0, 1, … otherwise.
        plates: of every site, where data share latents: their variables have no dim of data.
    """

    num_chains: int
    num_draws: int
    several: bool
    dims: Mapping[str, Sequence[str]]
    coords: Labels
    plates: Plates | None = None

    def datasets(self, parts: Sequence[Groups]) -> dict[str, xarray.Dataset]:
        """One dataset per group out of the groups of every guide.

        Variables are `[S, M, ...]`, or `[M, ...]` if there is one value for all draws.

        Raises:
            ValueError: dims or coords that do not fit.
        """
        known = {name for named in parts[0].values() for name in named}
        if unknown := sorted(set(self.dims) - known):
            raise ValueError(f"expected dims of {sorted(known)}, got {unknown}")
        datasets = {
            group: xarray.Dataset({name: self._variable(group, name, parts) for name in named})
            for group, named in parts[0].items()
        }
        sizes = {str(dim): size for ds in datasets.values() for dim, size in ds.sizes.items()}
        for dim, labels in self.coords.items():
            if sizes.get(dim) != len(labels):
                raise ValueError(
                    f"expected coords of dims among {sizes}, got {len(labels)} labels for {dim!r}"
                )
        return {
            group: ds.assign_coords(
                {d: list(self.coords.get(d, range(sizes[d]))) for d in map(str, ds.dims)}
            )
            for group, ds in datasets.items()
        }

    def _variable(self, group: str, name: str, parts: Sequence[Groups]) -> xarray.Variable:
        per_draw = not {(group, None), (group, name)} & set(_PER_DATUM)
        arrays = [self._chains(part[group][name], per_draw) for part in parts if group in part]
        sample = ("chain", "draw") if per_draw else ()
        if self.plates is not None:  # one weight, whose dim says nothing
            arrays = [array.squeeze(len(sample)) for array in arrays]
        data = () if self.plates is not None else ("datum",)
        own = arrays[0].ndim - len(sample) - len(data)
        dims = (*sample, *data, *self._own_dims(group, name, own))
        if not self.several or group in _OF_THE_MODEL:
            return xarray.Variable(dims, arrays[0])
        stacked = np.stack(arrays, axis=len(sample))
        return xarray.Variable((*sample, "guide", *dims[len(sample) :]), stacked)

    def _chains(self, tensor: Tensor, per_draw: bool) -> np.ndarray:
        if per_draw:
            tensor = tensor.unflatten(0, (self.num_chains, self.num_draws))
        return tensor.detach().cpu().numpy()

    def _own_dims(self, group: str, name: str, number: int) -> tuple[str, ...]:
        if number == 0:
            return ()
        plates = [] if self.plates is None else self.plates.of_values.get(name, [])
        if group == "log_likelihood":  # has no event, and may be a sum over some of the plates
            kept = [] if self.plates is None else self.plates.of_likelihoods.get(name, [])
            named = dict(zip(plates, self.dims.get(name, map(self._free, plates)), strict=False))
            return tuple(named[plate] for plate in kept)
        event = [f"{name}_dim_{i}" for i in range(number - len(plates))]
        names = tuple(self.dims.get(name, [*map(self._free, plates), *event]))
        if len(names) != number:
            raise ValueError(f"expected {number} dims for {name!r}, got {list(names)}")
        return names

    def _free(self, plate: str) -> str:
        """The plate's name, unless a variable has it."""
        taken = self.plates is not None and plate in self.plates.of_values
        return f"{plate}_plate" if taken else plate


def arviz_object(datasets: Mapping[str, xarray.Dataset], attrs: Mapping[str, Any]) -> Any:
    """`arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (1.x) of these groups."""
    groups: dict[str, Any] = {
        name: dataset.assign_attrs(attrs) for name, dataset in datasets.items()
    }
    if int(version("arviz").split(".")[0]) >= 1:
        return xarray.DataTree.from_dict(groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the 0.x line says at import
        import arviz  # noqa: PLC0415
    return arviz.InferenceData(**groups)


def library_attrs() -> dict[str, Any]:
    """Which libraries made the draws, by the names of ArviZ's schema."""
    return {
        "inference_library": "pyro-ppl",
        "inference_library_version": version("pyro-ppl"),
        "creation_library": "evidence",
        "torch_version": str(torch.__version__),
    }
