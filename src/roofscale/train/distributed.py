"""Distributed training: the processes that train one run together, one per GPU, on one machine or several.

torchrun starts them and sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Each process takes its samples
of every batch; DistributedDataParallel averages the gradients. Everything else that they agree on (counts, losses, when
to stop) goes over gloo, from CPU to CPU. The collective functions must be called by all processes in the same order;
a single process has no group and exchanges nothing.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.train import cpu_sync_batchnorm

T = TypeVar("T")

# For a process that hangs; one that dies is noticed at once. Processes wait for each other no longer than rank 0 writes
# a checkpoint, or one validates a few samples more than the others.
_TIMEOUT = datetime.timedelta(minutes=30)
_RANK_SEEDS = 7_368_787  # a prime, so that no two ranks share the seed of a step


def init_process_group(config: RunConfig) -> None:
    """Join the process group that torchrun has started; do nothing if the config asks for one process.

    Raises:
        ConfigError: the number of processes is not the config's, or larger than this machine's number of GPUs.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != config.world_size:
        raise ConfigError(
            f"processes={config.processes} on instance_count={config.instance_count} machines make "
            f"{config.world_size}, "
            f"and {started} were started; start the run by 'roofscale train', or as many by torchrun."
        )
    if started == 1:
        return
    if torch.cuda.is_available():
        if config.processes > torch.cuda.device_count():
            raise ConfigError(
                f"processes={config.processes}: this machine has {torch.cuda.device_count()} GPU, and each process "
                "needs one; lower processes, or choose a compute with more."
            )
        torch.cuda.set_device(_local_rank())
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backends, timeout=_TIMEOUT)


def destroy_process_group() -> None:
    """Wait for the other processes and leave the group.

    Not to be called after an error in one process alone: the others would not reach the barrier.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that train together, over all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, known before the group is joined; rank 0 writes to the run folder."""
    return int(os.environ.get("RANK", 0))


def is_local_rank0() -> bool:
    """Return whether this is the first process of its machine."""
    return _local_rank() == 0


def step_seed(seed: int) -> int:
    """Return this process's seed of a step, so that dropout differs between the processes."""
    return seed + _RANK_SEEDS * (rank() if world_size() > 1 else 0)


def all_gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_mean(value: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over the processes, bit for bit the same in all; float64 if there are several."""
    if world_size() == 1:
        return value
    total = value.to("cpu", torch.float64)
    dist.all_reduce(total)
    return (total / world_size()).to(value.device)


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """Call ``make`` in rank 0 and return its result in every process."""
    if world_size() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(made)
    value: T = made[0]
    return value


def local_rank0_first(make: Callable[[], T]) -> T:
    """Call ``make`` in one process of each machine first, then in the others, which reuse the files it has written."""
    if world_size() == 1:
        return make()
    if not is_local_rank0():
        dist.barrier()
        return make()
    made = make()
    dist.barrier()
    return made


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Return the model with batch normalisation over the samples of all processes, as in a single one."""
    if world_size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        from timm.layers.norm_act import convert_sync_batchnorm  # torch's skips timm's BatchNormAct2d

        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    cpu_sync_batchnorm.install(model, cpu_sync_batchnorm.all_gather)
    return model


def wrap_ddp(model: nn.Module) -> nn.Module:
    """Wrap the model in DistributedDataParallel, which averages the gradients over the processes.

    ``gradient_as_bucket_view`` saves a second copy of the gradients. ``find_unused_parameters`` fixes the order of
    their exchange: otherwise torch rebuilds its buckets after a process's first step, and sums over three or more
    processes would round differently in a resumed run. Buffers need no exchange, because the batch norm statistics are
    global.
    """
    if world_size() == 1:
        return model
    return DistributedDataParallel(
        model, forward_sync_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=True
    )


@contextlib.contextmanager
def maybe_no_sync(net: nn.Module, now: bool) -> Iterator[None]:
    """Defer the exchange of gradients: the passes inside only accumulate them unless ``now``, set for the last part."""
    if now or not isinstance(net, DistributedDataParallel):
        yield
    else:
        with net.no_sync():
            yield


def is_peer_failure(error: BaseException) -> bool:
    """Return whether an error only reports that another process has ended."""
    return world_size() > 1 and isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_ERRORS)


# Words in the messages of gloo and NCCL; torch has no exception class for gloo's.
_PEER_ERRORS = ("gloo/transport", "Connection closed by peer", "NCCL", "TCPStore")


def describe() -> str:
    """Return the number of processes and the backend of their gradients as text; empty for a single process."""
    if world_size() == 1:
        return ""
    return f"{world_size()} ({'nccl' if torch.cuda.is_available() else 'gloo'})"


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))
