"""Tensors that a module has and that nothing around it sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._runtime.tracing import refuse_scripting


class Frozen(nn.Module):
    """A module with constants, which are neither parameters nor buffers.

    No optimizer, checkpoint or ``.train()`` finds them, and ``DistributedDataParallel``, which
    sends all buffers to all processes at each forward, has nothing to send. ``.to()`` moves them.
    Their values outlive any move: a module on the meta device keeps them where they were, and
    ``to_empty()`` does not erase them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants: dict[str, Tensor] = {}
        # An empty tensor with the device and the dtype that the module has been moved to.
        self._place = torch.empty(0, dtype=torch.float32)

    __prepare_scriptable__ = refuse_scripting

    @property
    def device(self) -> torch.device:
        """The device of the constants."""
        return self._place.device

    def constant(self, name: str) -> Tensor:
        """The constant of that name, on the module's device."""
        return self._constants[name].to(self.device, self._dtype_of(name))

    # A first call may load constants in inference mode, and a later one may train with them.
    @torch.inference_mode(False)
    def _keep(self, constants: Mapping[str, Tensor]) -> None:
        """Keeps copies of these tensors."""
        for name, value in constants.items():
            copied = value.detach().to(dtype=self._dtype_of(name), copy=True)
            if copied.dim() == 4:
                copied = copied.contiguous(memory_format=torch.channels_last)
            self._constants[name] = copied
        self._move()

    def _move(self) -> None:
        if self.device.type != "meta":
            self._constants = {name: self.constant(name) for name in self._constants}

    def _dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a constant; float32 by default, wherever the module goes."""
        return torch.float32

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # `fn` may return uninitialised values, as in `to_empty()`: only its device and dtype count.
        self._place = fn(self._place)
        self._move()
        return self
