"""The loop on bags in memory: what it descends, how it validates, what it reads ahead, and on how many devices."""

import math
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.aggregators import AGGREGATORS, Aggregator, Output, apply, build, build_outputs, infer
from wsi_mil.bags import Bag, Batch, collate, join_bags
from wsi_mil.errors import ArtifactCorrupt, OptionError, TrainingError
from wsi_mil.learning import Example, LearnParams, Pace, RunParams, best_epoch, learn, need, prefetch
from wsi_mil.learning.examples import some_tiles
from wsi_mil.tasks import Classification, Task, class_weights

DIM = 5
QUICK = LearnParams(epochs=3, patience=3, lr=3e-3)
CLASSES = ("neg", "pos")


@pytest.fixture(autouse=True)
def _one_thread() -> Generator[None]:
    """More cost such small bags more than they give, and tenfold on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Drawn:
    """Bags in memory, of two classes; a positive one carries a signal."""

    def __init__(self, count: int, seed: int, tiles: int = 12, in_memory: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.in_memory, self.targets = in_memory, [index % 2 for index in range(count)]
        self.bags = []
        for index, target in enumerate(self.targets):
            features = torch.randn(tiles, DIM, generator=generator)
            features[:4, 0] += 5 * target
            self.bags.append(Bag(f"s{index}", features, 256.0 * torch.arange(2 * tiles).view(-1, 2), {}))

    @property
    def tiles(self) -> list[int]:
        return [len(bag.features) for bag in self.bags]

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> Example:
        return Example(self.bags[index], self.targets[index])


def made(name: str = "abmil", seed: int = 0, **options: object) -> Aggregator:
    torch.manual_seed(seed)
    return build(name, DIM, 2, **options)


def task_of(train: Drawn) -> Classification:
    return Classification.balanced(CLASSES, train.targets)


def weights(model: Aggregator) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# ---- what is descended


def test_a_step_descends_the_mean_of_the_weighted_losses_of_its_bags() -> None:
    train = Drawn(5, 0)
    train.targets[4] = 1  # 2 of one class, 3 of the other
    model, other = made(dropout=0.0), made(dropout=0.0)
    params = LearnParams(epochs=1, bags_per_step=5, lr=1e-2)
    learn(model, task_of(train), train, Drawn(4, 1), params)
    optimiser = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=params.weight_decay)
    weight = {0: 5 / 4, 1: 5 / 6}
    losses = [
        functional.cross_entropy(other(collate([bag])).logits, torch.tensor([target])) * weight[target]
        for bag, target in zip(train.bags, train.targets, strict=True)
    ]
    (sum(losses) / 5).backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    optimiser.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], msg=name)


@pytest.mark.parametrize("name", ["das-mil", "das-mil-paper"])
def test_lengths_do_not_decay(name: str) -> None:
    """Decay would pull what no slide asked for to 1 um, and a page would tell that as learnt."""
    train, params = Drawn(8, 0), LearnParams(epochs=1, bags_per_step=1, lr=1e-2, weight_decay=50.0)
    model = made(name)
    before, lengths = weights(model), {id(weight) for weight in model.undecayed()}
    learn(model, task_of(train), train, Drawn(4, 1), params)
    assert len(lengths) == 2
    for key, weight in model.named_parameters():
        if id(weight) in lengths:
            torch.testing.assert_close(weight, before[key], atol=8 * params.lr, rtol=0, msg=key)
        elif before[key].any():
            assert weight.abs().max() < 0.2 * before[key].abs().max() + 2 * params.lr, key


@pytest.mark.parametrize(("clip", "longest"), [(0.0, math.inf), (1e-3, 1.001e-3)])
def test_gradients_are_clipped_as_told(monkeypatch: pytest.MonkeyPatch, clip: float, longest: float) -> None:
    lengths, step = [], torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *given: object) -> object:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        lengths.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train = Drawn(8, 0)
    learn(made(), task_of(train), train, Drawn(4, 1), replace(QUICK, clip=clip))
    assert len(lengths) == 12
    assert 1e-2 < max(lengths) < longest if clip == 0 else max(lengths) <= longest


def test_class_weights_balance() -> None:
    assert class_weights([0, 0, 0, 1], 2).tolist() == pytest.approx([2 / 3, 2.0])
    with pytest.raises(TrainingError, match="class number 1"):
        class_weights([0, 0], 2)
    logits = torch.tensor([[0.0, 1.0]])
    plain, balanced = Classification(CLASSES), Classification.balanced(CLASSES, [0, 0, 0, 1])
    for target, weight in ((0, 2 / 3), (1, 2.0)):
        assert float(balanced.loss(logits, target)) == pytest.approx(weight * float(plain.loss(logits, target)))
    answers = plain.answers(logits.repeat(2, 1))
    figures = balanced.judge([0, 1], answers)
    assert figures["val_loss"] == pytest.approx((2 / 3 * -math.log(answers[0, 0]) + 2 * -math.log(answers[0, 1])) / 2)
    assert (figures["val_auroc"], figures["val_balanced_accuracy"]) == (0.5, 0.5)
    assert balanced.columns == ("p_neg", "p_pos")


def test_bf16_learns_and_fp16_is_for_gpus() -> None:
    train, val = Drawn(16, 0), Drawn(8, 1)
    exact, rounded = made(dropout=0.0), made(dropout=0.0)
    params = replace(QUICK, epochs=15, patience=15)
    learn(exact, task_of(train), train, val, params)
    history = learn(rounded, task_of(train), train, val, replace(params, precision="bf16"))
    assert any(not torch.equal(a, b) for a, b in zip(exact.parameters(), rounded.parameters(), strict=True))
    assert all(p.dtype == torch.float32 for p in rounded.parameters())
    assert best_epoch(history).figures["val_auroc"] > 0.9
    with pytest.raises(OptionError, match="--precision fp16: on a CPU"):
        learn(made(), task_of(train), train, val, replace(params, precision="fp16"))
    with pytest.raises(OptionError, match="--precision fp64: give auto"):
        LearnParams(precision="fp64")


# ---- validation


class Watched(Aggregator):
    """A mean over tiles that notes in which mode it is run; nearly all of it is dropped in training."""

    uses_position = "none"
    Params = type("Params", (), {})

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes, self.Params())
        self.drop, self.classify = torch.nn.Dropout(0.9), torch.nn.Linear(dim, classes)
        self.seen: list[tuple[bool, bool, int]] = []

    def forward(self, batch: Batch) -> Output:
        self.seen.append((self.training, torch.is_grad_enabled(), batch.features.shape[1]))
        logits = self.classify(self.drop(batch.features.mean(dim=1)))
        return Output(logits, batch.mask / batch.mask.sum(dim=1, keepdim=True))


def test_validation_is_in_evaluation_mode_without_gradients_and_says_what_infer_says() -> None:
    train, val = Drawn(6, 0), Drawn(4, 1)
    torch.manual_seed(0)
    model = Watched(DIM, 2)
    history = learn(model, task_of(train), train, val, replace(QUICK, epochs=4, patience=4))
    assert model.seen == ([(True, True, 12)] * 6 + [(False, False, 12)] * 4) * 4
    answers = [np.stack([infer(model, bag).probabilities for bag in val.bags]) for _ in range(2)]
    assert np.array_equal(*answers)
    best = best_epoch(history)
    assert task_of(train).judge(val.targets, answers[0]) == {"val_loss": best.val_loss, **best.figures}


def test_only_validation_bags_choose_the_epoch_and_they_choose_nothing_else() -> None:
    train, params = Drawn(10, 0), LearnParams(epochs=8, patience=8, lr=1e-2)
    val, opposite = Drawn(6, 1), Drawn(6, 1)
    opposite.targets = [1 - target for target in opposite.targets]
    histories = [learn(made(), task_of(train), train, chosen, params) for chosen in (val, opposite)]
    assert [epoch.train_loss for epoch in histories[0]] == [epoch.train_loss for epoch in histories[1]]
    assert best_epoch(histories[0]).epoch > best_epoch(histories[1]).epoch
    stopped = learn(made(), task_of(train), train, opposite, replace(params, patience=2))
    assert len(stopped) == best_epoch(stopped).epoch + 3 < 8


@dataclass(frozen=True)
class Counting:
    """A task of another kind: how many tiles carry a signal."""

    outputs = 1
    columns = ("count",)

    def loss(self, outputs: Tensor, target: int) -> Tensor:
        return (outputs[0, 0] - target).square()

    def answers(self, outputs: Tensor) -> np.ndarray:
        return outputs.double().cpu().numpy()

    def judge(self, targets: Sequence[int], answers: np.ndarray) -> dict[str, float]:
        error = answers[:, 0] - np.array(targets)
        return {"val_loss": float((error**2).mean()), "val_mae": float(np.abs(error).mean())}


def test_another_task_is_another_class() -> None:
    assert isinstance(Counting(), Task)
    assert isinstance(Classification(CLASSES), Task)
    train, val = Drawn(20, 0), Drawn(8, 1)
    torch.manual_seed(0)
    model = build_outputs("abmil", DIM, Counting().outputs, dropout=0.0)
    history = learn(model, Counting(), train, val, LearnParams(epochs=15, patience=15, lr=1e-2))
    assert list(history[0].row()) == ["epoch", "lr", "train_loss", "val_loss", "val_mae"]
    assert best_epoch(history).figures["val_mae"] < 0.5 * history[0].figures["val_mae"]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_model_says_one_number_where_a_task_asks_for_it(name: str) -> None:
    output = apply(build_outputs(name, DIM, Counting().outputs), collate([Drawn(1, 0)[0].bag]))
    assert output.logits.shape == (1, 1)


def test_classes_are_two_at_least_and_outputs_one() -> None:
    with pytest.raises(OptionError, match="outputs 0: a model says at least one number"):
        build_outputs("abmil", DIM, 0)
    with pytest.raises(TrainingError, match="1 class: a model tells at least 2 classes apart"):
        Classification(("only",))


# ---- seeds and drawn tiles


def test_a_seed_decides_and_max_tiles_draws_in_training_only() -> None:
    train, val = Drawn(8, 0, tiles=40), Drawn(4, 1, tiles=40)

    def trained(**changed: Any) -> dict[str, Tensor]:
        model = made(seed=3)
        torch.manual_seed(7)
        learn(model, task_of(train), train, val, replace(QUICK, **changed))
        return weights(model)

    runs = [trained(seed=1), trained(seed=1), trained(seed=2), trained(seed=1, max_tiles=9)]
    runs += [trained(seed=1, max_tiles=9), trained(seed=1, max_tiles=40)]
    same = [all(torch.equal(one[name], runs[0][name]) for name in one) for one in runs]
    assert same == [True, True, False, False, False, True]
    assert all(torch.equal(runs[3][name], runs[4][name]) for name in runs[3])
    torch.manual_seed(0)
    model = Watched(DIM, 2)
    learn(model, task_of(train), train, val, LearnParams(epochs=1, max_tiles=9))
    assert {tiles for training, _, tiles in model.seen if training} == {9}
    assert {tiles for training, _, tiles in model.seen if not training} == {40}


def test_drawn_tiles_of_a_patient_keep_their_slides() -> None:
    """Else tiles would be at a distance from those of another slide, or training would stop at the first such bag."""
    slides = [Drawn(1, seed).bags[0]._replace(slide_id=f"slide {seed}") for seed in range(3)]
    bag = some_tiles(join_bags(slides, "patient"), 10, (0,))
    assert bag.slide is not None
    assert len(bag.slide) == len(bag.features) == 10
    for features, number in zip(bag.features, bag.slide.tolist(), strict=True):
        assert (slides[number].features == features).all(dim=1).any()
    assert apply(made("das-mil").eval(), collate([bag])).attention.shape == (1, 10)


def test_the_rate_warms_up_for_a_tenth_of_the_steps_and_falls_along_a_cosine() -> None:
    train = Drawn(8, 0)
    params = LearnParams(epochs=10, patience=10, lr=1e-3, bags_per_step=2)  # 40 steps, 4 of them to warm up
    rates = [epoch.lr for epoch in learn(made(), task_of(train), train, Drawn(4, 1), params)]
    falling = [0.5 * (1 + math.cos(math.pi * (4 * epoch - 4) / 36)) for epoch in range(1, 10)]
    assert rates == pytest.approx([1e-3 * share for share in (1 / 4, *falling)])


def test_drawn_tiles_keep_their_places_and_change_with_the_epoch() -> None:
    bag = Drawn(1, 0, tiles=100).bags[0]
    drawn = [some_tiles(bag, 10, seeds) for seeds in ((0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 1))]
    rows = [[bag.coords_um.tolist().index(xy) for xy in one.coords_um.tolist()] for one in drawn]
    assert rows[0] == rows[1] == sorted(rows[0])
    assert len({tuple(found) for found in rows}) == 3
    for one, found in zip(drawn, rows, strict=True):
        assert torch.equal(one.features, bag.features[found])
    assert some_tiles(bag, 0, (0,)) is some_tiles(bag, 100, (0,)) is bag


# ---- reading ahead


class Slow(Drawn):
    """Notes how far reading has come, and fails where it is told to."""

    def __init__(self, count: int, fails: int = -1) -> None:
        super().__init__(count, 0, in_memory=False)
        self.read: list[int] = []
        self.fails, self.threads = fails, set[str]()

    def __getitem__(self, index: int) -> Example:
        self.threads.add(threading.current_thread().name)
        if index == self.fails:
            raise ArtifactCorrupt("s3.h5 is damaged")
        self.read.append(index)
        return super().__getitem__(index)


def test_the_next_bag_is_read_while_one_is_worked_on_and_no_more() -> None:
    examples, order = Slow(8), [3, 1, 0, 7, 6, 2, 5, 4]
    with prefetch(examples, order) as bags:
        for done, bag in enumerate(bags):
            patience = time.monotonic() + 10
            while len(examples.read) < min(done + 2, 8) and time.monotonic() < patience:
                time.sleep(1e-3)
            time.sleep(0.01)
            assert bag.index == order[done]
            assert examples.read == order[: done + 2]
    assert threading.current_thread().name not in examples.threads


def test_an_error_of_the_reader_comes_out_as_itself() -> None:
    train = Slow(6, fails=3)
    with pytest.raises(ArtifactCorrupt, match=r"^s3\.h5 is damaged$"):
        learn(made(), task_of(train), train, Drawn(4, 1), QUICK)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("wsimil")]


def test_reading_ahead_changes_nothing() -> None:
    results = []
    for in_memory in (True, False):
        model = made()
        torch.manual_seed(5)
        train, val = (Drawn(6, seed, in_memory=in_memory) for seed in (0, 1))
        results.append((learn(model, task_of(train), train, val, QUICK), weights(model)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_who_watches_is_told_how_long_the_device_waited() -> None:
    told: list[tuple[int, Pace]] = []
    train = Slow(4)
    run = RunParams(watch=lambda epoch, pace: told.append((epoch.epoch, pace)))
    learn(made(), task_of(train), train, Drawn(4, 1), QUICK, run)
    assert [epoch for epoch, _ in told] == [0, 1, 2]
    assert all(pace.bags == 4 and 0 < pace.waited < pace.seconds for _, pace in told)


# ---- several devices


class Partly(Aggregator):
    """A mean over tiles, with a parameter that nothing uses."""

    uses_position = "none"
    Params = type("Params", (), {})

    def __init__(self) -> None:
        super().__init__(DIM, 2, None)
        torch.manual_seed(0)
        self.classify, self.unused = torch.nn.Linear(DIM, 2), torch.nn.Parameter(torch.ones(3))

    def forward(self, batch: Batch) -> Output:
        return Output(self.classify(batch.features.mean(dim=1)), batch.mask / batch.mask.sum(dim=1, keepdim=True))


def test_two_processes_learn_what_one_learns() -> None:
    train, val = Drawn(7, 0), Drawn(5, 1)  # the last step has one bag, so that a process has none
    params = LearnParams(epochs=4, patience=4, lr=3e-2, bags_per_step=3)
    alone, shared = Partly(), Partly()
    histories = [learn(alone, task_of(train), train, val, params)]
    histories.append(learn(shared, task_of(train), train, val, params, RunParams(devices=2)))
    for one, two in zip(*histories, strict=True):
        assert two.row() == pytest.approx(one.row(), rel=1e-5)
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert shared.unused.tolist() == [1, 1, 1]  # it does not even decay
    assert not torch.equal(alone.classify.weight, Partly().classify.weight)
    assert not shared.training


@pytest.mark.slow
def test_an_error_of_another_process_comes_out_as_itself() -> None:
    with pytest.raises(ArtifactCorrupt, match=r"^s3\.h5 is damaged$"):
        learn(Partly(), Classification(CLASSES), Slow(6, fails=3), Drawn(4, 1), QUICK, RunParams(devices=2))


def test_devices_are_checked() -> None:
    with pytest.raises(OptionError, match="--devices 0"):
        RunParams(devices=0)
    with pytest.raises(OptionError, match="--save-every-minutes"):
        RunParams(save_every_minutes=-1.0)


# ---- memory


def test_needs_are_drawn_on_along_a_line_unless_they_bend() -> None:
    line = need.step_bytes({512: 1500, 1024: 2524, 2048: 4572}, 0, 102_048)
    assert line == pytest.approx(1.5 * (4572 + 2 * 100_000))
    bent = need.step_bytes({n: 7 + 3 * n * n for n in (512, 1024, 2048)}, 0, 100_000)
    assert bent == pytest.approx(1.5 * 3 * 100_000**2, rel=1e-6)
    assert need.step_bytes({512: 0, 1024: 0, 2048: 0}, 10, 100) == 5 * 4 * 10 * 100


@pytest.mark.parametrize("name", ["das-mil", "das-mil-paper", "self-attention", "abmil", "gcn", "max"])
def test_a_slide_of_100_000_tiles_is_not_refused_on_24_gib(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(need, "available_memory", lambda: 18 << 30)
    need.require_memory(build(name, 768, 2), "large", 100_000, reserved=4 << 30)


def test_a_slide_that_does_not_fit_is_refused_by_name_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("abmil", 32, 2)
    monkeypatch.setattr(need, "available_memory", lambda: 50 << 20)
    before = torch.random.get_rng_state()
    with pytest.raises(TrainingError, match=r"^big has 400,000 tiles, .* GiB are free: add --max-tiles (\d+) ") as told:
        need.require_memory(model, "big", 400_000)
    assert "\n" not in str(told.value)
    fitting = int(str(told.value).split("--max-tiles ")[1].split()[0])
    need.require_memory(model, "big", fitting)
    need.require_memory(model, "small", 2048)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_what_other_processes_fill_meanwhile_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("abmil", 32, 2)
    monkeypatch.setattr(need, "available_memory", lambda: 400 << 20)
    need.require_memory(model, "big", 100_000, beside=[2000])
    with pytest.raises(
        TrainingError, match=r"all of them, 3 more beside it, takes .*: give fewer --devices, add"
    ) as told:
        need.require_memory(model, "big", 100_000, beside=[90_000] * 3)
    fitting = int(str(told.value).split("--max-tiles ")[1].split()[0])
    need.require_memory(model, "big", fitting, beside=[fitting] * 3)
    need.require_memory_to_ask(model, "big", 100_000)
    with pytest.raises(
        TrainingError, match=r"ask a model about all of them, 30 more beside it, .*--devices, make fewer"
    ):
        need.require_memory_to_ask(model, "big", 100_000, beside=[100_000] * 30)


def test_what_is_kept_is_counted_once_and_without_the_weights() -> None:
    model = Watched(1000, 3)
    features = 4 * 64 * 1000
    assert need.kept_bytes(model, 64) < features  # a mean keeps no tiles
    assert not model.seen  # a copy was asked


def test_what_a_model_that_is_asked_fills_is_counted_at_its_peak() -> None:
    """Two layers of 64 numbers a tile: what is done with is given back, so that ten take what two take."""

    class Deep(Aggregator):
        uses_position = "none"
        standardises = False

        def __init__(self, layers: int) -> None:
            super().__init__(64, 2, None)
            self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(layers)])

        def forward(self, batch: Batch) -> Output:
            found = batch.features
            for layer in self.layers:
                found = layer(found)
            return Output(found[:, 0, :2], batch.mask.float())

    layer = 1000 * 64 * 4
    assert 2 * layer <= need.asked_bytes(Deep(2), 1000) < 3 * layer
    assert need.asked_bytes(Deep(10), 1000) == need.asked_bytes(Deep(2), 1000)
    assert need.kept_bytes(Deep(10), 1000) > 8 * layer


def test_a_bag_too_large_to_be_asked_about_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("abmil", 32, 2)
    monkeypatch.setattr(need, "available_memory", lambda: 50 << 20)
    with pytest.raises(TrainingError, match=r"^big has 400,000 tiles, and to ask a model .* GiB are free: make fewer"):
        need.require_memory_to_ask(model, "big", 400_000)
    need.require_memory_to_ask(model, "big", 20_000)
    need.require_memory_to_ask(model, "small", 2048)
    assert model.training
