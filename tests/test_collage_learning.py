"""MNIST-COLLAGE: models learn as the protocols say, and are judged by figures that are what they are called."""

import math
from dataclasses import replace

import pytest
import torch

from wsi_mil.aggregators import Output
from wsi_mil.bags import Bag
from wsi_mil.learning import Example


@pytest.fixture
def runs(load):
    return load("collage_runs")


@pytest.fixture
def models(load):
    return load("collage_models")


def noise(count):
    """Bags of noise in the form of collages: how a model learns does not ask what."""
    drawing = torch.Generator().manual_seed(0)
    return [
        Example(
            Bag(str(index), torch.randn(4, 784, generator=drawing), 200 * torch.rand(4, 2, generator=drawing), {}),
            index % 2,
        )
        for index in range(count)
    ]


# ---- figures


class Answers(torch.nn.Module):
    """Its logits are the features of the first digit."""

    def forward(self, batch):
        assert not self.training
        return Output(batch.features[:, 0], batch.mask.float())


def test_accuracy_auroc_and_cross_entropy_are_those_that_one_finds_by_hand(runs, monkeypatch):
    monkeypatch.setattr(runs, "_TEST_BATCH", 2)
    probabilities, targets = (0.9, 0.4, 0.6, 0.2, 0.7), (1, 1, 0, 0, 1)
    examples = [
        Example(Bag(str(p), torch.tensor([[0.0, math.log(p / (1 - p))]]), torch.zeros(1, 2), {}), target)
        for p, target in zip(probabilities, targets, strict=True)
    ]
    accuracy, auroc, loss = runs.evaluate(Answers().train(), examples)
    assert accuracy == 3 / 5  # 0.4 and 0.6 are on the wrong side
    assert auroc == pytest.approx(5 / 6)  # of six pairs 0.4 and 0.6 are in the wrong order
    assert loss == pytest.approx(-sum(map(math.log, (0.9, 0.4, 0.4, 0.8, 0.7))) / 5)


# ---- learning


class Watched:
    """What happened, in order: each step with its learning rate; and the optimisers that took them."""

    def __init__(self, monkeypatch):
        self.events, self.rates, self.made = [], [], []
        for name in ("AdamW", "RAdam"):
            monkeypatch.setattr(torch.optim, name, self._watched(getattr(torch.optim, name)))

    def _watched(self, kind):
        watch = self

        class Optimiser(kind):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                watch.made.append((kind.__name__, self))

            def step(self, *args, **kwargs):
                watch.events.append("step")
                watch.rates.append({group["lr"] for group in self.param_groups})
                return super().step(*args, **kwargs)

        return Optimiser


def seen_by(runs, monkeypatch):
    """The bags of each step, as the model is given them."""
    batches, collate = [], runs.collate
    monkeypatch.setattr(runs, "collate", lambda bags: batches.append(bags) or collate(bags))
    return batches


def fresh(models, name="das-mil"):
    return models.CollageModel(name, models.fresh_options(name), models.READERS[models.READERS_TRIED[0]]())


def test_under_fresh_all_weights_decay_by_a_hundredth_but_those_that_are_lengths(runs, models, monkeypatch):
    watch, model = Watched(monkeypatch), fresh(models)
    runs.learn_fresh(model, noise(2), runs.Recipe(0.004, 1), 0)
    ((kind, optimiser),) = watch.made
    decay = {id(weight): group["weight_decay"] for group in optimiser.param_groups for weight in group["params"]}
    assert kind == "AdamW"
    lengths = {"aggregator.log_theta_um", "aggregator.log_slope"}
    assert {name: decay[id(weight)] for name, weight in model.named_parameters()} == {
        name: 0.0 if name in lengths else 0.01 for name, _ in model.named_parameters()
    }


def test_under_fresh_the_rate_rises_to_that_of_the_recipe_and_falls_to_nothing(runs, models, monkeypatch):
    watch, clipped = Watched(monkeypatch), []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *what: clipped.append(what[1]) or clip(*what))
    model = fresh(models, "max")
    runs.learn_fresh(model, noise(15), runs.Recipe(0.004, 10), 0)
    (rates,) = zip(*watch.rates, strict=True)
    assert len(rates) == 20  # two of each epoch: ten collages and the other five
    assert rates[1] == max(rates) == pytest.approx(0.004)
    assert rates[0] == pytest.approx(0.004 / 25)
    assert list(rates[1:]) == sorted(rates[1:], reverse=True)
    assert rates[-1] < 1e-7
    assert clipped == [1.0] * 20
    assert not model.training


def test_under_fresh_collages_come_turned_once_an_epoch_in_another_order(runs, models, monkeypatch):
    batches = seen_by(runs, monkeypatch)

    def far_away(example):
        assert example.bag.coords_um.max() < 1000
        return example._replace(bag=example.bag._replace(coords_um=example.bag.coords_um + 1000))

    monkeypatch.setattr(runs, "turned", far_away)
    runs.learn_fresh(fresh(models, "max"), noise(15), runs.Recipe(0.004, 2), 0)
    assert [len(bags) for bags in batches] == [10, 5, 10, 5]
    assert all(bag.coords_um.min() >= 1000 for bags in batches for bag in bags)
    first, second = ([bag.slide_id for bags in pair for bag in bags] for pair in (batches[:2], batches[2:]))
    assert sorted(first) == sorted(second) == sorted(map(str, range(15)))
    assert first != second


@pytest.mark.parametrize(
    ("name", "kind", "lr", "decay", "ahead"),
    [
        ("abmil", "AdamW", 1e-4, 0.001, []),
        ("das-mil-paper", "AdamW", 1e-3, 0.01, []),
        ("transmil-paper", "RAdam", 1e-4, 0.1, ["ahead"]),
    ],
)
def test_under_paper_models_start_and_learn_as_published(runs, monkeypatch, name, kind, lr, decay, ahead):
    watch, batches, started = Watched(monkeypatch), seen_by(runs, monkeypatch), []
    few = runs.Collages(noise(3), [], noise(4))
    monkeypatch.setattr(runs, "paper_collages", lambda variant, source: few)
    start = lambda aggregator: watch.events.append("start") or started.append(aggregator)  # noqa: E731
    monkeypatch.setitem(runs.PUBLISHED, name, replace(runs.PUBLISHED[name], start=start))
    step = runs.Lookahead.step
    monkeypatch.setattr(runs.Lookahead, "step", lambda self: watch.events.append("ahead") or step(self))
    score, model = runs.run_paper(name, "inv", 3, None, epochs=2)
    assert watch.events == ["start", *["step", *ahead] * 6]
    assert [len(bags) for bags in batches[:6]] == [1] * 6
    assert started == [model.aggregator]
    ((made, optimiser),) = watch.made
    (group,) = optimiser.param_groups
    assert (made, group["weight_decay"], watch.rates) == (kind, decay, [{lr}] * 6)
    assert group["decoupled_weight_decay"]  # which AdamW is, and RAdam is told
    assert {id(weight) for weight in group["params"]} == {id(weight) for weight in model.parameters()}
    assert score == runs.Score(name, "inv", "paper", 3, *runs.evaluate(model, few.test)[:2])
