"""The precision that evidence is computed in."""

import copy
from dataclasses import replace

import torch

from evidence.experiments.setup.assembly import Assembly
from evidence.models import AbstractModel

_FEW = 1000  # parameters, of models without networks


def in_dtype(assembly: Assembly, dtype: str) -> Assembly:
    """The assembly with its data and copies of its programs in that dtype; "auto" chooses.

    Args:
        assembly: of a trained pair, in float32.
        dtype: "float32", "float64", or "auto": float64 for models of few parameters.
    """
    if dtype_of(assembly.model, dtype) == torch.float32:
        return assembly
    model, guide = copy.deepcopy((assembly.model, assembly.guide))  # which may share modules
    x_test = assembly.x_test.double()
    return replace(assembly, model=model.double(), guide=guide.double(), x_test=x_test)


def dtype_of(model: AbstractModel, dtype: str) -> torch.dtype:
    """The torch dtype of this name; of "auto", what the model is to be computed in."""
    if dtype == "auto":
        few = sum(parameter.numel() for parameter in model.parameters()) < _FEW
        return torch.float64 if few else torch.float32
    return {"float32": torch.float32, "float64": torch.float64}[dtype]
