"""The kit's main door: a test class to inherit from, with one fixture to override."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dengine_sm.conformance.catalogue import all_checks
from dengine_sm.conformance.key_value import KeyValueWorkload
from dengine_sm.conformance.maker import (
    Maker,
    OpenStateMachine,
    maker_of_callable,
    maker_of_fixture,
)
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.runner import remove_tree, run_in_trial
from dengine_sm.conformance.subject import Subject
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import CannotCheckError, NotBoundError
from dengine_sm.conformance.workload import Workload
from dengine_sm.model import Durability, Limits

PROFILE_OPTION = "--conformance-profile"
SEED_OPTION = "--conformance-seed"

_FORGOTTEN = (
    "override the fixture open_state_machine: it returns a callable that takes a directory, "
    "fresh or already used, and constructs your machine on it without starting it"
)


class StateMachineTests:
    """Every check of the contract as a test; inherit, and override `open_state_machine`.

    The checks are not to be redefined: a subclass that does so is refused. A failure that
    is known is declared in `known_failures`, and turns into a failure of its own once it
    is mended.
    """

    durability: ClassVar[Durability] = Durability.ON_FLUSH
    """The class that the backend registers."""
    limits: ClassVar[Limits | None] = Limits()
    """Sizes that a key-value machine accepts; None for a machine that is not key-value."""
    workload: ClassVar[Workload | None] = None
    """Commands and model of a machine that is not key-value; None for `kv/1`."""
    keeps_state_in_memory: ClassVar[bool] = False
    """Declares that memory grows with the state: SNAP-13 then does not bind."""
    detects_damage: ClassVar[bool] = True
    """False declares an engine without checksums: flipped bits go unnoticed (CRASH-5)."""
    known_failures: ClassVar[Mapping[str, str]] = {}
    """Test name to reason, with a link to the issue; run as strict xfail."""

    @pytest.fixture
    def open_state_machine(self) -> OpenStateMachine:
        """Return the factory under test; to be overridden."""
        pytest.fail(_FORGOTTEN, pytrace=False)

    @pytest.fixture
    def conformance_subject(
        self, open_state_machine: OpenStateMachine, request: pytest.FixtureRequest
    ) -> Subject:
        """Return what is under test, from the fixture and the class attributes."""
        return Subject(
            name=type(self).__name__,
            open_state_machine=open_state_machine,
            workload=self.workload or KeyValueWorkload(self.limits or Limits()),
            durability=self.durability,
            limits=self.limits if self.workload is None else None,
            maker=_maker(type(self), open_state_machine),
            keeps_state_in_memory=self.keeps_state_in_memory,
            detects_damage=self.detects_damage,
        )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_redefinitions(cls)
        unknown = sorted(set(cls.known_failures) - set(_TESTS))
        if unknown:
            raise TypeError(
                f"{cls.__qualname__}.known_failures names {', '.join(map(repr, unknown))}: "
                "expected names of the kit's tests, such as 'test_apply_1_results_match_entries'"
            )
        for name, reason in cls.known_failures.items():
            marked = pytest.mark.xfail(reason=reason, strict=True)(_test(_TESTS[name]))
            setattr(cls, name, marked)


def _refuse_redefinitions(cls: type) -> None:
    redefined = sorted(
        name for name in _TESTS if not hasattr(getattr(cls, name, None), "conformance_check")
    )
    if redefined:
        raise TypeError(
            f"{cls.__qualname__} redefines {', '.join(redefined)}: the kit's checks are not to be "
            "overridden; declare a failure in known_failures = {test name: reason} instead"
        )


def _maker(cls: type, factory: OpenStateMachine) -> Maker | None:
    """Return how another process finds the factory: by its own name, or by the fixture."""
    own = cls.open_state_machine  # type: ignore[attr-defined]  # a StateMachineTests
    if own is StateMachineTests.open_state_machine:
        return maker_of_callable(factory)
    return maker_of_callable(factory) or maker_of_fixture(cls)


def _test(check: Check) -> Callable[..., None]:
    def test(self: Any, conformance_subject: Subject, request: pytest.FixtureRequest) -> None:
        __tracebackhide__ = True
        run_as_test(check, conformance_subject, request)

    test.__name__ = test.__qualname__ = f"test_{check.name}"
    test.__doc__ = f"{check.clause}: {check.summary}"
    test.conformance_check = check  # type: ignore[attr-defined]  # how redefinitions are told
    marked: Callable[..., None] = pytest.mark.conformance(
        clause=check.clause, profile=check.profile.label
    )(test)
    return marked


def run_as_test(check: Check, subject: Subject, request: pytest.FixtureRequest) -> None:
    """Run a check inside a pytest test: skips are pytest's, failures tell how to repeat them."""
    __tracebackhide__ = True
    profile = Profile.from_label(request.config.getoption(PROFILE_OPTION, "standard"))
    if check.profile > profile:
        label = check.profile.label
        pytest.skip(f"runs in profile {label}: {PROFILE_OPTION} {label}")
    seed = _seed(request.config.getoption(SEED_OPTION, "0"))
    root = Path(tempfile.mkdtemp(prefix="dengine-sm-kit-"))
    try:
        run_in_trial(check, Trial(subject, root, profile, seed))
    except NotBoundError as exc:
        pytest.skip(f"{check.clause} is not bound: {exc}")
    except CannotCheckError as exc:
        pytest.skip(f"{check.clause} could not be checked: {exc}")
    except Exception as exc:
        exc.add_note(
            f"seed {seed}; repeat with: pytest {request.node.nodeid!r} "
            f"{PROFILE_OPTION} {profile.label} {SEED_OPTION} {seed}"
        )
        raise
    finally:
        remove_tree(root)


def _seed(text: str) -> int:
    return random.randrange(1 << 32) if text == "random" else int(text)  # noqa: S311 - no secret


_TESTS = {f"test_{check.name}": check for check in all_checks()}
for _name, _check in _TESTS.items():
    setattr(StateMachineTests, _name, _test(_check))
