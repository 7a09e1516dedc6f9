"""Where notifications go: what is accepted, and that no more than a host is ever shown."""

from __future__ import annotations

import pytest

from account_pool.config.notify import (
    Command,
    Desktop,
    FromVariable,
    Ntfy,
    Webhook,
    read_targets,
    shown_targets,
    write_targets,
)
from account_pool.config.options import BY_NAME
from account_pool.core.wrong import Wrong

HOOK = "https://hooks.example.com/services/T0/SECRET?key=SECRET"


@pytest.mark.parametrize(
    ("text", "target", "shown"),
    [
        (HOOK, Webhook(HOOK), "https://hooks.example.com"),
        ("https://me:SECRET@a.example/x", Webhook("https://me:SECRET@a.example/x"),
         "https://a.example"),
        ("http://127.0.0.1:9/SECRET", Webhook("http://127.0.0.1:9/SECRET"), "http://127.0.0.1"),
        ("http://[::1]:9/", Webhook("http://[::1]:9/"), "http://[::1]"),
        ("ntfy:SECRET_topic", Ntfy("https://ntfy.sh", "SECRET_topic"), "ntfy:https://ntfy.sh"),
        ("ntfy:https://n.example/a/SECRET", Ntfy("https://n.example/a", "SECRET"),
         "ntfy:https://n.example"),
        ("desktop", Desktop(), "desktop"),
        ("/opt/tell.sh --token SECRET 'a b'",
         Command(("/opt/tell.sh", "--token", "SECRET", "a b")), "tell.sh"),
    ],
)  # fmt: skip
def test_one_target(text: str, target: object, shown: str) -> None:
    assert read_targets(f" {text} ") == (target,)
    assert shown_targets(text) == shown
    assert "SECRET" not in repr(target)


def test_several_with_variables() -> None:
    text = write_targets([HOOK, {"env": "HOOK"}, "desktop", "desktop"])
    assert read_targets(text) == (Webhook(HOOK), FromVariable("HOOK"), Desktop())
    assert shown_targets(text) == "https://hooks.example.com, $HOOK, desktop"
    assert read_targets(write_targets({"env": "HOOK"})) == (FromVariable("HOOK"),)
    assert read_targets("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "http://hooks.example.com/SECRET", "http://hooks.localhost/SECRET",
        "ftp://hooks.example.com/SECRET", "https:///SECRET",
        "htps://hooks.example.com/SECRET", "https://a.example:x/SECRET", "ntfy:", "ntfy:SEC RET",
        "ntfy:https://n.example/", "ntfy:http://n.example/SECRET", "'SECRET", "[", '["SECRET',
        "[1]", '[""]', '{"env": "SEC RET"}', '{"env": "A", "b": "SECRET"}', '{"url": "SECRET"}',
        "https://a.example/SEC RET",
    ],
)  # fmt: skip
def test_what_is_wrong_is_not_shown(text: str) -> None:
    with pytest.raises(Wrong) as wrong:
        BY_NAME["notify"].read(text)
    assert "SEC" not in str(wrong.value)
    assert shown_targets(text) == "[not shown]"


def test_a_file_may_have_a_list_or_a_mapping() -> None:
    option = BY_NAME["notify"]
    assert option.check([HOOK, "desktop"]) == write_targets([HOOK, "desktop"])
    assert option.check({"env": "HOOK"}) == '[{"env": "HOOK"}]'
    for wrong in ([HOOK, 1], {"file": "SECRET"}, 7, [["SECRET"]]):
        with pytest.raises(Wrong) as error:
            option.check(wrong)
        assert "SECRET" not in str(error.value)


def test_a_variable_is_read_where_it_is_used() -> None:
    target = FromVariable("HOOK")
    assert target.read({"HOOK": f" {HOOK}\n"}) == Webhook(HOOK)
    with pytest.raises(Wrong, match="HOOK is not set"):
        target.read({})
    with pytest.raises(Wrong, match=r"^HOOK: http is unencrypted") as error:
        target.read({"HOOK": "http://hooks.example.com/SECRET"})
    assert "SECRET" not in str(error.value)
