//! The small disk is as small as it says, and gone with its owner.

#![allow(clippy::unwrap_used, reason = "clippy.toml reaches the tests, not their helpers")]

use std::fs;

use testkit::SmallDisk;

#[test]
fn a_small_disk_is_full_until_room_is_made() {
    let disk = SmallDisk::new(1024 * 1024).unwrap();
    let file = disk.path().join("file");
    fs::write(&file, "before").unwrap();
    disk.fill().unwrap();
    assert!(fs::write(disk.path().join("other"), "no room").is_err());
    assert_eq!(fs::read_to_string(&file).unwrap(), "before");
    disk.make_room().unwrap();
    fs::write(disk.path().join("other"), "room").unwrap();
}

#[test]
fn a_read_only_disk_takes_nothing_until_it_is_writable_again() {
    let disk = SmallDisk::new(1024 * 1024).unwrap();
    disk.set_read_only(true).unwrap();
    assert!(fs::write(disk.path().join("file"), "no").is_err());
    disk.set_read_only(false).unwrap();
    fs::write(disk.path().join("file"), "yes").unwrap();
}

#[test]
fn a_disk_is_unmounted_with_its_value_though_a_file_on_it_is_open() {
    let disk = SmallDisk::new(1024 * 1024).unwrap();
    let path = disk.path().to_owned();
    let open = fs::File::create(path.join("file")).unwrap();
    drop(disk);
    assert!(!path.exists());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&path.display().to_string()), "{mounts}");
    drop(open);
}
