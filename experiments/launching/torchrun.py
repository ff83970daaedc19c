"""The processes that `torchrun` starts, which train one pair together."""

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from evidence.experiments.setup.assembly import find_device
from evidence.inference import Ranks


@contextmanager
def ranks_of_torchrun(device: str) -> Generator[Ranks]:
    """The place of this process among them, for as long as they train; alone without `torchrun`.

    They add up by NCCL, each with a GPU of its own, or by Gloo on CPUs.

    Args:
        device: as `--device` has it.

    Raises:
        ValueError: one GPU for all, or fewer than there are processes of this machine.
    """
    if not dist.is_torchelastic_launched():
        yield Ranks()
        return
    is_on_gpus = find_device(device).type == "cuda"
    if is_on_gpus:
        _take_gpu(device)
    dist.init_process_group("nccl" if is_on_gpus else "gloo")
    try:
        yield Ranks.of_torch()
    finally:
        dist.destroy_process_group()


def _take_gpu(device: str) -> None:
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if ":" in device:
        raise ValueError(f"--device {device} is one GPU for all processes: expected --device cuda")
    if number >= count:
        raise ValueError(
            f"process {number} of this machine has no GPU of its own, of which there are {count}: "
            f"expected --nproc-per-node {count}, or --device cpu"
        )
    torch.cuda.set_device(number)
