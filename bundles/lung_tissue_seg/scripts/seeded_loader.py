"""A loader whose batches are the same for any number of workers.

Both bundles have this file, letter by letter, since neither may read from the other.
"""

import os
from collections.abc import Callable, Iterator

import torch
from monai.data import DataLoader
from monai.data.utils import list_data_collate
from monai.transforms import Compose, Randomizable
from monai.transforms.transform import MAX_SEED
from torch.utils.data import Dataset, RandomSampler, Sampler, SequentialSampler

MOST_WORKERS = 8


def loader_workers() -> int:
    """Return how many processes cut patches beside the one that trains: none on two cores, eight on sixteen or more.

    Half of the cores that this process may use, shared with the other processes of torchrun; ``OMP_NUM_THREADS`` counts
    as a number of cores. A process that has no core of its own would slow the training down.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("OMP_NUM_THREADS") or cores))
    return min(cores // 2, MOST_WORKERS) if cores > 2 else 0


class SeededLoader(DataLoader):
    """A DataLoader in which all that is random follows from an item's place in the epoch, not from who makes it.

    Args:
        dataset: Dataset whose ``transform`` is a Compose.
        draw: What is drawn for a whole batch, a function of the collated batch that uses PyTorch's global randomness;
            nothing if None.
        sampler: Which items come, in which order.
        shuffle: Whether all items come in random order, where there is no sampler.
        settings: Other arguments of a DataLoader.
    """

    def __init__(
        self, dataset: Dataset, draw: Callable[[dict], dict] | None = None, sampler: Sampler | None = None,
        shuffle: bool = False, **settings,
    ) -> None:  # fmt: skip
        if sampler is None:
            sampler = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
        super().__init__(
            SeededBatches(dataset, draw), sampler=SeededSampler(sampler), collate_fn=_made_already, **settings
        )
        # MONAI begins the global randomness anew where there are no workers, and only there
        torch.default_generator.manual_seed(torch.initial_seed())


class SeededSampler(Sampler):
    """Gives each item of a sampler a seed, drawn anew in each epoch.

    Args:
        sampler: Sampler of item numbers.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # of its own: workers ask for items ahead, while training draws from the global one
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        for index in self.sampler:
            yield index, int(torch.randint(2**31, (), generator=generator))

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler which epoch comes, if it wants to know."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


class SeededBatches(Dataset):
    """Whole batches of a dataset, each item by its number and its seed.

    Args:
        dataset: Dataset whose ``transform`` is a Compose.
        draw: As in :class:`SeededLoader`.
    """

    def __init__(self, dataset: Dataset, draw: Callable[[dict], dict] | None) -> None:
        self.dataset, self.draw = dataset, draw

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, numbers: list[tuple[int, int]]) -> dict:
        """Return a collated batch; what others drew meanwhile stays theirs."""
        with torch.random.fork_rng(devices=[]):
            items = []
            for index, seed in numbers:
                torch.default_generator.manual_seed(seed)  # not a GPU's, on which the network may draw
                reseed(self.dataset.transform, seed)
                items.append(self.dataset[index])
            batch = list_data_collate(items)
            return batch if self.draw is None else self.draw(batch)


def reseed(transform: Randomizable, seed: int) -> None:
    """Do what ``transform.set_random_state(seed)`` does, but keep MONAI's generators: to make one takes 0.1 ms.

    A Compose draws a seed for each of its transforms; any other transform of MONAI gives its own to its parts.
    """
    own = type(transform).set_random_state
    if not own.__module__.startswith("monai.") or "R" not in vars(transform):
        transform.set_random_state(seed=seed)
        return
    transform.R.seed(seed % MAX_SEED)
    if isinstance(transform, Compose):
        for part in transform.transforms:
            if isinstance(part, Randomizable):
                reseed(part, int(transform.R.randint(MAX_SEED, dtype="uint32")))
    elif own is not Randomizable.set_random_state:
        for part in vars(transform).values():
            if isinstance(part, Randomizable):
                reseed(part, seed)


def _made_already(batch: dict) -> dict:
    return batch
