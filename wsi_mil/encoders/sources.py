"""Where weight files lie on this machine."""

from pathlib import Path

from wsi_mil.encoders.spec import EncoderSpec


def local_file(spec: EncoderSpec) -> Path | None:
    """Return the published weight file of an encoder if it is on this machine, without asking the network."""
    from huggingface_hub import try_to_load_from_cache  # here, since most runs never ask the hub

    if not spec.hub_id:
        return None
    found = try_to_load_from_cache(spec.hub_id, spec.hub_file)
    return Path(found) if isinstance(found, str) else None
