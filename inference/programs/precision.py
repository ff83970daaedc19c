"""Faster float32 matrix products on CPUs, where they are as exact."""

import functools
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

import torch

_SIZE = 256
_SWITCH = "EVIDENCE_MATMUL"

logger = logging.getLogger("evidence")


def in_double(dtype: torch.dtype) -> str:
    """What to do where a log joint is no number in a dtype, in words."""
    if dtype == torch.float64:
        return (
            "write it so that it is a number there, as of the logarithm of a scale (pyro.factor "
            "takes any log-density)"
        )
    return (
        "compute in float64 (torch.set_default_dtype(torch.float64), x.double(), and "
        "model.double() of a module; --dtype float64)"
    )


@contextmanager
def fast_matmul(device: torch.device) -> Generator[None]:
    """Let oneDNN multiply float32 matrices on a CPU, if its error is that of the default library.

    torch's precision "medium" selects oneDNN, which is faster than the default on many CPUs; on
    some it rounds to bfloat16, and on GPUs to TF32, so it is measured first, and never used there.
    A setting other than torch's default is the user's, and stays; with EVIDENCE_MATMUL=default in
    the environment so does torch's default. The logger "evidence" says what is used, as INFO.
    """
    before = torch.get_float32_matmul_precision()
    try:
        if device.type == "cpu" and before == "highest" and medium_is_exact():
            torch.set_float32_matmul_precision("medium")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def medium_is_exact() -> bool:
    """Whether the precision "medium" keeps float32's error on this machine's CPU."""
    if os.environ.get(_SWITCH) == "default":
        logger.info("float32 matrix products: torch's default, as %s says", _SWITCH)
        return False
    fast, usual = matmul_error("medium"), matmul_error("highest")
    name = "oneDNN's" if fast < 4 * usual else "torch's default"
    logger.info(
        "float32 matrix products: %s (errors: oneDNN %.0e, default %.0e)", name, fast, usual
    )
    return fast < 4 * usual


def matmul_error(precision: str) -> float:
    """Largest error of a float32 product at this precision, relative to the largest entry."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, _SIZE, _SIZE, generator=generator, dtype=torch.float32)
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        return ((a @ b).double() - exact).abs().max().item() / exact.abs().max().item()
    finally:
        torch.set_float32_matmul_precision(before)
