from __future__ import annotations

from pathlib import Path

import pytest

from xferbench.cli import machine

MOUNTS = r"""
/dev/sda1 / ext4 rw 0 0
server:/export /home nfs4 rw 0 0
server:/export /home/ann/my\040data fuse.sshfs rw 0 0
tmpfs /home/ann/local tmpfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/usr/bin", "ext4"),
        ("/home", "nfs4"),
        ("/home/ann/x", "nfs4"),
        ("/homes", "ext4"),
        ("/home/ann/my data/a", "fuse.sshfs"),
        ("/home/ann/local", "tmpfs"),
    ],
)
def test_a_path_belongs_to_the_nearest_mount_above_it(path, kind):
    assert machine.file_system(Path(path), MOUNTS) == kind


def test_a_link_belongs_to_the_mount_of_its_target(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    mounts = f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path / 'there'} nfs rw 0 0"
    assert machine.file_system(tmp_path / "link", mounts) == "nfs"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "lustre", "fuse.rclone"])
def test_network_file_systems_are_recognized(kind):
    assert machine.is_network_file_system(kind)


@pytest.mark.parametrize("kind", ["", "ext4", "xfs", "btrfs", "overlay", "tmpfs", "apfs", "fuse.ext4"])
def test_other_file_systems_are_not_network_file_systems(kind):
    assert not machine.is_network_file_system(kind)


def write_files(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_limits_of_cgroup_version_2_include_those_of_parents(tmp_path):
    write_files(tmp_path / "a" / "b", memory__max="max\n", cpu__max="max 100000\n")
    write_files(tmp_path / "a", memory__max="1024\n", cpu__max="150000 100000\n")
    write_files(tmp_path, memory__max="4096\n", cpu__max="800000 100000")
    assert machine.memory_limit("0::/a/b\n", tmp_path) == 1024
    assert machine.processor_limit("0::/a/b\n", tmp_path) == 1.5


def test_limits_of_cgroup_version_1_are_read(tmp_path):
    write_files(tmp_path / "memory" / "a", memory__limit_in_bytes="2048")
    write_files(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712")
    write_files(tmp_path / "cpu" / "a", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write_files(tmp_path / "cpu", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    groups = "4:memory:/a\n1:cpu:/a\n0::/\n"
    assert machine.memory_limit(groups, tmp_path) == 2048
    assert machine.processor_limit(groups, tmp_path) == 0.5


def test_a_missing_limit_is_none(tmp_path):
    write_files(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712")
    for groups in ("", "0::/\n", "4:memory:/\n"):
        assert machine.memory_limit(groups, tmp_path) is None
        assert machine.processor_limit(groups, tmp_path) is None


def test_this_machine_has_plausible_limits():
    assert machine.total_memory() is None or machine.total_memory() > 1 << 20
    limit = machine.memory_limit()
    assert limit is None or limit > 0


def test_the_nearest_existing_folder_is_found(tmp_path):
    assert machine.nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert machine.nearest_existing(tmp_path) == tmp_path
    assert machine.nearest_existing(Path("nowhere-to-be-found/a")).is_dir()
