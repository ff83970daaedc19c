"""The precision that evidence is computed in."""

import copy
from dataclasses import replace

import torch
from torch import nn

from evidence.experiments.own.arguments import each_tensor
from evidence.experiments.own.program import OwnProgram
from evidence.experiments.setup.assembly import Assembly
from evidence.inference.programs.data import Batch

_FEW = 1000  # parameters, of models without networks


def in_dtype(assembly: Assembly, dtype: str) -> Assembly:
    """The assembly with its data, and copies of its programs, in that dtype; "auto" chooses.

    A user's own programs are changed themselves: what a function refers to cannot be copied.

    Args:
        assembly: of a trained pair.
        dtype: "float32", "float64", or "auto": float64 for models of few parameters, and that of
            the training for a user's own.
    """
    wanted = dtype_of(assembly.model, dtype)
    if assembly.x_test.dtype == wanted:
        return assembly
    pair = assembly.model, assembly.guide
    if not any(isinstance(program, OwnProgram) for program in pair):
        pair = copy.deepcopy(pair)  # together, as they may share modules
    model, guide = (program.to(wanted) for program in pair)
    for program in pair:
        if isinstance(program, OwnProgram):
            program.dtype = wanted
            torch.set_default_dtype(wanted)
    return replace(assembly, model=model, guide=guide, x_test=as_dtype(assembly.x_test, wanted))


def as_dtype(x: Batch, dtype: torch.dtype) -> Batch:
    """The data with their real numbers in that dtype."""
    return each_tensor(x, lambda t: t.to(dtype) if t.is_floating_point() else t)


def dtype_of(model: nn.Module, dtype: str) -> torch.dtype:
    """The torch dtype of this name; of "auto", what the model is to be computed in."""
    if dtype == "auto" and isinstance(model, OwnProgram):
        return model.dtype
    if dtype == "auto":
        few = sum(parameter.numel() for parameter in model.parameters()) < _FEW
        return torch.float64 if few else torch.float32
    return {"float32": torch.float32, "float64": torch.float64}[dtype]
