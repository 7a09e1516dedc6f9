"""Both of PyYAML's parsers give the same nodes, whatever the text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from account_pool.config import yaml_nodes
from account_pool.config.edit import end_of
from account_pool.config.yaml_nodes import Collection, Mapping, Node, Scalar, compose

EXAMPLE = Path(__file__).parents[2] / "accounts.example.yaml"
needs_c = pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML has no C parser here")


def described(node: Node | None) -> object:
    """Return all that is known of *node*, but where a block ends: comments count or not."""
    if node is None:
        return None
    place = (type(node).__name__, node.tag, node.line, node.column, node.start, end_of(node))
    if isinstance(node, Collection):
        return (*place, node.flow, [described(inner) for inner in node.nodes()])
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
