"""The model card: what a checkpoint learnt from, and from where on a slide is unlike that."""

import dataclasses

import pytest
from test_domain import checkpoint, slides

from wsi_mil.checkpoint import Checkpoint
from wsi_mil.domain import Domain
from wsi_mil.report import model_card, model_facts

TITLE = "## Slides that it knows"


def card_of(domain: Domain | None) -> str:
    """The part of the card that tells what slides the model knows."""
    made = dataclasses.replace(checkpoint(domain), training=TRAINING)
    text = model_card(made, {"AUROC": "0.5"}, "Nobody judged it.").decode()
    assert text.count(TITLE) == 1
    return text.partition(TITLE)[2].partition("\n## ")[0].strip()


TRAINING = {"slides": {"train": 10}, "patients": ["p"], "cohort": "c", "versions": {}, "fingerprint": "f", "params": {}}


def test_the_limits_that_it_tells_are_those_that_are_warned_at() -> None:
    made = slides(12, mpp=0.25)
    domain = Domain.of([one._replace(mpp_x=0.5, tiles=80) if index % 2 else one for index, one in enumerate(made)])
    text = card_of(domain)
    assert text.startswith("12 slides of 0.25 to 0.5 um/px (level 0) and 50 to 80 tiles each took part.")
    assert "* of less than 0.2273 or more than 0.55 um/px;" in text
    assert "* of fewer than 25 or more than 160 tiles;" in text
    assert f"more than {domain.far:.2f} off theirs" in text
    assert f"{domain.farthest:.2f} at most" in text
    assert f"over {len(domain.mean)} features" in text
    for changes, warned in (
        ({"tiles": 25}, 0), ({"tiles": 24}, 1), ({"tiles": 160}, 0), ({"tiles": 161}, 1),
        ({"mpp_x": 0.2274}, 0), ({"mpp_x": 0.2272}, 1), ({"mpp_x": 0.5499}, 0), ({"mpp_x": 0.5501}, 1),
    ):  # fmt: skip
        assert len(domain.warnings(made[0]._replace(mean=domain.mean, **changes))) == warned, changes


@pytest.mark.parametrize("count", [1, 2, 4])
def test_of_too_few_slides_it_says_so(count: int) -> None:
    assert card_of(Domain.of(slides(count))).endswith("too few to tell what is unlike them, so no slide is warned of.")


def test_a_checkpoint_that_does_not_know_says_so() -> None:
    assert card_of(None).startswith("The checkpoint does not say what they were like")


def test_pages_tell_it_where_they_tell_the_model() -> None:
    def told(made: Checkpoint) -> str:
        return dict(model_facts(made)).get("slides of training", "")

    assert told(checkpoint(Domain.of(slides(6)))) == "6 of 0.5 um/px, 50 tiles each"
    assert told(checkpoint(None)) == ""


def test_it_tells_among_whom_probabilities_hold() -> None:
    def told(prior: tuple[float, ...]) -> str:
        made = dataclasses.replace(checkpoint(None), training=TRAINING)
        parts = tuple(part._replace(prior=prior) for part in made.parts)
        return model_card(dataclasses.replace(made, parts=parts), {}, "").decode()

    word = "multiplied by the share of each class in training"
    assert word in told((0.2, 0.8))
    assert word not in told(())
