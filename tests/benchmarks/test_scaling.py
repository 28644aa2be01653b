"""The part of scaling.py that times a monitored step runs."""

import scaling


def test_watched_times_a_step_and_its_monitoring():
    sizes = ["num_hidden_layers=2", "hidden_size=16", "num_attention_heads=2", "intermediate_size=32"]
    measured = scaling.watched([f"model.{size}" for size in sizes], repeats=1)
    assert measured["M weights"] < 1
    assert measured["share"] == measured["watching, ms"] / measured["step, ms"] > 0
