"""Recording that will take long is announced once, as soon as that can be told."""

import pytest

from rtgen.build import calibration
from rtgen.build.calibration import Forecast


class Told:
    def __init__(self):
        self.fractions, self.notes = [], []

    def update(self, stage, fraction, detail=""):
        self.fractions.append(fraction)

    def note(self, message):
        self.notes.append(message)


@pytest.mark.parametrize(("seconds", "said"), [(5.0, None), (60.0, "100 minutes"), (300.0, "8 hours")])
def test_long_recordings_are_announced_once(monkeypatch, seconds, said):
    now = [100.0]
    monkeypatch.setattr(calibration.time, "monotonic", lambda: now[0])
    told = Told()
    forecast = Forecast(told, "this processor")
    for part in range(4):
        forecast.advance(part / 100, "")
        now[0] += seconds
    assert told.fractions == [0.0, 0.01, 0.02, 0.03]
    assert len(told.notes) == (said is not None)
    if said:
        assert f"about {said} on this processor" in told.notes[0] and "int4-weights" in told.notes[0]
