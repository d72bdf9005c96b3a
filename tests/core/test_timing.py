from surgery.core.timing import Timing, interleaved


def test_what_runs_before_the_timing_is_shown(capsys):
    interleaved({"a": lambda: None}, seconds=0.01, label="batch 1")
    assert "batch 1: warming up a" in capsys.readouterr().err


def test_functions_run_in_turn():
    order = []
    timing = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.01)
    rounds = len(timing.seconds["a"])
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * rounds
    assert rounds >= 7
    assert len(timing.seconds["b"]) == rounds


def test_ratio_of_medians_with_quartiles():
    timing = Timing({"a": [2.0, 4.0, 6.0, 8.0], "b": [2.0, 2.0, 2.0, 2.0]})
    assert timing.ratio("a", "b") == (2.5, 1.25, 3.75)
