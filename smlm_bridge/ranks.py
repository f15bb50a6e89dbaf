"""Several processes that train one network, as ``torchrun`` starts them: what they tell each other."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    """The processes of one training.

    With one process nothing is exchanged and nothing changes.

    Parameters
    ----------
    rank, count
        Number of this process, from 0, and how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """A seed of each process's own; that of the first is the one given.

        The others are drawn from both numbers: ``seed + rank`` would be that of the held-out images.
        """
        if self.first:
            return seed
        return int(np.random.SeedSequence([seed, self.rank]).generate_state(1, np.uint64)[0] >> 1)

    def agreed(self, value: int) -> int:
        """The first process's value."""
        if self.count == 1:
            return value
        told = torch.tensor([value], dtype=torch.int64)
        distributed.broadcast(told, src=0)
        return int(told.item())

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of floats, all of one device, by their mean over the processes, in one exchange."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        parts = torch.split(flat / self.count, [tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.reshape(tensor.shape))

    def gathered(self, tensor: Tensor) -> Tensor:
        """(count, ...) the tensors of all processes, of the CPU and of one size."""
        if self.count == 1:
            return tensor[None]
        found = [torch.empty_like(tensor) for _ in range(self.count)]
        distributed.all_gather(found, tensor)
        return torch.stack(found)


_connections = itertools.count()


@contextmanager
def launched(device: str) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, connected as long as the context lasts; else this one alone.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda[:N]``, where the tensors of ``average`` lie.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        yield Ranks()
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://"))
    # A process may train twice: under the same keys a process would find the first connection's dead addresses.
    store = PrefixStore(f"smlm_bridge/{next(_connections)}", store)
    back_end = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(back_end, store=store, rank=rank, world_size=count)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
