"""Keys and signatures, which no log, page or artifact is to hold."""

import re

_HIDDEN = "…"
_RULES = (
    # A query of the web signs (S3, GCS, Azure), and what is asked for otherwise is no part of a slide's name. At other
    # addresses a question mark may be, unless something is told after it.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?'\"<>]*)\?[^\s'\"<>]*=[^\s'\"<>]*", re.IGNORECASE), rf"\1?{_HIDDEN}"),
    (re.compile(r"(\bhttps?://[^\s?'\"<>]*)\?[^\s'\"<>]*", re.IGNORECASE), rf"\1?{_HIDDEN}"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@'\"]+@", re.IGNORECASE), rf"\1{_HIDDEN}@"),
    (
        re.compile(
            r"\b(x-amz-[a-z0-9-]+|x-goog-[a-z0-9-]+|signature|sig|token|awsaccesskeyid|googleaccessid)=[^&\s'\"]+",
            re.IGNORECASE,
        ),
        rf"\1={_HIDDEN}",
    ),
    (re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{12,}\b"), rf"\1{_HIDDEN}"),
)


def redacted(text: str) -> str:
    """A text with the queries and passwords of its addresses, and what looks like a key, left out.

    Example:
        redacted("https://host/a.svs?X-Amz-Signature=1f") == "https://host/a.svs?…"
    """
    for pattern, shown in _RULES:
        text = pattern.sub(shown, text)
    return text
