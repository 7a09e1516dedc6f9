"""What does not fit its shape is explained, all of it at once."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import account_pool
from account_pool.config import shapes
from account_pool.config.document import Document, read
from account_pool.config.yaml_nodes import Scalar, compose

ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["", "a", "individual", "1"]),
    st.lists(st.sampled_from(["", "a", 1, None]), max_size=2),
    st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["", "a", 1, None]), max_size=2),
)
LEAST = {
    shapes.AccountShape: {"provider": "a", "label": "b", "token": "c"},
    shapes.ProviderShape: {},
    shapes.LimitShape: {"class": "quota"},
    shapes.CredentialShape: {},
    shapes.OwnerShape: {},
    shapes.ResetShape: {},
}
SHAPES = pytest.mark.parametrize("shape", list(LEAST))


def fits(shape: Any, value: Any) -> bool:
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError:
        return False
    return True


_kind = cache(msgspec.inspect.type_info)


def wrong(shape: Any, value: Any) -> list[str]:
    found = shapes._wrong(_kind(shape), value, ())
    return [f"{'.'.join(map(str, at))} {said.wrong}" for at, said in found]


@SHAPES
@given(value=ANY)
@example(value=float("inf"))
@example(value=float("nan"))
@example(value=[{"class": "quota"}])
@example(value=[{"class": "quota", "status": [99, 600, True]}, {"class": "nothing"}, None])
@example(value={"by_path": {"a": {"header": ""}, "b": 1}})
def test_something_is_said_of_each_value_that_does_not_fit(shape: Any, value: Any) -> None:
    for key in (field.encode_name for field in msgspec.structs.fields(shape)):
        written = LEAST[shape] | {key: value}
        assert bool(wrong(shape, written)) != fits(shape, written), key
    assert bool(wrong(shape, value)) != fits(shape, value)


@SHAPES
@given(data=st.data())
def test_all_that_is_wrong_is_found_at_once(shape: Any, data: st.DataObject) -> None:
    names = [field.encode_name for field in msgspec.structs.fields(shape)]
    written = data.draw(st.dictionaries(st.sampled_from([*names, "other"]), ANY, max_size=4))
    whole = LEAST[shape] | written
    alone = [found for key in whole for found in wrong(shape, LEAST[shape] | {key: whole[key]})]
    assert sorted(wrong(shape, whole)) == sorted(alone)


def test_what_has_no_words_is_a_problem_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_wrong", lambda *_args: iter(()))
    document = Document(Path("accounts.yaml"))
    assert (
        shapes.read_shape(document, ("accounts", 0), shapes.AccountShape, {"label": "sk-fake"})
        is None
    )
    [problem] = document.problems
    assert problem.wrong == "is not accepted"
    assert "sk-fake" not in str(problem)


def test_a_usual_file_is_read_without_pydantic(tmp_path: Path) -> None:
    file = tmp_path / "accounts.yaml"
    file.write_text(
        "accounts:\n"
        "  - {provider: openai, label: a, token: sk-fake, priority: 1, models: [gpt-*]}\n"
        "providers:\n"
        "  openai: {hosts: [llm.example.com]}\n"
    )
    file.chmod(0o600)
    said = (
        f"import sys; sys.path.insert(0, {str(Path(account_pool.__file__).parents[1])!r})\n"
        "from pathlib import Path; from account_pool.config.loader import load\n"
        f"print(len(load(Path({str(file)!r}), {{}}).accounts), 'pydantic' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", said], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == ["1", "False"]


def test_what_is_written_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "accounts.yaml"
    path.write_text("accounts: [{provider: openai, label: work, token: sk-FAKE-SECRET}]\n")
    document = read(path)
    account = shapes.read_shape(document, (), shapes.AccountShape, document.data["accounts"][0])
    node = compose("sk-FAKE-SECRET")
    assert account is not None and account.token == "sk-FAKE-SECRET"
    assert isinstance(node, Scalar) and node.text == "sk-FAKE-SECRET"
    assert "FAKE" not in repr([document, account, node])
