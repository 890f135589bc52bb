"""One undisturbed pipeline for all faults, and a table of what was injected and survived."""

import os
from collections import Counter
from collections.abc import Iterator

import pytest
from children import Parent
from pipeline import Reference, run_undisturbed

_TABLE = pytest.StashKey[dict[str, Counter[str]]]()


@pytest.fixture(scope="session")
def seed() -> int:
    """What draws the moments; ``WSIMIL_FAULT_SEED`` sets another."""
    return int(os.environ.get("WSIMIL_FAULT_SEED", "10"))


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    """The process that forks commands."""
    with Parent(tmp_path_factory.mktemp("logs"), tmp_path_factory.mktemp("wsimil-home")) as parent:
        yield parent


@pytest.fixture(scope="session")
def reference(parent: Parent, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The whole pipeline, undisturbed."""
    return run_undisturbed(tmp_path_factory.mktemp("reference") / "cohort", parent)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Count a fault by its kind: a test records ``fault`` for each that it injects; all are survived if it passes."""
    report = yield
    if report.when == "call":
        table = item.config.stash.setdefault(_TABLE, {})
        for name, kind in item.user_properties:
            if name == "fault":
                row = table.setdefault(kind, Counter())
                row["injected"] += 1
                row["survived"] += report.passed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print faults injected and survived, by kind."""
    table = config.stash.get(_TABLE, {})
    if not table:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'kind':<44}{'injected':>9}{'survived':>9}")
    for kind, row in sorted(table.items()):
        terminalreporter.write_line(f"{kind:<44}{row['injected']:>9}{row['survived']:>9}")
    whole = sum(table.values(), Counter())
    terminalreporter.write_line(f"{'all':<44}{whole['injected']:>9}{whole['survived']:>9}")
