from wsi_mil.typed import typed, typing


def test_what_was_typed_is_known_while_it_runs_and_no_longer() -> None:
    assert typed() == []
    with typing(["train", "--out", "my model"]):
        assert typed() == ["wsimil train --out 'my model'"]
    assert typed() == []
