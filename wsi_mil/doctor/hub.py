"""huggingface.co: is it to be had, and is there a token for gated encoders."""

import threading
from functools import partial

from wsi_mil.doctor.findings import OK, WARN, Check, Finding
from wsi_mil.errors import one_line

_SECONDS = 5.0
_ASKED = ("timm/resnet50.a1_in1k", "config.json")
_BY_HAND = "without it: fetch weights elsewhere and `wsimil weights add NAME FILE`; `morphology` is built in"


def access() -> list[Check]:
    """What the hub says."""
    again = "pip install --force-reinstall huggingface-hub"
    return [Check("hub", "token", _token, again), Check("hub", "network", partial(_network, _SECONDS), again)]


def _token() -> Finding:
    """Whether there is one; it is shown to nobody."""
    from huggingface_hub import get_token

    if get_token():
        return Finding(OK, "there")
    return Finding(OK, "none; gated encoders (uni, virchow, ...) need one", "`hf auth login`, once you need one")


def _network(seconds: float) -> Finding:
    """Ask a small question, and wait no longer than that: names that nobody resolves block longer than any timeout."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding(OK, "offline, as HF_HUB_OFFLINE says", _BY_HAND)
    answers: list[Exception | None] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        return Finding(WARN, f"{constants.ENDPOINT} does not answer within {seconds:g} s", _BY_HAND)
    if answers[0] is not None:
        return Finding(WARN, f"{constants.ENDPOINT} cannot be reached ({one_line(answers[0])[:120]})", _BY_HAND)
    return Finding(OK, f"{constants.ENDPOINT} answers")


def _ask(seconds: float) -> Exception | None:
    import huggingface_hub as hub

    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(*_ASKED), timeout=seconds)
    except Exception as error:  # noqa: BLE001 - a proxy or certificate that is none ends libraries in any way
        return error
    return None
