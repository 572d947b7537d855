"""What MONAI lacks for training: a state from which it goes on exactly, and patches without metadata."""

import math
import os
import random
from collections.abc import Iterable
from pathlib import Path

import ignite.distributed as idist
import numpy
import torch
from ignite.engine import Engine, Events
from monai.data import get_track_meta, set_track_meta
from monai.engines import IterationEvents
from monai.handlers import MLFlowHandler
from monai.transforms import Compose
from monai.utils import CommonKeys

try:
    import fcntl
except ImportError:  # on Windows nobody looks whether two trainings write into one folder
    fcntl = None

HELD: set[Path] = set()  # folders that this process trains into, until it ends

LOSSES = 20  # that are looked at together on a GPU


def save_atomically(content, path: Path) -> None:
    """Write a checkpoint so that a process that dies leaves the old file or the new one, never half of one.

    Raises:
        ValueError: If it cannot be written; nothing is left of it then.
    """
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(content, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
        partial.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written; is the disk full? {str(error).splitlines()[0]}") from error


def hold(folder: Path) -> None:
    """Keep other processes from training into a folder until this one ends, where the file system can.

    Raises:
        ValueError: If the folder cannot be written, or another process holds it.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"model_dir {folder} cannot be written; name another folder")
    if fcntl is None or folder in HELD:
        return
    try:
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process trains into model_dir {folder}; wait for it, or name another one") from None
    except OSError:  # a file system without locks
        return
    HELD.add(folder)


def end_tracking(handlers: Iterable) -> None:
    """End the run in MLflow that handlers of an evaluation write to; MONAI ends a training's only.

    A run that is not ended would take in what is tracked next.
    """
    for handler in handlers:
        if isinstance(handler, MLFlowHandler) and handler.cur_run is not None:
            handler.close()


class TrainingState:
    """Handler that saves the averaged weights, and all that is needed to go on as if nothing had happened.

    A loss that is not finite ends the run before anything is saved after it, so that what was saved stays good. On a
    CPU it is looked at before a step is made with it; a GPU would have to be waited for, so there ``LOSSES`` steps are
    looked at together.

    ``<model_dir>/<weights_name>`` gets the averaged weights, a plain state dict; ``training.pt`` beside it weights,
    average, optimizer, schedule and epoch. All randomness of an epoch follows from seed, process and epoch, so a run
    that is resumed draws what the other would have drawn.

    Args:
        network: Network that is trained, possibly wrapped for several processes.
        ema: EMAHandler of ignite.
        optimizer: Optimizer of the network.
        lr_scheduler: Schedule of the optimizer.
        dataloader: Dataloader of the trainer, a ``SeededLoader`` where workers may load.
        model_dir: Folder of both files.
        weights_name: File of the averaged weights.
        seed: Seed of the run.
        save_interval: Number of epochs between two savings; the end is always saved.
        resume: Whether to go on from ``training.pt``, which must be there.
    """

    def __init__(
        self, network, ema, optimizer, lr_scheduler, dataloader, model_dir: str, weights_name: str = "model.pt",
        seed: int = 0, save_interval: int = 1, resume: bool = False,
    ) -> None:  # fmt: skip
        self.parts = {
            "network": getattr(network, "module", network),
            "average": getattr(ema.ema_model, "module", ema.ema_model),
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
        }
        self.dataloader, self.seed, self.save_interval, self.resume = dataloader, seed, save_interval, resume
        self.unseen: list[tuple[torch.Tensor, int, list[str]]] = []  # loss, step and cases
        self.weights, self.state = Path(model_dir) / weights_name, Path(model_dir) / "training.pt"
        if not isinstance(resume, bool):
            raise ValueError(f"resume must be True or False, not {resume!r}")
        if resume and not self.state.is_file():
            raise FileNotFoundError(f"there is nothing to resume: {self.state} does not exist")

    def attach(self, engine: Engine) -> None:
        """Load when the engine starts, seed each epoch, save after it."""
        engine.add_event_handler(Events.STARTED, self.begin)
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin_epoch)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check_loss)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.keep_whole)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.save_interval) | Events.COMPLETED, self.save)

    def begin(self, engine: Engine) -> None:
        """Take the folder for this process; the first of several does."""
        if idist.get_rank() == 0:
            hold(self.state.parent)

    def load(self, engine: Engine) -> None:
        """Take up the saved state."""
        state = torch.load(self.state, map_location=idist.device(), weights_only=True)
        if state["seed"] != self.seed:
            raise ValueError(f"{self.state} is of a run with seed {state['seed']}, not {self.seed}")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * engine.state.epoch_length
        engine.logger.info(f"going on after epoch {state['epoch']} of {engine.state.max_epochs}")

    def begin_epoch(self, engine: Engine) -> None:
        """Seed everything random and start the data anew."""
        seed = int(numpy.random.SeedSequence([self.seed, idist.get_rank(), engine.state.epoch]).generate_state(1)[0])
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        if hasattr(self.dataloader.sampler, "set_epoch"):
            self.dataloader.sampler.set_epoch(engine.state.epoch)
        engine.set_data(self.dataloader)

    def check_loss(self, engine: Engine) -> None:
        """Look at the loss, which is one number, now or together with the next ones."""
        loss = engine.state.output[CommonKeys.LOSS].detach()
        self.unseen.append((loss, engine.state.iteration, engine.state.batch.get("case", [])))
        if loss.device.type == "cpu" or len(self.unseen) == LOSSES:
            self.look()

    def keep_whole(self, engine: Engine) -> None:
        """Have handlers, MLflow's too, read the output as a list of one: to take a batch apart would halt a GPU."""
        if isinstance(engine.state.output, dict):
            engine.state.output = [engine.state.output]

    def look(self) -> None:
        """Raise ValueError, which names the batch's cases, if a loss not looked at yet is NaN or infinite."""
        unseen, self.unseen = self.unseen, []
        values = torch.stack([loss for loss, _, _ in unseen]).tolist() if unseen else []
        for value, (_, step, cases) in zip(values, unseen):
            if not math.isfinite(value):
                named = ", ".join(sorted(set(cases))) or "a batch that names no case"
                kept = f"{self.weights} keeps the last good weights"
                raise ValueError(
                    f"the loss is {value:g} in step {step} on {named}; "
                    f"{kept if self.weights.is_file() else 'no weights were saved'}; "
                    "look at these cases, or lower learning_rate"
                )

    def save(self, engine: Engine) -> None:
        """Write both files, from the first process."""
        self.look()
        if idist.get_rank() == 0:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            save_atomically(state | {"epoch": engine.state.epoch, "seed": self.seed}, self.state)
            save_atomically(self.parts["average"].state_dict(), self.weights)


class Untracked(Compose):
    """Compose whose transforms track no metadata, which takes longer than cutting the patches does.

    Needs to be the last of a pipeline, and not to run in threads: whether MONAI tracks is one switch for all.
    """

    def __call__(self, input_, *args, **kwargs):
        """Return what the transforms make of the input; what they make anew is plain tensors."""
        tracked = get_track_meta()
        set_track_meta(False)
        try:
            return super().__call__(input_, *args, **kwargs)
        finally:
            set_track_meta(tracked)
