"""A GPU that is not there: tensors that say they lie on one, and a count of what a real one would have to do.

PyTorch's FakeTensorMode cannot move a module to a GPU where PyTorch is built without CUDA, and knows no values, so that
a search for a region would end there. Here every tensor lies in the memory of the CPU and is computed there. Which of
them stand for the GPU's is remembered by their storage.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parents[1]
WAITING = {  # the host waits for their result, since its value or its size is needed
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
}
NO_KERNEL = {"detach", "alias", "lift_fresh", "empty", "empty_like", "empty_strided", "_unsafe_view", "set_", "resize_"}
COPIES = {"copy_", "_to_copy", "clone", "set_"}
TO_HOST = {"cpu", "numpy", "tolist", "__array__"}
FROM_LISTS = {"as_tensor", "tensor", "asarray"}


class FakeGpu:
    """What stands for a GPU and its memory.

    Attributes:
        kernels: Number of kernels by name of the operation; one of several tensors (foreach, fused) counts once.
        waits: Number of times that the host waits for the GPU, by operation and the line of this project that asks.
        mixed: Operations on tensors of the CPU and the GPU, which a real one refuses, with the line.
    """

    def __init__(self) -> None:
        self.kernels, self.waits, self.mixed = Counter(), Counter(), Counter()
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, or another could get a number again

    def reset(self) -> None:
        """Forget what was counted, not which tensors lie here."""
        for counter in (self.kernels, self.waits, self.mixed):
            counter.clear()

    def holds(self, value) -> bool:
        """Return whether a value is a tensor here."""
        return isinstance(value, torch.Tensor) and _storage(value)._cdata in self._storages

    def take(self, value) -> None:
        """Take a tensor, or all in a structure, into this memory."""
        for tensor in _tensors(value):
            storage = _storage(tensor)
            self._storages[storage._cdata] = storage

    def release(self, value) -> None:
        """Give a tensor, or all in a structure, back to the CPU."""
        for tensor in _tensors(value):
            self._storages.pop(_storage(tensor)._cdata, None)

    def wait(self, name: str) -> None:
        """Count that the host waits."""
        self.waits[f"{name} {_line()}"] += 1

    @contextlib.contextmanager
    def working(self) -> Iterator["FakeGpu"]:
        """Stand for ``torch.device("cuda")`` in the block."""
        grouped = torch._C._group_tensors_by_device_and_dtype

        def by_device(*args, **kwargs):  # asks in C++, past us
            groups = grouped(*args, **kwargs)
            named = {}
            for (device, dtype), (tensors, places) in groups.items():
                here = any(self.holds(tensor) for tensor in tensors[0])
                named[GPU if here else device, dtype] = (tensors, places)
            return named

        load = torch.load

        def loaded(*args, map_location=None, **kwargs):
            found = load(*args, map_location="cpu", **kwargs)
            if _is_gpu(map_location):
                self.take(found)
            return found

        patched = mock.patch("torch._C._group_tensors_by_device_and_dtype", by_device), mock.patch("torch.load", loaded)
        with patched[0], patched[1], _Devices(self), _Operations(self):
            yield self


def _tensors(value) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def _line() -> str:
    """Return the innermost line of this project, tests left out, that is being run."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(str(ROOT / "bundles")):
            return f"{Path(frame.filename).relative_to(ROOT / 'bundles')}:{frame.lineno}"
    passed = ("fake_gpu", "/torch/", "contextlib")
    last = [frame for frame in traceback.extract_stack() if not any(part in frame.filename for part in passed)][-1]
    return f"{'/'.join(Path(last.filename).parts[-3:])}:{last.lineno}"


def _is_gpu(value) -> bool:
    return (isinstance(value, str) and value.split(":")[0] == "cuda") or (
        isinstance(value, torch.device) and value.type == "cuda"
    )


def _is_device(value) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu"))


class _Devices(TorchFunctionMode):
    """What a call says about devices: which it asks for, and where a tensor lies."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name, gpu = dict(kwargs or {}), getattr(func, "__name__", ""), self.gpu
        if name == "__get__" and args:
            here = gpu.holds(args[0])
            if func == torch.Tensor.device.__get__:
                return GPU if here else func(*args)
            if func == torch.Tensor.is_cuda.__get__:
                return here
        if name == "__deepcopy__":
            found = func(*args, **kwargs)
            if gpu.holds(args[0]):
                gpu.take(found)
            return found
        if name in TO_HOST and args and gpu.holds(args[0]):
            if name in ("numpy", "__array__"):
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            gpu.wait(name)
            found = func(args[0].clone(), *args[1:], **kwargs)
            gpu.release(found)
            return found
        if name in ("cuda", "pin_memory"):
            args = (*args, GPU) if name == "cuda" else args
            func, name = (torch.Tensor.to, "to") if name == "cuda" else (func, name)
        asked = [value for value in (*args, *kwargs.values()) if _is_device(value)]
        if name == "to" and not asked and len(args) > 1 and isinstance(args[1], torch.Tensor):
            asked = [GPU if gpu.holds(args[1]) else torch.device("cpu")]  # as another tensor
        if not asked or func is torch.device or name in ("_parse_to", "device", "__new__"):
            return func(*args, **kwargs)
        wanted = _is_gpu(asked[0])
        args = tuple(torch.device("cpu") if _is_device(value) else value for value in args)
        kwargs = {key: torch.device("cpu") if _is_device(value) else value for key, value in kwargs.items()}
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        found = func(*args, **kwargs)
        if not isinstance(found, torch.Tensor):
            return found
        moved = source is not None and (name == "to" or name in FROM_LISTS)
        if moved and gpu.holds(source) != wanted:
            if _storage(found)._cdata == _storage(source)._cdata:
                found = found.clone()
            if not kwargs.get("non_blocking", False) and not (name == "to" and True in args[2:4]):
                gpu.wait("copy to the GPU" if wanted else "copy to the host")
        elif name in FROM_LISTS and source is None and wanted:
            gpu.wait("copy to the GPU")
        (gpu.take if wanted else gpu.release)(found)
        return found


class _Operations(TorchDispatchMode):
    """What an operation does: a kernel, a wait, or a mistake."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name, gpu = kwargs or {}, func._schema.name.removeprefix("aten::"), self.gpu
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here = [gpu.holds(tensor) for tensor in given]
        found = func(*args, **kwargs)
        if not any(here):
            return found
        elsewhere = [tensor for tensor, inside in zip(given, here) if not inside and tensor.ndim]
        if name == "copy_":
            if elsewhere and not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking"):
                gpu.wait("copy_")
            if not here[0]:
                return found
        elif elsewhere and name not in COPIES:
            if name.startswith("index"):
                gpu.wait(f"{name} by an index on the CPU")
            else:
                gpu.mixed[f"{name} {_line()}"] += 1
        if name in WAITING or (name == "index" and any(_is_mask(index) for index in args[1])):
            gpu.wait(name)
        if name == "index_put_" and any(_is_mask(index) for index in args[1]) and args[2].numel() > 1:
            gpu.wait(name)
        if not func.is_view and name not in NO_KERNEL:
            gpu.kernels[name] += 1
        gpu.take(found)
        return found


def _is_mask(index) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
