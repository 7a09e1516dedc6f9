"""What the quick check takes, the models take as well, and read alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

import account_pool
from account_pool.config import models, shapes

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
PAIRS = [
    (shapes.AccountShape, models.AccountShape, {"provider": "a", "label": "b", "token": "c"}),
    (shapes.ProviderShape, models.ProviderShape, {}),
]


@pytest.mark.parametrize(("quick", "model", "least"), PAIRS)
@given(data=st.data())
def test_what_is_taken_quickly_is_right(quick: Any, model: Any, least: Any, data) -> None:
    keys = st.sampled_from([*model.model_fields, "other"])
    value = least | data.draw(st.dictionaries(keys, ANY, max_size=3))
    try:
        read = msgspec.convert(value, quick)
    except msgspec.ValidationError:
        return
    right = model.model_validate(value)
    for name in quick.__struct_fields__:
        assert getattr(read, name) == getattr(right, name), name


@given(value=ANY)
@example(value=float("inf"))
@example(value=float("nan"))
def test_every_value_of_every_key_of_an_account_is_judged_alike(value: Any) -> None:
    for key in models.AccountShape.model_fields:
        account = PAIRS[0][2] | {key: value}
        assert _takes(shapes.AccountShape, account) == _takes(models.AccountShape, account), key


def _takes(shape: Any, value: Any) -> bool:
    try:
        if issubclass(shape, msgspec.Struct):
            msgspec.convert(value, shape)
        else:
            shape.model_validate(value)
    except (msgspec.ValidationError, ValidationError):
        return False
    return True


def test_an_account_has_the_keys_of_its_model() -> None:
    assert shapes.AccountShape.__struct_fields__ == tuple(models.AccountShape.model_fields)
    assert set(shapes.ProviderShape.__struct_fields__) < set(models.ProviderShape.model_fields)


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
