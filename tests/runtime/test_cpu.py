import pytest

from rtgen.runtime import cpu


def test_hyper_threads_count_once_and_unknown_topologies_in_full(tmp_path):
    for index, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{index}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert cpu._physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert cpu._physical_cores({0, 2}, tmp_path) == 1
    assert cpu._physical_cores({0, 1, 2}, tmp_path / "missing") == 3


@pytest.mark.parametrize(
    ("content", "quota"), [("200000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", None), ("", None)]
)
def test_a_container_quota_is_read(tmp_path, content, quota):
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert cpu._quota(file) == quota


def test_there_is_always_a_thread(monkeypatch):
    assert 1 <= cpu.thread_count() <= len(cpu._allowed_cpus())
