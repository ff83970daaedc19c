"""Faster float32 matrix products on CPUs, where they are as exact."""

import functools
from collections.abc import Generator
from contextlib import contextmanager

import torch

_SIZE = 256


@contextmanager
def fast_matmul(device: torch.device) -> Generator[None]:
    """Let oneDNN multiply float32 matrices on a CPU, if its error is that of the default library.

    torch's precision "medium" selects oneDNN, which is faster than the default on many CPUs; on
    some it rounds to bfloat16, and on GPUs to TF32, so it is measured first, and never used there.
    A setting other than torch's default is the user's, and stays.
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
    return matmul_error("medium") < 4 * matmul_error("highest")


def matmul_error(precision: str) -> float:
    """Largest error of a float32 product at this precision, relative to the largest entry."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, _SIZE, _SIZE, generator=generator)
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        return ((a @ b).double() - exact).abs().max().item() / exact.abs().max().item()
    finally:
        torch.set_float32_matmul_precision(before)
