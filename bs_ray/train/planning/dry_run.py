"""Run the product's own code on shapes alone, to see what it holds in memory and how much it
computes.

Within a `DryRun`, a base on the meta device (`load_base(..., device="meta")`) takes real steps
whose tensors have sizes and no numbers. This takes seconds for any size, and no memory. So a plan's
figures come from the code that trains, not from a formula that repeats it.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
FUSED_ATTENTION = _ATEN._scaled_dot_product_flash_attention_for_cpu
OTHER = "other"


class DryRun:
    """A context that counts the bytes of meta tensors that were made within it and are alive.

    Where the code reads numbers (losses, samples for storage), it reads ones.
    """

    def __init__(self) -> None:
        self.live: Counter[str] = Counter()
        """Bytes by the label that was set when the tensors were made."""
        self.peak: Counter[str] = Counter()
        """`live` as it was when the sum was highest since `mark`."""
        self.label = OTHER
        self._sum = self._peak_sum = 0
        self._known: set[int] = set()
        self._stack = ExitStack()

    def __enter__(self) -> DryRun:
        # What was there before is not counted, and looking through it again at every mark would
        # take most of the time.
        gc.freeze()
        self._stack.callback(gc.unfreeze)
        self._stack.enter_context(_fused_attention())
        self._stack.enter_context(_Watch(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def mark(self) -> int:
        """Measure the peak from now on. Returns the bytes that are live now."""
        gc.collect()
        self._peak_sum, self.peak = self._sum, self.live.copy()
        return self._sum

    def labelled(self, label: str, modules: Iterable[nn.Module]) -> None:
        """Count what the forward passes of these modules make under `label`."""

        def before(*_: Any) -> None:
            self.label = label

        def after(*_: Any) -> None:
            self.label = OTHER

        for module in modules:
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)

    def made(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            size, label = storage.nbytes(), self.label
            self.live[label] += size
            self._sum += size
            if self._sum > self._peak_sum:
                self._peak_sum, self.peak = self._sum, self.live.copy()
            weakref.finalize(storage, self._freed, key, size, label).atexit = False

    def _freed(self, key: int, size: int, label: str) -> None:
        self._known.discard(key)
        self.live[label] -= size
        self._sum -= size


class _Watch(TorchDispatchMode):
    """Sees every operation below autograd, in the backward pass too."""

    def __init__(self, run: DryRun):
        super().__init__()
        self.run = run

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        source = args[0] if args else None
        if isinstance(source, Tensor) and source.is_meta:
            if func is _ATEN._local_scalar_dense.default:
                return torch.ones((), dtype=source.dtype).item()
            if func is _ATEN._to_copy.default and _leaves(kwargs):
                return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        result = func(*args, **kwargs)
        for found in result if isinstance(result, tuple | list) else (result,):
            if isinstance(found, Tensor) and found.is_meta:
                self.run.made(found)
        return result


def _leaves(kwargs: dict) -> bool:
    """Whether a copy with these settings leaves the meta device."""
    device = kwargs.get("device")
    return device is not None and device.type != "meta"


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Fused attention, as CPUs and GPUs have it; the meta device would materialise its matrix.

    It replaces the function by name, since a TorchFunctionMode is off while gradient checkpointing
    recomputes.
    """
    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (_fused if query.is_meta else plain)(query, *args, **kwargs)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    attended: Tensor = FUSED_ATTENTION(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return attended


class RowCount:
    """Rows that a network has seen; a row that is trained counts `trained` times (docs/method.md,
    "Training")."""

    def __init__(self, network: nn.Module, trained: int = 3):
        self.rows, self.trained = 0, trained
        self._hook = network.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, network: nn.Module, args: tuple, kwargs: dict) -> None:
        first = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        self.rows += len(first) * (self.trained if torch.is_grad_enabled() else 1)

    def close(self) -> None:
        """Stop counting."""
        self._hook.remove()
