from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_site import TOYS, Site

from dengine_sm.errors import (
    BackendConflictError,
    BackendLoadError,
    BackendNotFoundError,
    ConfigError,
    ContractViolationError,
)
from dengine_sm.hookspecs import Backend, LogEngine
from dengine_sm.loader import (
    create_commit_log,
    create_state_machine,
    find_backend,
    installed_backends,
    installed_commit_logs,
    structure_options,
)
from dengine_sm.model import Durability

Install = Callable[..., Path]


def load_error(name: str) -> str:
    with pytest.raises(BackendLoadError) as caught:
        find_backend(name)
    return str(caught.value)


def test_lists_the_built_in_backends():
    listed = {item.name: item for item in installed_backends()}

    assert {"memory", "file"} <= set(listed)
    assert listed["memory"].distribution == "dengine-sm"
    assert listed["memory"].entry_point == "builtin = dengine_sm.backends"
    assert listed["memory"].error is None


def test_lists_the_embedded_commit_log():
    listed = {item.name: item for item in installed_commit_logs()}

    assert isinstance(listed["embedded"].engine, LogEngine)


def test_lists_a_good_plugin_with_its_distribution(site: Site):
    site.toy("good")

    (item,) = [item for item in installed_backends() if item.name == "good"]

    assert isinstance(item.backend, Backend)
    assert (item.distribution, item.version) == ("dengine-sm-toy-good", "1.0")
    assert item.error is None


def test_creates_a_good_machine_validated_and_not_started(site: Site, tmp_path: Path):
    site.toy("good")

    machine = create_state_machine("good", tmp_path / "data", {"max_value_bytes": 64})

    assert not machine.is_running()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["memory", "file"])
def test_the_built_in_backends_pass_validation(name: str, tmp_path: Path):
    assert not create_state_machine(name, tmp_path).is_running()
    assert list(tmp_path.iterdir()) == []


def test_a_broken_plugin_does_not_hide_the_others(site: Site):
    site.toy("failing-import", "good", "misspelt-hook")

    listed = {item.name: item for item in installed_backends()}

    assert {"memory", "file", "good", "failing-import", "misspelt-hook"} <= set(listed)
    assert listed["good"].backend is not None
    assert listed["failing-import"].backend is None
    assert "No module named" in str(listed["failing-import"].error)
    assert isinstance(listed["misspelt-hook"].error, BackendLoadError)


def test_a_plugin_that_exits_on_import_is_listed(site: Site):
    site.plugin("exits", "raise SystemExit(3)\n")

    (item,) = [item for item in installed_backends() if item.name == "exits"]

    assert "SystemExit: 3" in str(item.error)


def test_asking_for_a_plugin_that_does_not_load_raises_its_error(site: Site):
    site.toy("failing-import")
    expected = (
        "plugin 'failing-import' (dengine-sm-toy-failing-import 1.0): importing "
        "'dengine_sm_toy_failing_import' failed: ModuleNotFoundError: No module named "
        "'dengine_sm_toy_library_that_nobody_has'"
    )

    with pytest.raises(BackendLoadError, match=f"^{re.escape(expected)}$") as caught:
        create_state_machine("failing-import", site.root)

    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_misspelt_hook_is_named_with_the_nearest(site: Site):
    site.toy("misspelt-hook")

    assert load_error("misspelt-hook") == (
        "plugin 'misspelt-hook' (dengine-sm-toy-misspelt-hook 1.0): 'dengine_sm_backend' is "
        "marked as a hook, but there is no such hook; did you mean 'dengine_sm_backends'?"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "",
            "no hook is implemented; expected dengine_sm_backends, dengine_sm_commit_logs or "
            "dengine_sm_commands",
        ),
        (
            "def dengine_sm_backends():\n    return []\n",
            "function 'dengine_sm_backends' is not marked with hookimpl",
        ),
        (
            "def dengine_sm_bakends():\n    return []\n",
            "function 'dengine_sm_bakends' is no hook; did you mean 'dengine_sm_backends'?",
        ),
        (
            "@hookimpl\ndef dengine_sm_backends():\n    return []\n"
            "@hookimpl\ndef commit_log():\n    return []\n",
            "'commit_log' is marked as a hook, but there is no such hook; "
            "did you mean 'dengine_sm_commit_logs'?",
        ),
        (
            "@hookimpl\ndef dengine_sm_backends():\n    pass\n",
            "hook dengine_sm_backends returned None; expected an iterable of Backend",
        ),
        (
            "@hookimpl\ndef dengine_sm_backends():\n    return 3\n",
            "hook dengine_sm_backends returned 3; expected an iterable of Backend",
        ),
        (
            "@hookimpl\ndef dengine_sm_backends():\n    return ['x']\n",
            "hook dengine_sm_backends returned 'x' among others; expected an iterable of Backend",
        ),
        (
            "@hookimpl\ndef dengine_sm_commit_logs():\n    return [Backend('x', create_memory)]\n",
            "among others; expected an iterable of LogEngine",
        ),
        (
            "@hookimpl\ndef dengine_sm_backends():\n    return [Backend(3, create_memory)]\n",
            "hook dengine_sm_backends: name is 3; expected a text",
        ),
        (
            "@hookimpl\ndef dengine_sm_backends():\n    return [Backend('x', create_memory)] * 2\n",
            "hook dengine_sm_backends returned two items named 'x'",
        ),
        (
            "@hookimpl\ndef dengine_sm_backends():\n    raise OSError('disk gone')\n",
            "hook dengine_sm_backends failed: OSError: disk gone",
        ),
        (
            "@hookimpl\ndef dengine_sm_backends():\n    yield 3 / 0\n",
            "hook dengine_sm_backends failed: ZeroDivisionError",
        ),
        (
            "@hookimpl\ndef dengine_sm_backends(config):\n    return []\n",
            "not a plugin: PluginValidationError",
        ),
    ],
)
def test_a_misused_hook_is_an_error(site: Site, source: str, expected: str):
    site.plugin("odd", source)

    error = load_error("odd")

    assert error.startswith("plugin 'odd' (dengine-sm-toy-odd 1.0): ")
    assert expected in error


def test_refuses_two_distributions_with_one_name(site: Site, tmp_path: Path):
    site.toy("twin-a", "twin-b")
    expected = (
        "backend name 'twin' is registered by two distributions, dengine-sm-toy-twin-a 0.1.0 "
        "and dengine-sm-toy-twin-b 2.3.0; uninstall one of them"
    )

    with pytest.raises(BackendConflictError, match=f"^{re.escape(expected)}$") as caught:
        create_state_machine("twin", tmp_path)

    assert caught.value.distributions == (
        "dengine-sm-toy-twin-a 0.1.0",
        "dengine-sm-toy-twin-b 2.3.0",
    )


def test_lists_both_claimants_of_a_name(site: Site):
    site.toy("twin-a", "twin-b")

    twins = [item for item in installed_backends() if item.name == "twin"]

    assert [item.version for item in twins] == ["0.1.0", "2.3.0"]
    assert all(isinstance(item.error, BackendConflictError) for item in twins)


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path):
    installed = sorted({item.name for item in installed_backends() if item.backend})
    expected = (
        f"no state machine backend named 'memry'; installed: {', '.join(installed)}. "
        "Did you mean 'memory'?"
    )

    with pytest.raises(BackendNotFoundError, match=f"^{re.escape(expected)}") as caught:
        create_state_machine("memry", tmp_path)

    assert list(caught.value.installed) == installed


def test_an_unknown_name_mentions_plugins_that_did_not_load(site: Site):
    site.toy("failing-import")

    with pytest.raises(BackendNotFoundError) as caught:
        find_backend("zzz")

    assert "\n1 plugin did not load:\n  - plugin 'failing-import' (dengine" in str(caught.value)


def test_an_unknown_commit_log_is_not_found(tmp_path: Path):
    installed = ", ".join(sorted(log.name for log in installed_commit_logs()))
    expected = f"no commit log named 'embeded'; installed: {installed}. Did you mean 'embedded'?"

    with pytest.raises(BackendNotFoundError, match=f"^{re.escape(expected)}"):
        create_commit_log("embeded", tmp_path)


def test_creates_the_embedded_commit_log_without_touching_anything(tmp_path: Path):
    log = create_commit_log("embedded", tmp_path / "log")

    assert log.is_shared is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", ["structure", "preflight"])
def test_a_missing_method_is_refused(site: Site, tmp_path: Path, level: str):
    site.toy("missing-method")
    expected = (
        "backend 'missing-method' (dengine-sm-toy-missing-method 1.0) breaks contract 1 in "
        "1 place:\n  - flush_async: expected async def flush_async(), observed no such method ("
    )

    with pytest.raises(ContractViolationError, match=f"^{re.escape(expected)}") as caught:
        create_state_machine("missing-method", tmp_path, validate=level)

    assert f"{site.root}/dengine_sm_toy_missing_method.py:" in str(caught.value)


def test_a_sync_apply_chunk_is_refused(site: Site, tmp_path: Path):
    site.toy("sync-apply")

    with pytest.raises(ContractViolationError) as caught:
        create_state_machine("sync-apply", tmp_path)

    (finding,) = caught.value.findings
    assert (finding.expected, finding.observed) == ("async def", "def")


def test_wrong_signatures_are_all_reported(site: Site, tmp_path: Path):
    site.toy("wrong-signature")

    with pytest.raises(ContractViolationError) as caught:
        create_state_machine("wrong-signature", tmp_path)

    assert [finding.clause_or_method for finding in caught.value.findings] == [
        "apply_chunk",
        "scan_prefix",
    ]
    assert "breaks contract 1 in 2 places:" in str(caught.value)
    assert "(chunk, fsync); 'fsync' has no default" in str(caught.value)


FORGETFUL = """
from dengine_sm.kv import KeyValueStateMachine, RamStore

class Forgetful(KeyValueStateMachine):
    def entry_term(self, entry_id):
        super().entry_term(entry_id)

@hookimpl
def dengine_sm_backends():
    create = lambda data_dir, options: Forgetful(RamStore())
    return [Backend("forgetful", create, durability=Durability.TRANSIENT)]
"""


def test_preflight_finds_what_structure_does_not(site: Site, tmp_path: Path):
    site.plugin("forgetful", FORGETFUL)

    create_state_machine("forgetful", tmp_path, validate="structure")
    with pytest.raises(ContractViolationError, match="LOG-2: expected terms"):
        create_state_machine("forgetful", tmp_path)


def test_validation_off_trusts_and_warns(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    site.toy("sync-apply")

    with caplog.at_level(logging.WARNING, logger="dengine_sm.loader"):
        create_state_machine("sync-apply", tmp_path, validate="off")

    assert caplog.messages == [
        "backend 'sync-apply' (dengine-sm-toy-sync-apply 1.0) is used without validation"
    ]


def test_refuses_an_unknown_validation_level(tmp_path: Path):
    expected = (
        "state_machine.validate: expected one of structure, preflight, off, observed 'strict'"
    )

    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        create_state_machine("memory", tmp_path, validate="strict")


def test_refuses_another_contract_version_even_without_validation(site: Site, tmp_path: Path):
    site.plugin(
        "newer",
        "@hookimpl\ndef dengine_sm_backends():\n"
        "    return [Backend('newer', create_memory, contract_version=2)]\n",
    )
    expected = "CONTRACT_VERSION: expected contract 1, observed contract 2 (entry point"

    with pytest.raises(ContractViolationError, match=re.escape(expected)):
        create_state_machine("newer", tmp_path, validate="off")


def test_a_factory_that_fails_is_a_load_error(site: Site, tmp_path: Path):
    site.plugin(
        "dead",
        "def create(data_dir, options):\n    raise RuntimeError('no licence')\n"
        "@hookimpl\ndef dengine_sm_backends():\n    return [Backend('dead', create)]\n",
    )
    expected = (
        "backend 'dead' (dengine-sm-toy-dead 1.0): its factory failed: RuntimeError: no licence; "
        "nothing was created"
    )

    with pytest.raises(BackendLoadError, match=f"^{re.escape(expected)}$") as caught:
        create_state_machine("dead", tmp_path)

    assert isinstance(caught.value.__cause__, RuntimeError)


def test_wrong_options_are_all_reported(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        create_state_machine("file", tmp_path, {"segmnt_bytes": 1, "durability": "never"})

    unknown, wrong = caught.value.problems
    assert unknown.startswith("state_machine.options: unknown option 'segmnt_bytes'; accepted: ")
    assert unknown.endswith("; did you mean 'segment_bytes'?")
    assert wrong.startswith("state_machine.options.durability: expected one of 'per_apply', ")


def test_a_backend_without_options_refuses_any(tmp_path: Path):
    expected = "state_machine.options: backend 'memory' takes no options, observed 'size'"

    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        create_state_machine("memory", tmp_path, {"size": 3})


@pytest.mark.parametrize("options", [None, {}])
def test_no_options_are_the_defaults(options: Any):
    backend = find_backend("file")

    built = structure_options(backend, options)

    assert built == backend.options()
    assert structure_options(backend, built) is built
    assert backend.durability_for(built) is Durability.ON_FLUSH


def test_options_that_are_no_table_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=re.escape("expected a table for backend 'file'")):
        create_state_machine("file", tmp_path, ["x"])


def test_an_options_class_that_is_not_attrs_is_the_plugins_fault(site: Site, tmp_path: Path):
    site.plugin(
        "dictish",
        "@hookimpl\ndef dengine_sm_backends():\n"
        "    return [Backend('dictish', create_memory, options=dict)]\n",
    )

    with pytest.raises(BackendLoadError, match=r"options class .* expected an attrs class"):
        create_state_machine("dictish", tmp_path, {"a": 1})


def test_preflight_runs_under_the_users_options(site: Site, tmp_path: Path):
    site.plugin(
        "moody",
        "import attrs\n"
        "@attrs.frozen\nclass Options:\n    broken: bool = False\n"
        "def create(data_dir, options):\n"
        "    machine = create_memory()\n"
        "    if options.broken:\n        machine.entry_term = lambda entry_id: 7\n"
        "    return machine\n"
        "@hookimpl\ndef dengine_sm_backends():\n"
        "    return [Backend('moody', create, Options, Durability.TRANSIENT)]\n",
    )

    create_state_machine("moody", tmp_path)
    with pytest.raises(ContractViolationError, match="LOG-2"):
        create_state_machine("moody", tmp_path, {"broken": True})


PROBE = """
import sys
from pathlib import Path
from dengine_sm import create_state_machine, installed_backends

assert "good" in {item.name for item in installed_backends() if item.error is None}
assert "sqlite3" not in sys.modules, "listing imported what only the factory needs"
machine = create_state_machine("good", Path(sys.argv[1]))
assert "sqlite3" in sys.modules
print(type(machine).__name__)
"""


def test_a_plugin_that_pip_installed_is_found(tmp_path: Path):
    project = tmp_path / "project"  # the build writes beside its sources
    shutil.copytree(TOYS / "good", project)
    target = tmp_path / "target"
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", target, project],
        check=True,
        capture_output=True,
    )

    probe = subprocess.run(
        [sys.executable, "-c", PROBE, tmp_path / "data"],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )

    assert (probe.returncode, probe.stdout, probe.stderr) == (0, "KeyValueStateMachine\n", "")
