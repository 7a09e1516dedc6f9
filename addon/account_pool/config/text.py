"""What is where in the text of accounts.yaml, as the parser says it."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from account_pool.config.replace import CannotEdit
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


def compose(text: str) -> MappingNode | None:
    """Return the mapping *text* is, None when it is empty. Raises CannotEdit."""
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except YAMLError:
        # Its text quotes the file.
        raise NotYaml("the file is not YAML; see account-pool check") from None
    if root is not None and not isinstance(root, MappingNode):
        raise CannotEdit("the file is not a mapping; begin it with `accounts:`")
    return root


def section_of(root: MappingNode | None, name: str) -> tuple[Node, Node] | None:
    """Return the nodes of a key of *root* and of its value."""
    pairs = root.value if root is not None else []
    return next(((k, v) for k, v in pairs if k.value == name), None)


def account_keys(text: str) -> set[AccountKey]:
    """Return which accounts there are, as far as they can be read."""
    return {key for item in entries_of(compose(text)) if (key := key_of(item)) is not None}


def entries_of(root: MappingNode | None) -> list[Node]:
    """Return the entries below `accounts:`; none where it is no list."""
    found = section_of(root, "accounts")
    return list(found[1].value) if found and isinstance(found[1], SequenceNode) else []


def key_of(item: Node) -> AccountKey | None:
    """Return whose entry *item* is, if that can be read."""
    pairs = item.value if isinstance(item, MappingNode) else ()
    written = {k.value: v.value for k, v in pairs if isinstance(v, ScalarNode)}
    if not (str(written.get("label", "")).strip() and written.get("provider")):
        return None
    provider = str(written["provider"]).strip().lower()
    return AccountKey(provider, normalise_label(written["label"]))


def end_of(node: Node) -> int:
    """Return where the text of *node* ends; the parser counts the comments after a block."""
    if isinstance(node, CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return end_of(last[1] if isinstance(last, tuple) else last)
    # An empty value and a block of text end where the next line begins.
    mark = node.end_mark
    return int(mark.index - 1 if mark.column == 0 and mark.index else mark.index)


def end_of_line(text: str, index: int) -> int:
    """Return where the line that *index* is in ends."""
    found = text.find("\n", index)
    return len(text) if found == -1 else found
