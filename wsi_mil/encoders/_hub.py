"""Published weights from huggingface.co, or within seconds the reason why not and what to do about it."""

import errno
import logging
from pathlib import Path

from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import WeightsError, one_line

log = logging.getLogger(__name__)
_SECONDS = 5.0


def cached_by_hub(spec: EncoderSpec) -> Path | None:
    """Return the published weight file if the hub's own cache on this machine has it; nothing is asked of the hub."""
    import huggingface_hub as hub  # here, since most runs never ask the hub

    cached = (
        hub.try_to_load_from_cache(spec.hub_id, spec.hub_file, revision=spec.revision or None) if spec.hub_id else None
    )
    return Path(cached) if isinstance(cached, str) else None


def hub_file(spec: EncoderSpec) -> Path:
    """Return the published weight file of an encoder, from the hub's cache on this machine or else from the hub.

    ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_ENDPOINT`` and the token of ``hf auth login`` mean what they always mean.

    Raises:
        WeightsError: it cannot be had; names the file to provide and the command that takes it.
    """
    import huggingface_hub as hub  # here, since most runs never ask the hub
    from huggingface_hub import errors

    if not spec.hub_id:
        where = f"come from {spec.page}: fetch them and" if spec.page else "were never published, with a file of yours"
        raise WeightsError(f"the weights of {spec.name} {where} {_by_hand(spec, 'FILE')}")
    try:
        return Path(
            hub.hf_hub_download(spec.hub_id, spec.hub_file, revision=spec.revision or None, local_files_only=True)
        )
    except errors.HFValidationError as error:
        raise WeightsError(f"{spec.name}: {spec.hub_id!r} is no repository of the hub: mend its record") from error
    except OSError:
        log.debug("%s is not in the hub's cache", spec.hub_id)
    try:
        # One quick question first: a download alone retries for half a minute where there is no network.
        hub.get_hf_file_metadata(
            hub.hf_hub_url(spec.hub_id, spec.hub_file, revision=spec.revision or None), timeout=_SECONDS
        )
        log.info("fetching %s of %s", spec.hub_file, spec.hub_id)
        return Path(hub.hf_hub_download(spec.hub_id, spec.hub_file, revision=spec.revision or None))
    except (OSError, RuntimeError, errors.HTTPError) as error:  # RuntimeError: of the hub's transfer library
        raise WeightsError(_explain(spec, error)) from error


def page_of(spec: EncoderSpec) -> str:
    """Where to read about an encoder's weights, and to fetch them by hand; empty where they were never published."""
    return spec.page or (f"https://huggingface.co/{spec.hub_id}" if spec.hub_id else "")


def _explain(spec: EncoderSpec, error: Exception) -> str:
    page = f"https://huggingface.co/{spec.hub_id}"  # which may have another file than `spec.page`
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else None
    if status in (401, 403):
        why = f"huggingface.co wants a login: accept the terms on {page} and type `hf auth login`, or"
    elif status is not None:
        why = f"huggingface.co answered {status}:"
    elif getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        why = "the disk of the hub's cache is full, name another folder by HF_HOME, or"
    elif type(error).__name__ == "OfflineModeIsEnabled":
        why = "HF_HUB_OFFLINE is set:"
    elif isinstance(error, RuntimeError):
        why = f"the transfer from huggingface.co failed ({one_line(error)}):"
    else:
        why = "huggingface.co cannot be reached:"
    fetch = f"fetch {spec.hub_file} from {page} elsewhere"
    return f"no weights for {spec.name}, {why} {fetch} and {_by_hand(spec, spec.hub_file)}"


def _by_hand(spec: EncoderSpec, file: str) -> str:
    return f"run `wsimil weights add {spec.name} {file}`, or name the file by --weights"
