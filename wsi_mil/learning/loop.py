"""The loop: epochs of steps, a validation after each, and the weights of the best epoch in the end."""

import json
import math
import random
import time
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wsi_mil.aggregators import Aggregator, apply
from wsi_mil.errors import TrainingError
from wsi_mil.learning import ranks, resume
from wsi_mil.learning.dealing import shares_of, steps_of, tell_idle_share
from wsi_mil.learning.decay import parameter_groups
from wsi_mil.learning.examples import Epoch, Examples, Pace, Ready, best_epoch, prefetch
from wsi_mil.learning.logs import TensorBoard
from wsi_mil.learning.params import LearnParams, RunParams
from wsi_mil.progress import epochs
from wsi_mil.tasks import Task
from wsi_mil.weights import load_strictly, load_tensors, save_tensors

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_DEFAULT = RunParams()
_OUTCOME = "outcome.safetensors"


def rank_seed(seed: int, rank: int) -> int:
    """What a process other than the first draws from; torch's generator on a CPU keeps 32 bits of it."""
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


class _Job:
    """What `learn` was given: one thing that other processes are given too."""

    def __init__(
        self, model: Aggregator, task: Task, train: Examples, val: Examples, params: LearnParams, run: RunParams
    ) -> None:
        self.model, self.task, self.train, self.val, self.params, self.run = model, task, train, val, params, run


def learn(
    model: Aggregator, task: Task, train: Examples, val: Examples, params: LearnParams, run: RunParams = _DEFAULT
) -> list[Epoch]:
    """Train a model in place and leave it with the weights of the epoch of lowest validation loss, in eval mode.

    Args:
        model: on the device to train on.
        task: what it learns to say.
        train: examples to learn from. Where several devices share them, these and the model must pickle.
        val: examples for stopping and for choosing the epoch; several devices share them too.
        params: how to learn.
        run: how to go about it.

    Raises:
        TrainingError: the loss is not finite.
        ArtifactStale: another training was interrupted in the same folder.
        OptionError: there are not so many devices, or the precision makes no sense there.
        RankLost: a process that shared the training is gone; what was written down stays.
    """
    device = next(model.parameters()).device
    fabric = ranks.make_fabric(run.devices, device, params.precision)
    job = _Job(model, task, train, val, params, run)
    if not ranks.starts_processes(fabric):
        with ranks.told_to_end(fabric):
            fabric.launch()
            return _Training(job, fabric).run()
    with TemporaryDirectory() as folder:
        model.cpu()
        ranks.spawn(fabric, _train_on_rank, job, Path(folder))
        state, told = load_tensors(Path(folder) / _OUTCOME)
    load_strictly(model, state, "what the processes learnt")
    model.to(device).eval()
    return [Epoch.of(row) for row in json.loads(told["history"])]


def _train_on_rank(fabric: "Fabric", job: _Job, folder: Path) -> None:
    """What a process that was started does: all of it, and rank 0 leaves the result behind."""
    job.model = deepcopy(job.model)  # its memory is shared with the other processes
    history = _Training(job, fabric).run()
    if fabric.global_rank == 0:
        rows = json.dumps([epoch.row() for epoch in history])
        save_tensors(folder / _OUTCOME, job.model.state_dict(), {"history": rows})


class _Training:
    """A training on one rank: where it stands, and how it goes on."""

    def __init__(self, job: _Job, fabric: "Fabric") -> None:
        params = job.params
        self.job, self.fabric, self.params = job, fabric, params
        self.rank, self.world = fabric.global_rank, fabric.world_size
        if self.rank:  # rank 0 draws what one device draws
            torch.manual_seed(rank_seed(params.seed, self.rank))
        self.model = job.model.to(fabric.device)
        self.plain = torch.optim.AdamW(parameter_groups(self.model, params.weight_decay), params.lr)
        steps = math.ceil(len(job.train) / params.bags_per_step) * params.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.plain, lambda step: _warmup_cosine(step, steps))
        self.optimiser: Any = fabric.setup_optimizers(self.plain)
        ranks.begin_scaling(fabric)
        self.history: list[Epoch] = []
        self.best_state = deepcopy(self.model.state_dict())
        self.epoch, self.step, self.loss, self.lr = 0, 0, 0.0, params.lr
        self.saved = time.monotonic()
        self.costs = _costs(job) if self.world > 1 else []
        self.identity = resume.Identity.of(job.run, self.world, fabric.device.type)

    def run(self) -> list[Epoch]:
        """Train to the end, from where it stands."""
        run = self.job.run
        with ranks.first_before_others(self.fabric):  # the first may give up what lies there
            if run.folder and (standing := resume.load(run.folder, self.identity, run.overwrite)):
                self._take(standing)
        self._require_same()
        orders = islice(_orders(len(self.job.train), self.params.seed), self.epoch, None)
        board = TensorBoard(None if self.rank else run.folder, self.epoch)
        with epochs(self.params.epochs, self.epoch) as told:
            while self.epoch < self.params.epochs and not self._has_given_up():
                pace = self._train(next(orders))
                best = self._judge()
                if run.folder:
                    self._save()
                told.tell(self.history[-1].row(), best, pace.rate * self.world)
                board.write(self.history[-1], pace)
                if run.watch:
                    run.watch(self.history[-1], pace)
        board.close()
        self.model.load_state_dict(self.best_state)
        self.model.eval()
        return self.history

    def _require_same(self) -> None:
        """Refuse ranks that were told different things, before what they learn is added up; say how well they share."""
        if self.world == 1:
            return
        params, train, val = self.params, self.job.train, self.job.val
        told = (params, self.identity, self.costs, list(train.targets), list(val.targets), self.epoch, self.step)
        ranks.require_same(self.fabric, repr(told))
        tell_idle_share(next(_orders(len(train), params.seed)), params.bags_per_step, self.costs, self.world)

    def _has_given_up(self) -> bool:
        return bool(self.history) and self.history[-1].epoch - best_epoch(self.history).epoch >= self.params.patience

    def _train(self, order: list[int]) -> Pace:
        """The rest of an epoch. Bags go through one by one, because padding them would cost what tiles cost."""
        self.model.train()
        params = self.params
        steps = steps_of(order, params.bags_per_step)[self.step :]
        shares = [dealt[self.rank] for dealt in shares_of(steps, self.costs, self.world)]
        mine = [index for share in shares for index in share]
        if self.step == 0:
            self.lr = float(self.schedule.get_last_lr()[0])
        began, waited = time.perf_counter(), 0.0
        with prefetch(self.job.train, mine, params.max_tiles, (params.seed, self.epoch)) as reading:
            bags = iter(reading)
            for step, share in zip(steps, shares, strict=True):
                for _ in share:
                    asked = time.perf_counter()
                    bag = next(bags)
                    waited += time.perf_counter() - asked
                    self._learn_from(bag, len(step))
                self._step()
        return Pace(len(mine), time.perf_counter() - began, waited)

    def _learn_from(self, bag: Ready, bags: int) -> None:
        """Add what one bag says to the gradient of a step of so many."""
        batch = bag.batch.to(self.fabric.device)
        with self.fabric.autocast():
            outputs = self.model(batch).logits
        loss = self.job.task.loss(outputs, bag.target)
        self.loss += loss.item()
        self.fabric.backward(loss / bags)

    def _step(self) -> None:
        ranks.add_up_gradients(self.fabric, list(self.model.parameters()))
        if self.params.clip:
            self.fabric.clip_gradients(self.model, self.optimiser, max_norm=self.params.clip, error_if_nonfinite=False)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self.job.run.folder:
            due = time.monotonic() - self.saved >= 60 * self.job.run.save_every_minutes
            if ranks.agree(self.fabric, due):
                self._save()

    def _judge(self) -> bool:
        """End an epoch: validate, and tell whether it is the best."""
        loss = ranks.add_up(self.fabric, torch.tensor(self.loss, dtype=torch.float64)).item()
        if not math.isfinite(loss):
            raise TrainingError(
                "the training loss is not finite: try a lower `wsimil train --lr`, or check the features"
            )
        figures = self._validate()
        loss /= len(self.job.train)
        self.history.append(Epoch(self.epoch, self.lr, loss, figures.pop("val_loss"), figures))
        best = best_epoch(self.history) is self.history[-1]
        if best:
            self.best_state = deepcopy(self.model.state_dict())
        self.epoch, self.step, self.loss = self.epoch + 1, 0, 0.0
        return best

    def _validate(self) -> dict[str, float]:
        """Each rank applies the model to its share; all know all answers."""
        task, val = self.job.task, self.job.val
        outputs = torch.zeros(len(val), task.outputs, dtype=torch.float64)
        places = range(len(val))
        costs = [self.model.cost(tiles) for tiles in val.tiles] if self.world > 1 else []
        mine = shares_of([places], costs, self.world)[0][self.rank]
        with prefetch(val, mine) as reading:
            for bag in reading:
                outputs[bag.index] = apply(self.model, bag.batch).logits[0]
        answers = task.answers(ranks.add_up(self.fabric, outputs))
        if not np.isfinite(answers).all():
            raise TrainingError(
                "the model's answers are not finite: try a lower `wsimil train --lr`, or check the features"
            )
        return task.judge(val.targets, answers)

    def _save(self) -> None:
        """Write down where it stands: every rank adds its share, rank 0 writes."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_state.items()}
        for index, values in self.plain.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in values.items()}
        for rank, state in enumerate(ranks.gather_bytes(self.fabric, torch.get_rng_state())):
            tensors[f"random.{rank}"] = state
        if self.fabric.device.type == "cuda":
            states = ranks.gather_bytes(self.fabric, torch.cuda.get_rng_state(self.fabric.device))
            tensors |= {f"random_cuda.{rank}": state for rank, state in enumerate(states)}
        losses = torch.zeros(self.world, dtype=torch.float64)
        losses[self.rank] = self.loss
        facts = {
            "epoch": self.epoch,
            "step": self.step,
            "lr": self.lr,
            "losses": ranks.add_up(self.fabric, losses).tolist(),
            "history": [epoch.row() for epoch in self.history],
            "rates": [group["lr"] for group in self.plain.param_groups],
            "schedule": {key: value for key, value in self.schedule.state_dict().items() if key != "lr_lambdas"},
            "scaler": self.fabric.strategy.precision.state_dict(),
        }
        if self.rank == 0 and self.job.run.folder:
            resume.save(self.job.run.folder, self.identity, resume.Standing(tensors, facts))
        self.saved = time.monotonic()

    def _take(self, standing: resume.Standing) -> None:
        """Stand where a training stood."""
        parts: dict[str, dict[str, Any]] = {}
        for name, tensor in standing.tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        facts = standing.facts
        self.model.load_state_dict(parts["model"])
        self.best_state = {name: tensor.to(self.fabric.device) for name, tensor in parts["best"].items()}
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in parts.get("optimiser", {}).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        self.plain.load_state_dict({**self.plain.state_dict(), "state": state})
        for group, rate in zip(self.plain.param_groups, facts["rates"], strict=True):
            group["lr"] = rate
        self.schedule.load_state_dict({**self.schedule.state_dict(), **facts["schedule"]})
        if facts["scaler"]:
            self.fabric.strategy.precision.load_state_dict(facts["scaler"])
        torch.set_rng_state(parts["random"][str(self.rank)])
        if self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(parts["random_cuda"][str(self.rank)], self.fabric.device)
        self.history = [Epoch.of(row) for row in facts["history"]]
        self.epoch, self.step, self.lr = facts["epoch"], facts["step"], facts["lr"]
        self.loss = facts["losses"][self.rank]


def _costs(job: _Job) -> list[int]:
    """How long each training bag takes, beside the others."""
    most = job.params.max_tiles or max(job.train.tiles)
    return [job.model.cost(min(tiles, most)) for tiles in job.train.tiles]


def _orders(bags: int, seed: int) -> Iterator[list[int]]:
    """The order of the bags in each epoch."""
    order, shuffler = list(range(bags)), random.Random(seed)
    while True:
        shuffler.shuffle(order)
        yield order.copy()


def _warmup_cosine(step: int, steps: int) -> float:
    warmup = max(steps // 10, 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(steps - warmup, 1), 1.0)))
