"""pytest plugin of the kit: options, marker, header line; nothing else."""

from __future__ import annotations

import pytest

_PROFILES = ("quick", "standard", "deep")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the kit's options."""
    group = parser.getgroup("dengine_sm", "dengine_sm conformance kit")
    group.addoption(
        "--state-machine",
        metavar="NAME",
        help="installed backend that `pytest --pyargs dengine_sm.conformance` checks",
    )
    group.addoption(
        "--state-machine-option",
        metavar="K=V",
        action="append",
        default=[],
        help="an option of that backend; may be given again",
    )
    group.addoption(
        "--conformance-profile",
        choices=_PROFILES,
        default="standard",
        help="how hard the kit tries: quick, standard (default) or deep",
    )
    group.addoption(
        "--conformance-seed",
        metavar="N",
        default="0",
        help="which examples and crash points the kit chooses: a number, or `random`",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of the kit's tests."""
    config.addinivalue_line(
        "markers", "conformance(clause, profile): a check of the dengine_sm conformance kit"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the checks of larger profiles than the one asked for."""
    largest = _PROFILES.index(config.getoption("--conformance-profile"))
    left_out = [
        item
        for item in items
        if (marker := item.get_closest_marker("conformance")) is not None
        and _PROFILES.index(marker.kwargs["profile"]) > largest
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which backend is checked."""
    name = config.getoption("--state-machine")
    if name is None:
        return None
    from dengine_sm.conformance.backend import header_of_backend

    return header_of_backend(name, config.getoption("--state-machine-option"))
