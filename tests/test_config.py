"""Configuration: sources, precedence, and every problem at once."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
import tomli_w

from dengine_sm.config import (
    LogSection,
    NodeConfig,
    NodeSection,
    ServerSection,
    SnapshotSection,
    StateMachineSection,
    config_to_toml,
    load_config,
    parse_scalar,
    split_listen,
)
from dengine_sm.errors import ConfigError
from dengine_sm.snapshot.policy import SnapshotProgress


def write(directory: Path, text: str) -> Path:
    path = directory / "node.toml"
    path.write_text(text)
    return path


def problems_of(path: Path | None = None, **arguments: Any) -> list[str]:
    """Load what must fail; return its problems without the directory's name."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ=arguments.pop("environ", {}), **arguments)
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    prefix = f"{path.parent}/" if path else ""
    return [p.replace(prefix, "") if prefix else p for p in caught.value.problems]


def test_works_without_any_source() -> None:
    assert load_config(environ={}) == NodeConfig()


def test_every_field_has_a_default_and_a_docstring() -> None:
    source = Path(__import__("dengine_sm.config").config.__file__).read_text()

    for section in attrs.fields(NodeConfig):
        for field in attrs.fields(type(getattr(NodeConfig(), section.name))):
            assert field.default is not attrs.NOTHING
            documented = rf'\n    {field.name}: [^\n]+(\n        [^\n]*|\n    \))*\n    """'
            assert re.search(documented, source), field.name


def test_reads_every_section_of_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [node]
        name = "a"
        data_dir = "somewhere"
        [state_machine]
        backend = "memory"
        validate = "off"
        [state_machine.options]
        sync = true
        [log.options]
        segment_bytes = 1000
        [snapshot]
        every_entries = 10
        every_bytes = "off"
        every_seconds = 5
        [server]
        enabled = false
        """,
    )

    assert load_config(path, environ={}) == NodeConfig(
        node=NodeSection(name="a", data_dir=Path("somewhere")),
        state_machine=StateMachineSection(backend="memory", validate="off", options={"sync": True}),
        log=LogSection(options={"segment_bytes": 1000}),
        snapshot=SnapshotSection(every_entries=10, every_bytes=None, every_seconds=5.0),
        server=ServerSection(enabled=False),
    )


def test_environment_beats_the_file_and_overrides_beat_both(tmp_path: Path) -> None:
    path = write(tmp_path, '[node]\nname = "file"\n[server]\nlisten = "127.0.0.1:1"\n')
    environ = {
        "DENGINE_SM__NODE__NAME": "environment",
        "DENGINE_SM__SERVER__LISTEN": "127.0.0.1:2",
        "DENGINE_SM_TARGET": "not ours to read",
    }

    config = load_config(path, environ=environ, overrides={"server.listen": "127.0.0.1:3"})

    assert config.node.name == "environment"
    assert config.server.listen == "127.0.0.1:3"


def test_overrides_that_are_none_are_ignored() -> None:
    assert load_config(environ={}, overrides={"node.name": None}) == NodeConfig()


def test_options_merge_key_by_key_over_all_sources(tmp_path: Path) -> None:
    path = write(tmp_path, "[state_machine.options]\na = 1\nb = 1\nc = 1\ndeep = {x = 1, y = 1}\n")
    environ = {
        "DENGINE_SM__STATE_MACHINE__OPTIONS__B": "2",
        "DENGINE_SM__STATE_MACHINE__OPTIONS__DEEP__Y": "[1, 2]",
    }
    overrides = {"state_machine.options.c": 3, "state_machine.options": {"d": 4}}

    config = load_config(path, environ=environ, overrides=overrides)

    assert config.state_machine.options == {
        "a": 1,
        "b": 2,
        "c": 3,
        "d": 4,
        "deep": {"x": 1, "y": [1, 2]},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12),
        ("true", True),
        ("1.5", 1.5),
        ('"12"', "12"),
        ("[1, 2]", [1, 2]),
        ("per_apply", "per_apply"),
        ("", ""),
        ("127.0.0.1:9081", "127.0.0.1:9081"),
        ("1\nother = 2", "1\nother = 2"),
    ],
)
def test_variables_are_toml_values_or_plain_text(text: str, expected: Any) -> None:
    observed = parse_scalar(text)

    assert (type(observed), observed) == (type(expected), expected)


def test_a_variable_that_looks_like_a_number_still_serves_as_text() -> None:
    config = load_config(environ={"DENGINE_SM__NODE__NAME": "7"})

    assert config.node.name == "7"


def test_reports_all_problems_of_all_sources_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [nod]
        name = "x"
        [node]
        max_inflight = 10
        max_in_flight = 0
        [snapshot]
        every_entries = "often"
        """,
    )
    environ = {"DENGINE_SM__SERVER__LISTEN": "9081", "DENGINE_SM__NODE": "x"}

    observed = problems_of(path, environ=environ, overrides={"log.engin": "embedded"})

    assert observed == [
        "node.toml: unknown section 'nod'; accepted: node, state_machine, log, snapshot, server; "
        "did you mean 'node'?",
        "node.toml: node: unknown field 'max_inflight'; accepted: name, data_dir, max_in_flight, "
        "max_batch_entries, max_batch_bytes, apply_chunk_entries; did you mean 'max_in_flight'?",
        "node.toml: node.max_in_flight: expected at least 1, observed 0",
        "node.toml: snapshot.every_entries: expected int or None, observed str 'often'",
        "environment DENGINE_SM__NODE: node: names a section; a field is missing",
        "environment DENGINE_SM__SERVER__LISTEN: server.listen: expected HOST:PORT such as "
        "'127.0.0.1:9081' or '[::1]:9081', observed '9081'",
        "override 'log.engin': log: unknown field 'engin'; accepted: engine, options; "
        "did you mean 'engine'?",
    ]


def test_the_message_counts_the_problems(tmp_path: Path) -> None:
    path = write(tmp_path, "[node]\nmax_in_flight = 0\nmax_batch_bytes = true\n")

    with pytest.raises(ConfigError, match=re.escape("configuration has 2 problems:\n  - ")):
        load_config(path, environ={})


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("node = 3", "node.toml: node: expected a table, observed 3"),
        (
            "[log]\noptions = 3",
            "node.toml: log.options: expected a table, observed 3",
        ),
        (
            '[state_machine]\nvalidate = "some"',
            "node.toml: state_machine.validate: expected one of preflight, structure, off, "
            "observed 'some'",
        ),
        ("[node]\nname = ' '", "node.toml: node.name: expected a name, observed ' '"),
        (
            "[snapshot]\nevery_seconds = nan",
            "node.toml: snapshot.every_seconds: expected more than 0, observed nan",
        ),
        (
            "[snapshot]\nkeep_log_entries = -1",
            "node.toml: snapshot.keep_log_entries: expected at least 0, observed -1",
        ),
        (
            "[node]\nmax_in_flight = true",
            "node.toml: node.max_in_flight: expected int, observed bool True",
        ),
        ('[node]\nname = "off"\nname.x = 1', None),
    ],
)
def test_names_source_section_and_field(tmp_path: Path, toml: str, problem: str | None) -> None:
    observed = problems_of(write(tmp_path, toml))

    assert len(observed) == 1
    if problem is not None:
        assert observed == [problem]


def test_a_variable_below_a_plain_field_is_refused() -> None:
    assert problems_of(environ={"DENGINE_SM__NODE__NAME__X": "1"}) == [
        "environment DENGINE_SM__NODE__NAME__X: node.name: has no fields below it"
    ]


def test_malformed_toml_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "[node]\nname = \n")

    (observed,) = problems_of(path)

    assert observed.startswith("configuration file 'node.toml': not TOML: ")
    assert "at line 2" in observed


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"[node]\n\xff")

    assert problems_of(path) == ["configuration file 'node.toml': byte 7 is not UTF-8"]


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "node.toml") == [
        "configuration file 'node.toml': cannot be read: No such file or directory"
    ]


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:9081", ("127.0.0.1", 9081)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("[::1]", 65535)),
    ],
)
def test_splits_listen(listen: str, expected: tuple[str, int]) -> None:
    assert split_listen(listen) == expected


@pytest.mark.parametrize("listen", ["", "host", ":1", "host:", "host:x", "host:65536", "::1:9081"])
def test_refuses_other_forms_of_listen(listen: str) -> None:
    with pytest.raises(ValueError, match=r"^listen: expected HOST:PORT"):
        ServerSection(listen=listen)


def test_the_toml_form_reads_back_as_an_equal_config(tmp_path: Path) -> None:
    options = {
        "text": 'quotes " and \\ and \n and \x7f and ü',
        "strange key": [1, 2.5, True, "x"],
        "table": {"a b": {"c": 1e300}},
    }
    config = NodeConfig(
        node=NodeSection(name="näme", data_dir=Path("/var/lib/x y")),
        state_machine=StateMachineSection(options=options),
        snapshot=SnapshotSection(every_entries=None, every_seconds=0.5),
    )

    text = config_to_toml(config)

    assert load_config(write(tmp_path, text), environ={}) == config
    assert tomllib.loads(text) == tomllib.loads(tomli_w.dumps(tomllib.loads(text)))


@pytest.mark.parametrize(
    ("section", "due"),
    [
        (SnapshotSection(every_entries=6, every_bytes=None), False),
        (SnapshotSection(every_entries=5, every_bytes=None), True),
        (SnapshotSection(every_entries=None, every_bytes=51), False),
        (SnapshotSection(every_entries=None, every_bytes=50), True),
        (SnapshotSection(every_entries=None, every_bytes=None, every_seconds=1.5), True),
        (SnapshotSection(every_entries=None, every_bytes=None), False),
    ],
)
def test_the_snapshot_section_makes_a_policy(section: SnapshotSection, due: bool) -> None:
    progress = SnapshotProgress(entries_since=5, bytes_since=50, seconds_since=1.5)

    assert section.policy().should_snapshot(progress) is due
