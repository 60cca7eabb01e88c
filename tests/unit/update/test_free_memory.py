"""Memory limits of containers, as files of the kernel."""

import pytest

from herl.update.free_memory import limits_left


def write(folder, limit, usage, stat, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, (limit, usage), strict=True):
        (folder / name).write_text(f"{text}\n")
    (folder / "memory.stat").write_text(stat)


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


# (groups of the process, folder below the mount, its files, memory.stat, bytes left)
@pytest.mark.parametrize(
    ("own", "folder", "limit", "names", "stat", "left"),
    [
        ("0::/", ".", 1000, V2, "anon 400\ninactive_file 100\n", [500]),
        ("0::/a/b", "a/b", 1000, V2, "inactive_file 100\n", [500]),
        ("0::/a/b", "a", 1000, V2, "", [400]),  # the limit of a parent
        ("0::/a", "a", "max", V2, "", []),
        ("0::/a", "a", 500, V2, "", [0]),
        ("4:cpu:/\n3:memory:/docker/x", "memory/docker/x", 1000, V1, "total_inactive_file 100\n", [500]),
        ("3:memory:/docker/x", "memory", 1000, V1, "", [400]),  # in a container: its group is the root
        ("4:cpu:/a", "a", 1000, V2, "", []),
    ],
)
def test_a_limit_leaves_what_is_not_used_and_what_is_only_cached(
    tmp_path, own, folder, limit, names, stat, left
):
    (tmp_path / "cgroup").write_text(own + "\n")
    write(tmp_path / "mount" / folder, limit, 600, stat, names)
    assert [*limits_left(tmp_path / "mount", tmp_path / "cgroup")] == left


def test_there_are_no_limits_without_control_groups(tmp_path):
    assert [*limits_left(tmp_path, tmp_path / "missing")] == []
