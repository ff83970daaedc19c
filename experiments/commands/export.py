"""`evidence export`: draws, predictions and weights of trained runs as netCDF, for ArviZ."""

import io
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5netcdf
import xarray
from torch import Tensor
from xarray.backends import H5NetCDFStore

from evidence.experiments.commands.evaluate import chosen_data
from evidence.experiments.config import Export
from evidence.experiments.reports.report import markdown
from evidence.experiments.setup import datasets
from evidence.experiments.setup.assembly import Assembly
from evidence.experiments.setup.one_model import load_runs
from evidence.experiments.storage.files import write
from evidence.experiments.storage.runs import RunFolder
from evidence.inference.diagnostics.arviz_export import to_arviz
from evidence.models import AbstractModel

NAME = "posterior.nc"

Groups = Mapping[str, xarray.Dataset]


def export(config: Export) -> None:
    """Draw, write the file in full or not at all, and print what is in it."""
    path = _free_path(config)
    with RunFolder(config.runs[0]).locked() if config.out is None else nullcontext():
        pairs = load_runs(config.runs, config)
        first = next(iter(pairs.values()))
        num_data = None if first.is_joint else config.num_data
        rows, x = chosen_data(first, num_data)
        result = to_arviz(
            first.model,
            _guides(pairs),
            x,
            num_draws=config.num_draws,
            num_chains=config.num_chains,
            prior=config.prior,
            predictive=config.predictive,
            dims=_dims(first, config),
            coords={} if first.is_joint else {"datum": rows.tolist()},
            seed=config.seed,
            progress=sys.stderr.isatty(),
        )
        groups = groups_of(result)
        print(group_table(groups), flush=True)
        payload = to_netcdf(groups, _attributes(first, rows))
        write(path, payload)
    print(f"\nwrote {path} ({len(payload) / 2**20:.1f} MiB): arviz.from_netcdf reads it")


def to_netcdf(groups: Groups, attributes: Mapping[str, Any]) -> bytes:
    """A netCDF file, made in memory: HDF5 itself crashes where a disk is full."""
    file = io.BytesIO()
    with h5netcdf.File(file, "w") as root:
        root.attrs.update(attributes)
        for name, dataset in groups.items():
            store = H5NetCDFStore(root, group=f"/{name}", mode="a")
            encoding = {
                variable: {"zlib": True}
                for variable, values in dataset.variables.items()
                if values.dtype.kind in "biuf"
            }
            dataset.dump_to_store(store, encoding=encoding)
            store.sync()
    return file.getvalue()


def _free_path(config: Export) -> Path:
    """Where to write, before anything is drawn.

    Raises:
        ValueError: the folder is missing, or there is a file and no leave to replace it.
    """
    path = Path(config.out) if config.out else RunFolder(config.runs[0]).path / NAME
    if config.out and not path.parent.is_dir():
        raise ValueError(f"--out {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder: expected the name of a file, such as {NAME}")
    if path.exists() and not config.overwrite:
        raise ValueError(
            f"{path} exists already: pass --overwrite true to replace it, or choose another --out"
        )
    return path


def _guides(pairs: Mapping[str, Assembly]) -> Any:
    """One guide, or several by label along a dim `guide`."""
    guides = {label: assembly.guide for label, assembly in pairs.items()}
    return guides if len(guides) > 1 else next(iter(guides.values()))


def _dims(assembly: Assembly, config: Export) -> dict[str, list[str]]:
    """Names of the dims of latents and data: `latent` of a single site, `pixel` of images."""
    model, images = assembly.model, assembly.dataset.image_shape is not None
    if not isinstance(model, AbstractModel):
        return {}
    sites = list(model.latents)
    latents = {site: ["latent" if len(sites) == 1 else f"{site}_entry"] for site in sites}
    # A labelled image has its one-hot label behind its pixels.
    return latents | {"x": ["pixel" if images and not model.labelled else "entry"]}


def _attributes(assembly: Assembly, rows: Tensor) -> dict[str, Any]:
    """Which model, data and software: what a result must be recorded with."""
    config = assembly.config
    return {
        "model": config.model,
        "data": config.data,
        "split": config.split,
        "binarize": config.binarize,
        "data_sha256": assembly.dataset.sha256,
        "test_sha256": datasets.digest(assembly.x_test),
        "num_data": len(rows),
    }


def groups_of(result: Any) -> dict[str, xarray.Dataset]:
    """The datasets by group, of `InferenceData` (ArviZ 0.x) or `DataTree` (1.x)."""
    if isinstance(result, xarray.DataTree):
        return {name: node.to_dataset() for name, node in result.children.items()}
    return {name: result[name] for name in result.groups()}


def group_table(groups: Groups) -> str:
    """The Markdown table of the groups: their variables with dims and sizes."""
    lines = [
        {
            "group": group,
            "variable": str(name),
            "dims": ", ".join(f"{dim} {size:,}" for dim, size in variable.sizes.items()),
            "type": str(variable.dtype),
            "MiB": f"{variable.nbytes / 2**20:.2f}",
        }
        for group, dataset in groups.items()
        for name, variable in dataset.data_vars.items()
    ]
    return markdown(lines, left=["variable", "dims", "type"])
