"""The agent's configuration: what is taken, what is refused and how, what a reload changes."""

import json
import tomllib
from pathlib import Path

import pytest

from mycoproxy.agent import config_source, config_text
from mycoproxy.agent.config import KEYS, Config, json_schema
from mycoproxy.agent.config_changes import Change, changes_between
from mycoproxy.agent.config_source import ConfigError, Loaded, Source, load_text
from mycoproxy.agent.config_types import Listen

DOCS = Path(__file__).parents[2] / "docs"


def load(text: str = "", **environment: str) -> Loaded:
    variables = {f"MYCOPROXY_{name}": value for name, value in environment.items()}
    return load_text(text, variables, name="agent.toml")


def refused(text: str = "", **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, **environment)
    return str(caught.value).splitlines()


def test_nothing_said_gives_a_whole_configuration() -> None:
    loaded = load()
    assert loaded.config.log.level == "info"
    assert loaded.config.peers.listen == (Listen("0.0.0.0", 7420),)
    assert set(loaded.origins.values()) == {"default"}
    assert set(loaded.origins) == {key.path for key in KEYS}


def test_environment_goes_before_file_and_file_before_default() -> None:
    loaded = load(
        '[log]\nlevel = "debug"\nformat = "json"\n[limits]\nmoves = 2\n',
        LOG_LEVEL="warning",
        LIMITS_CONNECTIONS="7",
    )
    assert loaded.config.log.level == "warning"
    assert loaded.config.log.format == "json"
    assert loaded.config.limits.moves == 2
    assert loaded.config.limits.connections == 7
    assert loaded.origins["log.level"] == "environment: MYCOPROXY_LOG_LEVEL"
    assert loaded.origins["log.format"] == "agent.toml:3"
    assert loaded.origins["limits.moves"] == "agent.toml:5"
    assert loaded.origins["limits.move_seconds"] == "default"


def test_every_kind_of_value_can_come_from_the_environment() -> None:
    config = load(
        NODE_NAME="alpha.example",
        NAMESPACES_PODS="/run/netns/a*, /run/netns/b*",
        PEERS_LISTEN="192.0.2.1:1,[2001:db8::1]:2",
        PEERS_STATIC="beta=192.0.2.2,gamma=[2001:db8::3]:9,delta=2001:db8::4",
        CONTROL_MODE="0660",
        CONTROL_GROUP="adm",
        LIMITS_HANDOVER_SECONDS="2.5",
        LIMITS_MOVE_SECONDS="60",
        LIMITS_QUEUE_MEMORY="3 MiB",
    ).config
    assert config.node.name == "alpha.example"
    assert config.namespaces.pods == ("/run/netns/a*", "/run/netns/b*")
    assert config.peers.listen == (Listen("192.0.2.1", 1), Listen("2001:db8::1", 2))
    assert config.peers.static == {
        "beta": Listen("192.0.2.2", 7420),
        "gamma": Listen("2001:db8::3", 9),
        "delta": Listen("2001:db8::4", 7420),
    }
    assert config.control.mode == 0o660
    assert config.control.group == "adm"
    assert config.limits.handover_seconds == 2.5
    assert config.limits.move_seconds == 60
    assert config.limits.queue_memory == 3 * 2**20


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load('[log]\nlevel = "debug"', LOG_LEVEL="").config.log.level == "debug"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '\n[log]\nlevel = "loud"',
            "agent.toml:3: log.level: one of 'debug', 'info', 'warning' or 'error' is wanted, "
            "found 'loud'",
        ),
        ("[log]\n\nlevle = 1", "agent.toml:3: log.levle: no such key; level is near it"),
        ("[limit]", "agent.toml:1: limit: no such key; limits is near it"),
        ("log.level = 3", "agent.toml:1: log.level: one of"),
        ("log = 3", "agent.toml:1: log: a table is wanted, found 3"),
        ("[limits]\nmoves = 0", "agent.toml:2: limits.moves: at least 1 is wanted, found 0"),
        ("[limits]\nmoves = true", "agent.toml:2: limits.moves: a whole number is wanted"),
        ('[limits]\nmoves = "3"', "agent.toml:2: limits.moves: a whole number is wanted"),
        ("[limits]\nmove_seconds = nan", "agent.toml:2: limits.move_seconds: a finite number"),
        ("[limits]\nmove_seconds = 0", "agent.toml:2: limits.move_seconds: a number above 0"),
        ('[limits]\nqueue_memory = "3 MB"', "agent.toml:2: limits.queue_memory: bytes (1048576)"),
        ("[limits]\nqueue_memory = 3", "agent.toml:2: limits.queue_memory: at least 1048576"),
        ('[node]\nname = "Alpha"', "agent.toml:2: node.name: a DNS name in lower case is wanted"),
        ('[metrics]\nlisten = "host:1"', "agent.toml:2: metrics.listen: an IP address and a port"),
        ('[metrics]\nlisten = "::1:80"', "agent.toml:2: metrics.listen: an IP address and a port"),
        ('[metrics]\nlisten = "1.2.3.4:65536"', "agent.toml:2: metrics.listen: an IP address"),
        ("[peers]\nlisten = []", "agent.toml:2: peers.listen: at least 1 is wanted"),
        (
            '[peers.static]\nbeta = "192.0.2.1:0"',
            "agent.toml:2: peers.static.beta: an IP address and a port",
        ),
        ('[state]\ndirectory = "run"', "agent.toml:2: state.directory: an absolute path is wanted"),
        ("[control]\nmode = 600", 'agent.toml:2: control.mode: permissions as octal text ("0660")'),
        ('[control]\nmode = "0666"', "agent.toml:2: control.mode: permissions without any for"),
        ('[control]\ngroup = "adm"', 'agent.toml:1: control: mode = "0660" is wanted with group'),
        (f'[control]\nsocket = "/{"x" * 92}"', "agent.toml:2: control.socket: at most 92 bytes"),
        ("[log\n", "agent.toml: TOML is wanted: "),
    ],
)
def test_a_refusal_says_where_what_was_wanted_and_what_was_found(text: str, line: str) -> None:
    (found,) = refused(text)
    assert found.startswith(line)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    lines = refused('[log]\nlevel = "x"\nformat = "y"', LIMITS_MOVES="many", LOG_LEVL="debug")
    assert [line.split(": ")[0] for line in lines] == [
        "environment",
        "agent.toml:2",
        "agent.toml:3",
        "environment",
    ]
    assert (
        lines[0] == "environment: MYCOPROXY_LOG_LEVL: no such key; MYCOPROXY_LOG_LEVEL is near it"
    )
    assert lines[3].startswith("environment: MYCOPROXY_LIMITS_MOVES: limits.moves: a whole number")


def test_the_line_of_a_key_is_found_however_it_is_written() -> None:
    text = '"log"."level" = "x"\n\n[ limits ] # of moves\n  \'moves\'=0\n'
    assert [line.split(": ")[0] for line in refused(text)] == ["agent.toml:1", "agent.toml:4"]


def test_variables_that_kubernetes_sets_for_services_are_no_keys() -> None:
    names = (
        "AGENT_SERVICE_HOST",
        "AGENT_SERVICE_PORT_METRICS",
        "LOG_PORT",
        "LOG_PORT_9090_TCP",
        "LOG_PORT_9090_TCP_ADDR",
    )
    assert load(**dict.fromkeys(names, "tcp://10.0.0.1:1")) == load()
    for key in KEYS:
        assert not config_source._OF_A_SERVICE.fullmatch(key.variable), key.variable
        assert not config_source._OTHERS.fullmatch(key.variable), key.variable


def test_two_keys_never_share_a_variable() -> None:
    assert len({key.variable for key in KEYS}) == len(KEYS)


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: the configuration cannot be read: No such"):
        Source.find(tmp_path / "none.toml", {}).load()


def test_the_file_can_be_named_by_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("[limits]\nmoves = 9\n")
    loaded = Source.find(None, {"MYCOPROXY_CONFIG": str(file)}).load()
    assert loaded.config.limits.moves == 9
    assert loaded.origins["limits.moves"] == f"{file}:2"


def test_what_is_printed_can_be_read_again() -> None:
    loaded = load(
        PEERS_STATIC="beta=192.0.2.2,gamma=[2001:db8::3]:9", NODE_NAME="a", LIMITS_MOVES="3"
    )
    again = load(config_text.effective(loaded))
    assert again.config == loaded.config


def test_the_example_in_the_docs_is_the_one_that_the_model_gives() -> None:
    text = (DOCS / "agent.example.toml").read_text()
    assert text == config_text.example(), (
        "mycoproxy agent --print-example > docs/agent.example.toml"
    )


def test_the_example_changes_nothing_and_its_keys_are_taken() -> None:
    assert load(config_text.example()).config == Config()
    bare = "\n".join(
        line.removeprefix("# ") if " = " in line and line.split(" = ")[0].count(" ") == 1 else line
        for line in config_text.example().splitlines()
    ).replace('mode = "0600"', 'mode = "0660"')
    data = tomllib.loads(bare)
    assert {f"{section}.{key}" for section in data for key in data[section]} == {
        key.path for key in KEYS
    }
    assert load(bare).config.node.name == "alpha"


def test_the_schema_knows_every_key_and_whether_a_reload_changes_it() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    for key in KEYS:
        section = schema["properties"][key.section]["$ref"].rpartition("/")[2]
        assert schema["$defs"][section]["additionalProperties"] is False
        place = schema["$defs"][section]["properties"][key.name]
        assert place["x-reload"] is key.reloadable
        assert place["description"]
    assert schema["$defs"]["ControlSection"]["properties"]["mode"]["default"] == "0600"


def test_a_reload_changes_what_it_can_and_names_the_rest() -> None:
    used = load("[limits]\nmoves = 2", NODE_NAME="a")
    read = load('[limits]\nmoves = 3\n[metrics]\nlisten = "127.0.0.1:1"', NODE_NAME="a")
    after, changes = changes_between(used, read)
    assert changes.applied == (Change("limits.moves", 2, 3),)
    assert changes.needs_restart == (Change("metrics.listen", "127.0.0.1:7421", "127.0.0.1:1"),)
    assert after.config.limits.moves == 3
    assert after.config.metrics.listen == Listen("127.0.0.1", 7421)
    assert after.origins["metrics.listen"] == "default"
    assert after.origins["limits.moves"] == "agent.toml:2"


def test_a_reload_of_the_same_changes_nothing() -> None:
    used = load(NODE_NAME="a", PEERS_STATIC="b=192.0.2.1")
    after, changes = changes_between(used, used)
    assert after == used
    assert changes.as_dict() == {"applied": [], "needs_restart": []}
