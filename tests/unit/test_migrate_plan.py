"""A plan that makes no sense is refused in one line that names the file and the field."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from migrate.machine.plan import load
from mycoproxy.errors import UsageError


def side(node: str) -> dict[str, Any]:
    return {
        "node": node,
        "node_netns": f"/run/netns/{node}",
        "pod_netns": f"/run/netns/{node}-pod",
        "runc_root": f"/run/runc-{node}",
        "container_id": "redis",
        "bundle": f"/bundles/{node}",
        "images": "/run/images",
    }


@pytest.fixture
def plan() -> dict[str, Any]:
    return {
        "move_id": "m-1",
        "source": side("alpha"),
        "target": side("beta"),
        "transfer_address": "10.0.0.2",
        "addresses": {"10.1.0.5": "10.2.0.5"},
        "peers": [{"name": "router", "netns": "/run/netns/router"}],
    }


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as refused:
        load(path)
    assert refused.value.exit_status == 2
    text = str(refused.value)
    assert str(path) in text
    return text


def written(tmp_path: Path, plan: object) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


def test_a_plan_is_read_with_its_defaults(tmp_path: Path, plan: dict[str, Any]) -> None:
    loaded = load(written(tmp_path, plan))
    assert loaded.target.bundle == Path("/bundles/beta")
    assert loaded.deadlines.freeze == 5.0
    assert [peer.name for peer in loaded.peers] == ["router"]
    assert loaded.address_map() == {"10.1.0.5": "10.2.0.5"}


def test_addresses_of_both_families_come_in_their_canonical_form(
    tmp_path: Path, plan: dict[str, Any]
) -> None:
    plan["addresses"] = {"10.1.0.5": "10.2.0.5", "FD00:0:0::0005": "fd01:0::5"}
    assert load(written(tmp_path, plan)).address_map() == {
        "10.1.0.5": "10.2.0.5",
        "fd00::5": "fd01::5",
    }


def test_json_is_a_plan_too(tmp_path: Path, plan: dict[str, Any]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(str(plan).replace("'", '"'))
    assert load(path).move_id == "m-1"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"move_id": "../../etc"}, "move_id"),
        ({"move_id": ""}, "move_id"),
        ({"transfer_address": "beta"}, "transfer_address"),
        ({"addresses": {"10.1.0.5": "10.2.0"}}, "addresses.10.1.0.5"),
        ({"peers": [{"name": "router"}]}, "peers.0.netns"),
        ({"deadlines": {"freeze": "soon"}}, "deadlines.freeze"),
        ({"deadlines": {"frozen": 1}}, "deadlines.frozen"),
        ({"source": {**side("alpha"), "container_id": "a/b"}}, "source.container_id"),
        ({"source": {**side("alpha"), "colour": "red"}}, "source.colour"),
        ({"target": None}, "target"),
        ({"sauce": 1}, "sauce"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_names_the_file_and_the_field(
    tmp_path: Path, plan: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    assert f": {field}" in refusal(written(tmp_path, {**plan, **change}))


@pytest.mark.parametrize(
    "missing", ["move_id", "source", "target", "transfer_address", "addresses"]
)
def test_a_field_that_is_missing_is_named(
    tmp_path: Path, plan: dict[str, Any], missing: str
) -> None:
    del plan[missing]
    assert f": {missing}: Field required" in refusal(written(tmp_path, plan))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nowhere.yaml")


def test_a_directory_is_no_plan(tmp_path: Path) -> None:
    refusal(tmp_path)


def test_text_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("source: {")
    assert "not YAML" in refusal(path)


@pytest.mark.parametrize("content", ["", "- 1\n- 2\n", "just words\n"])
def test_a_file_without_fields_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(content)
    assert "the file" in refusal(path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"\x7fELF\xff\xfe\x00\x80")
    refusal(path)
