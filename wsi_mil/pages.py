"""HTML pages from the templates of the package: no script, no network, they open from disk. The only door to jinja2."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from wsi_mil import __version__


def render(template: str, **values: Any) -> bytes:
    """Fill a template of ``wsi_mil/templates``; it is also told the version.

    Of paths that are not UTF-8 the bytes stand there as ``\\udce9``.
    """
    environment = Environment(loader=PackageLoader("wsi_mil"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(version=__version__, **values).encode(errors="backslashreplace")
