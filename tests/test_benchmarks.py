"""What `python -m benchmarks` reports, apart from how fast anything is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks import machine
from benchmarks.figures import Figure, Target, ratio, table
from benchmarks.push.__main__ import main as push

FIGURE = Figure(scenario="s", name="n", value=2.0, target=Target(1.0), wall=True)


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (FIGURE, "MISSED"),
        (replace(FIGURE, value=0.5), "met"),
        (replace(FIGURE, target=Target(1.0, at_least=True)), "met"),
        (replace(FIGURE, value=None), "not measured"),
        (replace(FIGURE, target=None), ""),
        (replace(FIGURE, failed=True), "FAILED"),
        # What other work has delayed tells nothing: perhaps it delayed what is compared with.
        (replace(FIGURE, busy=True), "busy"),
        (replace(FIGURE, busy=True, value=0.5), "busy"),
        # CPU time does not feel it.
        (replace(FIGURE, busy=True, wall=False), "MISSED"),
    ],
)
def test_verdicts(figure, verdict):
    assert figure.verdict == verdict


def test_a_ratio_needs_every_round():
    assert ratio("n", "s", [1.0, 4.0, 3.0], [2.0, 2.0, 2.0], None).value == 1.5
    assert ratio("n", "s", [1.0, None], [2.0, 2.0], Target(1.0)).verdict == "not measured"


def test_the_table_names_what_could_not_be_measured():
    missing = Figure(scenario="s", name="instructions", value=None)
    shown = table([missing, FIGURE]).splitlines()
    assert shown[-2].startswith("not measured")
    assert shown[-1] == "  instructions"
    assert not any("instructions" in line for line in shown[:-2])


@pytest.mark.parametrize(("everybody_s", "cores"), [(3.0, 1.0), (1.0, 0.0)])
def test_only_work_of_others_makes_the_machine_busy(monkeypatch, everybody_s, cores):
    """In two seconds, one was spent by a process of ours."""
    spent = {"everybody": 100.0, "ours": 7.0, "now": 50.0}
    monkeypatch.setattr(machine, "_everybody", lambda: spent["everybody"])
    monkeypatch.setattr(machine, "cpu_seconds", lambda _pid: spent["ours"])
    monkeypatch.setattr(machine.time, "monotonic", lambda: spent["now"])
    monkeypatch.setattr(machine.os, "times", lambda: (0.0,) * 5)
    others = machine.Others([1234])
    spent = {"everybody": 100.0 + everybody_s, "ours": 8.0, "now": 52.0}
    assert others.cores() == cores


def test_where_nothing_tells_it_the_machine_is_not_called_busy(monkeypatch):
    monkeypatch.setattr(machine, "_everybody", lambda: None)
    assert machine.Others().cores() is None


def test_how_soon_all_know_needs_two(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks.push", "--proxies", "1"])
    with pytest.raises(SystemExit):
        push()
    assert "write 2 or more" in capsys.readouterr().err
