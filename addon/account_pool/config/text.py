"""What is where in the text of accounts.yaml, as the parser says it."""

from __future__ import annotations

from pathlib import Path

from yaml.error import YAMLError

from account_pool.config import yaml_nodes
from account_pool.config.replace import CannotEdit
from account_pool.config.yaml_nodes import Collection, Mapping, Node, Refused, Scalar, Sequence
from account_pool.core.account import AccountKey, normalise_label


class NotYaml(CannotEdit):
    """The text cannot be parsed."""


def read(path: Path) -> str:
    """Return the text of *path*, "" when it is not there. Raises CannotEdit."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CannotEdit(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise CannotEdit(f"{path} is not text in UTF-8; save it as UTF-8") from None


def compose(text: str) -> Mapping | None:
    """Return the mapping *text* is, None when it is empty. Raises CannotEdit."""
    try:
        root = yaml_nodes.compose(text)
    except (YAMLError, Refused):
        # Its text quotes the file.
        raise NotYaml("the file is not YAML; see account-pool check") from None
    if root is not None and not isinstance(root, Mapping):
        raise CannotEdit("the file is not a mapping; start it with `accounts:`")
    return root


def section_of(root: Mapping | None, name: str) -> tuple[Node, Node] | None:
    """Return the nodes of a key of *root* and of its value."""
    pairs = root.pairs if root is not None else []
    return next(((k, v) for k, v in pairs if isinstance(k, Scalar) and k.text == name), None)


def account_keys(text: str) -> set[AccountKey]:
    """Return which accounts there are, as far as they can be read."""
    return {key for item in entries_of(compose(text)) if (key := key_of(item)) is not None}


def entries_of(root: Mapping | None) -> list[Node]:
    """Return the entries below `accounts:`; none where it is no list."""
    found = section_of(root, "accounts")
    return list(found[1].items) if found and isinstance(found[1], Sequence) else []


def key_of(item: Node) -> AccountKey | None:
    """Return whose entry *item* is, if that can be read."""
    pairs = item.pairs if isinstance(item, Mapping) else ()
    written = {k.text: v.text for k, v in pairs if isinstance(k, Scalar) and isinstance(v, Scalar)}
    if not (written.get("label", "").strip() and written.get("provider")):
        return None
    provider = written["provider"].strip().lower()
    return AccountKey(provider, normalise_label(written["label"]))


def end_of(node: Node) -> int:
    """Return where the text of *node* ends, without the comments behind it."""
    if isinstance(node, Collection) and not node.flow and (nodes := node.nodes()):
        return end_of(nodes[-1])
    return node.end


def end_of_line(text: str, index: int) -> int:
    """Return where the line that *index* is in ends."""
    found = text.find("\n", index)
    return len(text) if found == -1 else found
