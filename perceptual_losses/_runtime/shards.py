"""Batches that are distributed over processes as a `DTensor`.

Each process computes the values of its own entries, and torch adds them up. No kernel knows of
other processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter, type(None))


def is_distributed(value: Any) -> bool:
    """Whether the value is a DTensor. If their module is not imported yet, there are none."""
    if type(value) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def evaluate_shards(
    compute: Callable[..., Sequence[Tensor]], reduction: str, **batches: Any
) -> list[Tensor]:
    """The values of all entries, distributed as the batches are, or their means.

    Args:
        compute: a function of the local batches, in their order here, that returns tensors
            ``(N, ...)`` of values.
        reduction: ``"none"``, or ``"mean"`` for the mean of the whole batch, which each process
            gets.
        batches: batches by name, with ``x`` first. A batch that is left out is ``None``.

    Raises:
        ValueError: a batch is not distributed over its first axis, or not like the others.
    """
    given = {name: batch for name, batch in batches.items() if batch is not None}
    _check_alike(given)
    local = {name: batch.to_local() for name, batch in given.items()}
    # A process without entries computes a made-up one: it must not be the only one that fails.
    is_empty = len(local["x"]) == 0 < len(given["x"])
    if is_empty:
        local = {name: torch.cat([a, a.new_ones(1, *a.shape[1:])]) for name, a in local.items()}
    found = compute(*[local.get(name) for name in batches])
    if is_empty:
        found = [values[:0] for values in found]
    combine = _mean if reduction == "mean" else _joined
    return [combine(values, given["x"]) for values in found]


def _joined(values: Tensor, x: Any) -> Tensor:
    """The values of all entries, distributed like ``x``."""
    from torch.distributed.tensor import DTensor

    # Without a shape torch would assume that all shards are equally long.
    whole = torch.empty(len(x), *values.shape[1:], device="meta")
    return DTensor.from_local(
        values,
        *(x.device_mesh, x.placements),
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def _mean(values: Tensor, x: Any) -> Tensor:
    """The mean of all entries, replicated on each process, where `item` then gives it.

    In inference mode torch refuses `item` of every DTensor: `to_local` gives the mean there.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = x.device_mesh
    # Divided before it is a DTensor: older releases of torch divide a DTensor by the number that an
    # earlier call divided by.
    share = values.sum() / (len(x) * values[:1].numel() if len(values) else 1)
    placements = [Partial() if place.is_shard() else place for place in x.placements]
    partial = DTensor.from_local(share, mesh, placements, run_check=False)
    return partial.redistribute(placements=[Replicate()] * mesh.ndim)


def _check_alike(batches: dict[str, Any]) -> None:
    """Refuses batches that are not distributed over their first axis, or not like each other."""
    from torch.distributed.tensor import Replicate, Shard

    for name, batch in batches.items():
        if not is_distributed(batch):
            other = next(name for name, batch in batches.items() if is_distributed(batch))
            raise ValueError(
                f"{other} is a DTensor and {name} is not: pass distribute_tensor({name}, "
                f"{other}.device_mesh, {other}.placements), with an entry for each image, or the "
                f"local part of all, such as {other}.to_local()"
            )
    x = batches["x"]
    for name, batch in batches.items():
        for placement in batch.placements:
            if type(placement) not in (Shard, Replicate) or getattr(placement, "dim", 0) != 0:
                raise ValueError(
                    f"{name} has the placements {batch.placements}, and only a batch can be "
                    f"distributed: pass {name}.redistribute(placements=[Shard(0)]), for a mesh of "
                    f"one dimension, or {name}.full_tensor()"
                )
        if (batch.device_mesh, batch.placements) != (x.device_mesh, x.placements):
            raise ValueError(
                f"x has the placements {x.placements} and {name} {batch.placements}: pass "
                f"{name}.redistribute(x.device_mesh, x.placements)"
            )
        if len(batch) != len(x):
            raise ValueError(
                f"x has shape {tuple(x.shape)} and {name} {tuple(batch.shape)}, and both are "
                "distributed: pass an entry for each image, with expand()"
            )
