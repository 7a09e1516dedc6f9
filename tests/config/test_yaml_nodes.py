"""Both of PyYAML's parsers give the same nodes, whatever the text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from account_pool.config import yaml_nodes
from account_pool.config.edit import end_of
from account_pool.config.yaml_nodes import (
    Ambiguous,
    Collection,
    Mapping,
    Node,
    Scalar,
    compose,
    read_plain,
)

EXAMPLE = Path(__file__).parents[2] / "accounts.example.yaml"
needs_c = pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML has no C parser here")


def described(node: Node | None) -> object:
    """Return all that is known of *node*, but where a block ends: comments count or not."""
    if node is None:
        return None
    place = (type(node).__name__, node.tag, node.line, node.column, node.start, end_of(node))
    if isinstance(node, Collection):
        return (*place, node.flow, [described(inner) for inner in node.children])
    assert isinstance(node, Scalar)
    # One parser places an empty value before the spaces around it, the other behind them.
    return (*(place if node.text else place[:3]), node.text, node.plain)


def both(text: str) -> list[object]:
    found: list[object] = []
    for parser in (yaml.CSafeLoader, yaml.SafeLoader):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(yaml_nodes, "PARSERS", (parser,))
            try:
                found.append(described(compose(text)))
            except (yaml.YAMLError, yaml_nodes.Refused):
                found.append("an error")
    return found


@needs_c
def test_of_the_example():
    one, other = both(EXAMPLE.read_text())
    assert one == other != "an error"


keys = st.sampled_from(["a", "'b c'", '"d"', "provider", "é", "x y"])
values = st.recursive(
    st.sampled_from(["1", "text", "'q'", '"\\n"', "", "&a x", "a b # c", "${X}", "ü: no", "*a"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(keys, inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=6,
)
lines = st.tuples(
    st.sampled_from(["", "  ", "    ", "- ", "  - ", "# "]),
    keys,
    st.sampled_from([": ", ":\n", ": |\n      ", ": >-\n      ", " "]),
    values,
    st.sampled_from(["\n", "\r\n", " # c\n", "\n\n", "\n  # c\n"]),
).map("".join)


@needs_c
@given(st.lists(lines, max_size=6).map("".join))
def test_of_any_text(text):
    one, other = both(text)
    assert one == other


def test_a_node_knows_its_place():
    root = compose("# c\na: 'b'\n\nc: [1, 2]\n")
    assert isinstance(root, Mapping)
    assert (root.line, root.column) == (2, 0)
    [(_, b), (c, numbers)] = root.pairs
    assert (b.line, b.column, b.start, b.end) == (2, 3, 7, 10)
    assert (c.line, numbers.column, numbers.end) == (4, 3, 21)


def test_without_its_c_parser(monkeypatch):
    monkeypatch.setattr(yaml_nodes, "PARSERS", (yaml.SafeLoader,))
    root = compose("a: 1")
    assert isinstance(root, Mapping)


# -- what the two versions of YAML agree on, and that everything else is refused


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("NULL", None),
        ("nULL", "nULL"),
        ("true", True),
        ("False", False),
        ("tRUE", "tRUE"),
        # Text to every reader in use, whatever the page of YAML 1.1 says.
        ("y", "y"),
        ("N", "N"),
        ("0", 0),
        ("-0", 0),
        ("+12", 12),
        ("12345678901234567890", 12345678901234567890),
        ("0x1F", 31),
        ("007", 7),  # octal and decimal are the same
        (".5", 0.5),
        ("1.", 1.0),
        ("-1.25", -1.25),
        ("1.0e+3", 1000.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("15%", "15%"),
        ("5h", "5h"),
        ("gpt-4", "gpt-4"),
        ("127.0.0.1:9443", "127.0.0.1:9443"),
        ("00000000-0000-4000-8000-000000000000", "00000000-0000-4000-8000-000000000000"),
        ("-", "-"),
        ("..", ".."),
        ("nope", "nope"),
    ],
)
def test_both_agree(text, value):
    assert (type(read_plain(text)), read_plain(text)) == (type(value), value)


def test_both_know_what_is_no_number():
    assert math.isnan(read_plain(".nan"))


BOOLEANS_OF_1_1 = ["on", "On", "OFF", "yes", "NO"]
INTEGERS_OF_ONE = ["012", "-012", "0o12", "0b1", "-0x1F", "1_000", "0x_", "0b_"]
BASE_60 = ["22:30", "190:20:30", "190:20:30.15", "685.230_15"]
NUMBERS_OF_1_2 = ["08", "09.5e1", "1e3", "1E3", "1.5e3", "1.5e10", "+.5", "12e5"]
INSTANTS_OF_1_1 = ["2026-12-01", "2026-12-01T00:00:00Z", "2001-1-1 1:02:03"]


@pytest.mark.parametrize(
    "text",
    [*BOOLEANS_OF_1_1, *INTEGERS_OF_ONE, *BASE_60, *NUMBERS_OF_1_2, *INSTANTS_OF_1_1, "=", "<<"],
)
def test_they_differ(text):
    assert isinstance(read_plain(text), Ambiguous)


def test_a_number_beyond_all_bounds_is_not_read():
    assert isinstance(read_plain("9" * 5000), Ambiguous)


@given(st.text("0123456789_:.+-eExobanfyYNOnulrtsTi~=<", max_size=9))
@example("1:1")
def test_what_is_taken_means_the_same_to_pyyaml_and_to_json(text):
    value = read_plain(text)
    if isinstance(value, Ambiguous):
        return
    tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))
    old = yaml.SafeLoader("").construct_object(yaml.ScalarNode(tag, text))
    assert repr(old) == repr(value)
    try:
        # JSON is a part of YAML 1.2.
        json_value = json.loads(text, parse_constant=int)  # int: NaN and the like are no JSON
    except ValueError:
        return
    assert repr(value) == repr(json_value)
