"""What goes and what stays, decided without a disk."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rtgen.store.inventory import PackageInfo, StageInfo
from rtgen.store.pruning import Limits, plan

NOW = 1_000_000_000.0
DAY = 86_400.0


def package(name: str, days: float, gpu: str = "a", size: int = 10, problem: str | None = None) -> PackageInfo:
    return PackageInfo(Path("toy", gpu, name), "toy", gpu, name, size, NOW - days * DAY, problem)


def stage(name: str, days: float, size: int = 10) -> StageInfo:
    return StageInfo(Path(".stages", "onnx", name), "onnx", name, size, NOW - days * DAY, None)


def removed(packages: list[PackageInfo], stages: list[StageInfo], limits: Limits) -> set[str]:
    return {removal.path.name for removal in plan(packages, stages, limits, NOW)}


def test_without_limits_only_invalid_entries_go() -> None:
    assert removed([package("sound", 1000), package("broken", 0, problem="…")], [stage("s", 1000)], Limits()) == {
        "broken"
    }


def test_age_counts_for_packages_and_stages() -> None:
    limits = Limits(older_than_days=30)
    packages, stages = [package("p29", 29), package("p31", 31)], [stage("s29", 29), stage("s31", 31)]
    assert removed(packages, stages, limits) == {"p31", "s31"}


def test_the_latest_of_each_gpu_stay_whatever_their_age() -> None:
    packages = [package("a1", 50), package("a2", 60), package("b1", 70, gpu="b"), package("broken", 1, problem="…")]
    assert removed(packages, [], Limits(keep_latest=1)) == {"a2", "broken"}
    assert removed(packages, [], Limits(keep_latest=1, older_than_days=30)) == {"a2", "broken"}
    assert removed(packages, [], Limits(keep_latest=2, older_than_days=30)) == {"broken"}


def test_for_space_old_stages_go_first() -> None:
    packages, stages = [package("p9", 9), package("p1", 1)], [stage("s5", 5), stage("s2", 2)]
    assert removed(packages, stages, Limits(max_bytes=40)) == set()
    assert removed(packages, stages, Limits(max_bytes=39)) == {"s5"}
    assert removed(packages, stages, Limits(max_bytes=15)) == {"s5", "s2", "p9"}


@given(
    sizes=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50), st.sampled_from("ab")), max_size=12),
    limit=st.integers(0, 600),
)
def test_what_stays_fits_and_nothing_goes_in_vain(sizes: list[tuple[int, int, str]], limit: int) -> None:
    packages = [package(str(n), days, gpu, size) for n, (size, days, gpu) in enumerate(sizes)]
    gone = plan(packages, [], Limits(max_bytes=limit), NOW)
    remaining = sum(entry.size for entry in packages) - sum(removal.size for removal in gone)
    assert remaining <= limit
    assert not gone or remaining + gone[-1].size > limit
