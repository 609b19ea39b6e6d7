"""A GPU on which not all sizes of a model fit gets a package of those that do."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from rtgen.build.fitting import STAGE, build_fitting  # noqa: E402
from rtgen.build.sizes import fewer_sizes  # noqa: E402
from rtgen.build.walk import export  # noqa: E402
from rtgen.config.load import load_model  # noqa: E402
from rtgen.engine import builder, trt  # noqa: E402
from rtgen.engine.builder import EngineResult  # noqa: E402
from rtgen.errors import MemoryPlanError  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from tests.build.test_walk import gpu_config  # noqa: E402
from tests.conftest import CONFIGS  # noqa: E402

pytestmark = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

PROFILES = """profiles = [
  { min = [32, 32], opt = [32, 48], max = [32, 48] },
  { min = [32, 32], opt = [48, 48], max = [48, 48] },
  { min = [32, 32], opt = [48, 80], max = [48, 80] },
  { min = [32, 32], opt = [80, 48], max = [80, 48] },
]"""
BYTES_A_TOKEN = 8 << 20


class Notes(SilentProgress):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(scope="module")
def exported(tiny_models, tmp_path_factory):
    """A store with the tiny model's export, which depends on no size."""
    store, tiny = tmp_path_factory.mktemp("fitting"), tiny_models["tiny"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CONFIGS", str(tiny.configs))
        export(tiny.request("rtx4090", store=store), SilentProgress())
    return store


@pytest.fixture
def world(tiny, exported, tmp_path, monkeypatch):
    """Requests for a model of several sizes, on GPUs of some memory; engines take memory, and are not really built."""
    before, _, after = CONFIGS["tiny"].partition("profiles = [")
    config = before.replace('name = "tiny"', 'name = "sizes"') + PROFILES + after.partition("}]")[2]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sizes.toml").write_text(config, encoding="utf-8")
    monkeypatch.setenv("RTGEN_CONFIGS", os.pathsep.join((str(tmp_path), str(tiny.configs))))
    store = shutil.copytree(exported, tmp_path / "store")
    built = []

    def engine(job, progress, *, stage):
        built.append(job.name)
        job.output.write_bytes(b"engine")
        latents = [profile["clean"][2][3:] for profile in job.profiles if "clean" in profile]
        tokens = max((height * width // 4 for height, width in latents), default=0)
        return EngineResult(job.output, 6, 1000, tokens * BYTES_A_TOKEN, 0.0, 1, {}, ())

    monkeypatch.setattr(builder, "build_engine", engine)

    def request(tokens, **fields):
        """For a GPU with memory for so many tokens of a frame, and for no two more."""
        vram = 0.40625 + (tokens + 1) * BYTES_A_TOKEN / 2**30
        gpu_config(tmp_path, f"for-{tokens}", "rtx4090", vram_gib=vram)
        return tiny.request(f"for-{tokens}", model="sizes", store=store, **fields)

    return SimpleNamespace(request=request, built=built, store=store)


def sizes(outcome):
    return [profile.opt for profile in outcome.manifest.profiles]


def test_on_a_large_gpu_all_sizes_are_in_one_package(world):
    progress = Notes()
    assert sizes(build_fitting(world.request(15), progress)) == [(32, 48), (48, 48), (48, 80), (80, 48)]
    assert progress.notes == []


def test_the_greatest_sizes_are_left_out_first_and_that_is_said(world):
    progress = Notes()
    outcome = build_fitting(world.request(9), progress)
    assert sizes(outcome) == [(32, 48), (48, 48)] and outcome.manifest.model.default_size == (48, 48)
    (note,) = progress.notes
    assert "sizes at 32x32 to 48x80 or 32x32 to 80x48 needs" in note and note.endswith("building it for 32x48 to 48x48")
    assert sizes(build_fitting(world.request(6), Notes())) == [(32, 48)]


def test_what_did_not_fit_is_remembered_and_no_engine_is_built_for_it_twice(world):
    first = build_fitting(world.request(9), Notes())
    assert world.built.count("denoiser") == 2
    progress = Notes()
    again = build_fitting(world.request(9), progress)
    assert again.cached and again.key == first.key and len(progress.notes) == 1
    assert world.built.count("denoiser") == 2


def test_sizes_that_were_asked_for_are_built_or_refused(world):
    with pytest.raises(MemoryPlanError) as refused:
        build_fitting(world.request(9, sizes=((48, 48), (48, 80))), Notes())
    assert refused.value.hint == "this fits: --size 48x48 or --size 32x48"
    built = len(world.built)
    with pytest.raises(MemoryPlanError) as again:
        build_fitting(world.request(9, sizes=((48, 48), (48, 80))), Notes())
    assert (again.value.message, again.value.hint) == (refused.value.message, refused.value.hint)
    assert len(world.built) == built
    with pytest.raises(MemoryPlanError):
        build_fitting(world.request(9, sizes=((48, 48), (48, 80)), force=True), Notes())
    assert len(world.built) > built


def test_a_size_that_is_to_be_served_stays_and_is_built_alone_if_need_be(world):
    assert sizes(build_fitting(world.request(9), Notes(), serving=[(32, 48)])) == [(32, 48), (48, 48)]
    progress = Notes()
    outcome = build_fitting(world.request(12), progress, serving=[(48, 64)])  # only in the profile of 48x80
    assert sizes(outcome) == [(48, 64)] and progress.notes[0].endswith("building it for 48x64")
    with pytest.raises(MemoryPlanError):
        build_fitting(world.request(9), Notes(), serving=[(48, 64)])


def test_several_sizes_that_are_to_be_served_stay_together(world):
    assert sizes(build_fitting(world.request(12), Notes(), serving=[(32, 48), (48, 48)])) == [(32, 48), (48, 48)]


def test_where_nothing_fits_the_last_refusal_stands(world):
    progress = Notes()
    with pytest.raises(MemoryPlanError):
        build_fitting(world.request(3), progress)
    assert len(progress.notes) == 2


def test_a_damaged_record_is_as_good_as_none(world):
    request = world.request(9, sizes=((80, 48),))
    with pytest.raises(MemoryPlanError):
        build_fitting(request, Notes())
    for record in world.store.glob(f".stages/{STAGE}/*/refusal.json"):
        record.write_text(json.dumps({"message": 5}) + " " * (record.stat().st_size - 14), encoding="utf-8")
    built = len(world.built)
    with pytest.raises(MemoryPlanError):
        build_fitting(request, Notes())
    assert len(world.built) > built


@pytest.mark.parametrize("name", ["wan2.1-1.3b-self-forcing", "longlive-1.3b"])
def test_the_480p_models_give_up_576x1024_first_and_keep_portraits(name):
    assert fewer_sizes(load_model(name)) == [
        ((320, 576), (480, 832), (576, 320), (832, 480)),
        ((320, 576), (576, 320)),
    ]
