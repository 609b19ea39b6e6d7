"""The passes that the denoiser enqueues with fixed and with adaptive steps, seen by a session that only takes notes."""

from types import SimpleNamespace

import numpy as np
import pytest

from rtgen.errors import UsageError
from rtgen.runtime import denoise
from rtgen.runtime.denoise import Denoiser
from rtgen.runtime.noise import chunk_noise

SIZES = {"rows": 4, "columns": 4}
FOUR = (1.0, 0.9, 0.75, 0.5)


class Notes:
    """A session whose passes change nothing; ``changes`` by noise level is what it says they do."""

    component = SimpleNamespace(inputs=())

    def __init__(self, changes=None):
        self.changes, self.buffers, self.copied = changes, {}, []
        self.sigmas, self.noises, self.clean = [], [], []

    def allocate(self, sizes):
        assert sizes == SIZES

    def reset(self):
        pass

    def write(self, name, value):
        self.buffers[name] = value

    def copy(self, name, source, source_name):
        assert source is self
        self.copied.append((name, source_name))
        self.buffers[name] = source_name

    def run(self):
        self.sigmas.append(float(self.buffers["sigma"][0]))
        self.noises.append(self.buffers["noise"])
        self.clean.append(self.buffers["clean"])

    def read(self, name):
        assert name == "change" and self.changes is not None, "reading waits for the device"
        return np.array([self.changes[round(self.sigmas[-1], 4)]], np.float32)


@pytest.fixture
def start(make_manifest):
    """A denoiser of four levels, and its session."""

    def make(sampler="euler", changes=None, **options):
        model = make_manifest().model.model_copy(update={"sigmas": FOUR, "sampler": sampler})
        session = Notes(changes)
        return Denoiser(session, model, SIZES, seed=3, **options), session

    return make


def passes(session):
    """The noise levels of each chunk; every chunk ends with a clean pass from the last estimate."""
    chunks, ended = [[]], False
    for sigma, clean in zip(session.sigmas, session.clean, strict=True):
        if ended:
            chunks.append([])
        ended = sigma == 0
        assert isinstance(clean, str) == bool(chunks[-1])  # only a chunk's first pass starts from nothing
        chunks[-1].append(round(sigma, 4))
    assert ended
    return chunks


@pytest.mark.parametrize("options", [{}, {"error_budget": 0.0}], ids=str)
def test_without_a_budget_every_pass_runs_and_nothing_is_waited_for(start, options):
    denoiser, session = start(**options)
    for chunk in range(3):
        denoiser.generate(chunk, 3 * chunk)
    assert passes(session) == [[*FOUR, 0.0]] * 3
    assert (denoiser.passes.average, denoiser.passes.saved) == (4.0, 0.0)


def test_a_huge_budget_leaves_two_passes_a_chunk_and_the_clean_pass(start):
    denoiser, session = start(changes=dict.fromkeys(FOUR, 0.5), error_budget=1e6)
    for chunk in range(4):
        denoiser.generate(chunk, 3 * chunk)
    assert passes(session) == [[1.0, 0.9, 0.5, 0.0], *[[1.0, 0.5, 0.0]] * 3]
    assert (denoiser.passes.chunks, denoiser.passes.passes) == (4, 9)


def test_a_new_prompt_makes_the_next_chunk_look_before_it_leaps(start):
    denoiser, session = start(changes=dict.fromkeys(FOUR, 0.01), error_budget=0.1)
    for chunk in range(3):
        if chunk == 2:
            denoiser.set_context(np.zeros((1, 8, 4), np.float32))
        denoiser.generate(chunk, 3 * chunk)
    assert passes(session) == [[1.0, 0.9, 0.5, 0.0], [1.0, 0.5, 0.0], [1.0, 0.9, 0.5, 0.0]]


def test_a_chunk_that_changes_much_gets_every_pass(start):
    denoiser, session = start(changes=dict.fromkeys(FOUR, 2.0), error_budget=0.05)
    denoiser.generate(0, 0)
    assert passes(session) == [[*FOUR, 0.0]]


def test_fresh_noise_belongs_to_the_level_and_not_to_the_number_of_the_pass(start):
    _, fixed = run_one(start("renoise"))
    _, short = run_one(start("renoise", dict.fromkeys(FOUR, 0.0), error_budget=0.1))
    assert passes(short) == [[1.0, 0.9, 0.5, 0.0]]
    np.testing.assert_array_equal(short.noises[2], fixed.noises[3])
    np.testing.assert_array_equal(fixed.noises[3], chunk_noise(3, 0, 3, fixed.noises[3].shape))


def test_the_estimated_noise_is_carried_on_by_the_euler_sampler(start):
    _, session = run_one(start("euler", dict.fromkeys(FOUR, 0.0), error_budget=0.1))
    assert session.noises[1:] == ["noise_estimate"] * 3


def run_one(pair):
    denoiser, session = pair
    denoiser.generate(0, 0)
    return denoiser, session


def test_an_impossible_budget_is_refused(start):
    for budget in (-1.0, float("nan")):
        with pytest.raises(UsageError):
            start(error_budget=budget)


def test_noise_belongs_to_its_chunk_whichever_came_before(start, monkeypatch):
    drawn = []
    monkeypatch.setattr(denoise, "chunk_noise", lambda *numbers: drawn.append(numbers[1]) or chunk_noise(*numbers))
    denoiser, session = start()
    for chunk in (0, 1, 1, 7):  # one is made again after a switch of the prompt
        denoiser.generate(chunk, 0)
        assert np.array_equal(session.noises[-5], chunk_noise(3, chunk, 0, denoiser.latent_shape))
    assert drawn == [0, 1, 2, 1, 7, 8]  # the next one's is drawn ahead, once
