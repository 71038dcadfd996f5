use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use rustix::fs::{CWD, FileType, XattrFlags, getxattr, lsetxattr, mknodat, setxattr};
use tempfile::TempDir;

use super::*;

struct Place {
    directory: TempDir,
    store: Store,
}

fn place() -> Place {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("store")).expect("made");
    let store = Store::open(&directory.path().join("store")).expect("a store");
    Place { directory, store }
}

impl Place {
    fn tree(&self, name: &str) -> PathBuf {
        let tree = self.directory.path().join(name);
        fs::create_dir(&tree).expect("made");
        tree
    }

    fn leftovers(&self) -> usize {
        let names = fs::read_dir(&self.store.path).expect("a store");
        names.flatten().filter(|e| e.file_name().as_bytes().starts_with(TEMPORARY.as_bytes())).count()
    }
}

fn image(reference: &str, layers: &[&LayerId]) -> ImageInfo {
    let layers: Vec<LayerId> = layers.iter().map(|id| (*id).clone()).collect();
    ImageInfo { reference: reference.parse().expect("a reference"), sizes: vec![0; layers.len()], layers, built: 0 }
}

/// A tree with everything that a layer may hold.
fn fill(tree: &Path) {
    fs::create_dir_all(tree.join("usr/bin")).expect("made");
    let su = tree.join("usr/bin/su");
    fs::write(&su, "program").expect("written");
    fs::set_permissions(&su, fs::Permissions::from_mode(0o4755)).expect("set");
    fs::hard_link(&su, tree.join("usr/bin/second-name")).expect("linked");
    symlink("/etc/passwd", tree.join("link")).expect("linked");
    mknodat(CWD, tree.join("deleted"), FileType::CharacterDevice, Mode::empty(), 0).expect("made");
    mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::RUSR, 0).expect("made");
    fs::set_permissions(tree.join("fifo"), fs::Permissions::from_mode(0o622)).expect("set");
    fs::create_dir(tree.join("replaced")).expect("made");
    fs::set_permissions(tree.join("replaced"), fs::Permissions::from_mode(0o2750)).expect("set");
    setxattr(tree.join("replaced"), "user.overlay.opaque", b"y", XattrFlags::empty()).expect("set");
    setxattr(tree.join("replaced"), "user.overlay.origin", b"elsewhere", XattrFlags::empty()).expect("set");
    for name in [&su, &tree.join("usr"), &tree.join("replaced"), &tree.to_path_buf()] {
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123);
        fs::File::open(name).expect("opened").set_modified(time).expect("set");
    }
}

#[test]
fn a_layer_keeps_what_makes_a_root_filesystem() {
    let place = place();
    let tree = place.tree("tree");
    fill(&tree);
    let (id, size) = place.store.add_layer(&tree).expect("added");
    assert_eq!(size, 7, "the second name of a file is no second file");
    let layer = place.store.layer_path(&id);
    let su = layer.join("usr/bin/su").metadata().expect("su");
    assert_eq!((su.mode() & 0o7777, su.mtime(), su.nlink()), (0o4755, 1_700_000_000, 2));
    assert_eq!(layer.join("usr/bin/second-name").metadata().expect("it").ino(), su.ino());
    assert_eq!(fs::read_link(layer.join("link")).expect("a link"), Path::new("/etc/passwd"));
    let deleted = layer.join("deleted").metadata().expect("a whiteout");
    assert_eq!((deleted.mode() & 0o170_000, deleted.rdev()), (0o020_000, 0));
    assert_eq!(layer.join("fifo").metadata().expect("a fifo").mode(), 0o010_622);
    let replaced = layer.join("replaced");
    assert_eq!(
        (replaced.metadata().expect("it").mode(), replaced.metadata().expect("it").mtime()),
        (0o042_750, 1_700_000_000)
    );
    let mut value = [0; 16];
    assert_eq!(getxattr(&replaced, "user.overlay.opaque", &mut value[..]), Ok(1));
    assert!(getxattr(&replaced, "user.overlay.origin", &mut value[..]).is_err(), "says where it came from");
    place.store.verify(&id).expect("whole");
}

#[test]
fn file_capabilities_and_owners_are_kept() {
    // set by root only
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = place();
    let tree = place.tree("tree");
    let ping = tree.join("ping");
    fs::write(&ping, "program").expect("written");
    std::os::unix::fs::chown(&ping, Some(33), Some(44)).expect("owned");
    // VFS_CAP_REVISION_2, cap_net_raw+ep (capabilities(7))
    let capability: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    lsetxattr(&ping, "security.capability", &capability, XattrFlags::empty()).expect("set");
    let (with, _) = place.store.add_layer(&tree).expect("added");
    let kept = place.store.layer_path(&with).join("ping");
    let mut value = [0; 64];
    let length = getxattr(&kept, "security.capability", &mut value[..]).expect("kept");
    assert_eq!(value[..length], capability);
    assert_eq!((kept.metadata().expect("it").uid(), kept.metadata().expect("it").gid()), (33, 44));
    rustix::fs::removexattr(&ping, "security.capability").expect("removed");
    let (without, _) = place.store.add_layer(&tree).expect("added");
    assert_ne!(with, without);
}

#[test]
fn equal_trees_are_one_layer_and_any_difference_makes_another() {
    let place = place();
    let (a, b) = (place.tree("a"), place.tree("b"));
    fill(&a);
    fill(&b);
    let (first, _) = place.store.add_layer(&a).expect("added");
    assert_eq!(place.store.add_layer(&b).expect("added").0, first);
    assert_eq!(fs::read_dir(place.store.path.join("layers")).expect("layers").count(), 1);
    fs::set_permissions(b.join("usr/bin/su"), fs::Permissions::from_mode(0o755)).expect("set");
    assert_ne!(place.store.add_layer(&b).expect("added").0, first);
    assert_eq!(place.leftovers(), 0);
}

#[test]
fn damage_is_found() {
    let place = place();
    let tree = place.tree("tree");
    fill(&tree);
    let (id, _) = place.store.add_layer(&tree).expect("added");
    fs::write(place.store.layer_path(&id).join("usr/bin/su"), "Program").expect("damaged");
    assert!(matches!(place.store.verify(&id), Err(StoreError::Damaged { .. })));
    let missing = LayerId::try_from("0".repeat(64)).expect("an id");
    assert!(matches!(place.store.verify(&missing), Err(StoreError::Missing(_))));
}

#[test]
fn a_device_node_is_refused_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = place();
    let tree = place.tree("tree");
    mknodat(CWD, tree.join("null"), FileType::CharacterDevice, Mode::empty(), rustix::fs::makedev(1, 3)).expect("made");
    assert!(matches!(place.store.add_layer(&tree), Err(StoreError::Device { .. })));
    assert_eq!(place.leftovers(), 0);
}

#[test]
fn what_a_killed_process_left_goes_and_what_a_living_one_writes_stays() {
    let place = place();
    let dead = place.store.path.join(".tmp-dead");
    fs::create_dir_all(dead.join("deep/er")).expect("made");
    let outside = place.tree("outside");
    fs::write(outside.join("file"), "").expect("written");
    symlink(&outside, dead.join("deep/link")).expect("linked");
    fs::set_permissions(dead.join("deep"), fs::Permissions::from_mode(0o0)).expect("set");
    let living = Temporary::new(&place.store).expect("made");
    Store::open(&place.store.path).expect("opened");
    assert!(!dead.exists() && outside.join("file").exists());
    assert_eq!(place.leftovers(), 1);
    drop(living);
    assert_eq!(place.leftovers(), 0);
}

#[test]
fn only_layers_that_no_image_names_are_collected_and_never_during_a_build() {
    let place = place();
    let ids = ["base", "app", "other"].map(|name| {
        let tree = place.tree(name);
        fs::write(tree.join("file"), name).expect("written");
        place.store.add_layer(&tree).expect("added").0
    });
    let [base, app, other] = &ids;
    place.store.put_image(&image("debian:app", &[base, app])).expect("put");
    place.store.put_image(&image("debian:other", &[base, other])).expect("put");
    assert!(place.store.gc().expect("collected").is_empty());
    assert!(place.store.remove(&"debian:app".parse().expect("a reference")).expect("removed"));
    assert!(!place.store.remove(&"debian:app".parse().expect("a reference")).expect("gone"));
    let lock = place.store.build_lock().expect("locked");
    assert!(place.store.gc().expect("nothing").is_empty());
    drop(lock);
    assert_eq!(place.store.gc().expect("collected"), std::slice::from_ref(app));
    assert!(place.store.has_layer(base) && place.store.has_layer(other));
    let again = Store::open(&place.store.path).expect("opened");
    assert_eq!(again.images().expect("images"), [image("debian:other", &[base, other])]);
}

#[test]
fn an_image_without_its_layers_is_not_there() {
    let place = place();
    let missing = LayerId::try_from("0".repeat(64)).expect("an id");
    let info = image("debian:nginx-light", &[&missing]);
    place.store.put_image(&info).expect("put");
    assert_eq!(place.store.image(&info.reference).expect("read"), None);
    fs::create_dir(place.store.layer_path(&missing)).expect("made");
    assert_eq!(place.store.image(&info.reference).expect("read"), Some(info));
}

fn roomy() -> crate::Limits {
    crate::Limits { bytes: 1 << 20, entries: 100, reserve: 0 }
}

#[test]
fn a_layer_goes_through_a_stream_whole_or_not_at_all() {
    let (from, to) = (place(), place());
    let tree = from.tree("tree");
    fill(&tree);
    let (id, size) = from.store.add_layer(&tree).expect("a layer");
    let mut stream = Vec::new();
    from.store.write_layer(&id, &mut stream).expect("a stream");
    for cut in (0..stream.len()).step_by(7) {
        assert!(to.store.read_layer(&id, &stream[..cut], roomy()).is_err(), "cut at {cut}");
    }
    for at in 0..stream.len() {
        let mut other = stream.clone();
        other[at] ^= 1;
        // The mode of a symbolic link means nothing; whatever else is changed makes another tree.
        if to.store.read_layer(&id, &other[..], roomy()).is_ok() {
            to.store.verify(&id).expect("the same tree");
            assert_eq!(to.store.gc().expect("removed"), std::slice::from_ref(&id));
        }
    }
    assert!(!to.store.has_layer(&id) && to.leftovers() == 0);
    let few = crate::Limits { entries: 3, ..roomy() };
    assert!(matches!(to.store.read_layer(&id, &stream[..], few), Err(StoreError::TooLarge { .. })));
    assert_eq!(to.store.read_layer(&id, &stream[..], roomy()).expect("a layer"), size);
    to.store.verify(&id).expect("the same");
    // What is there is not read again.
    assert_eq!(to.store.read_layer(&id, std::io::empty(), roomy()).expect("there"), size);
    fs::write(from.store.layer_path(&id).join("usr/bin/su"), "changed").expect("written");
    assert!(matches!(from.store.write_layer(&id, &mut std::io::sink()), Err(StoreError::Damaged { .. })));
}

/// An entry without attributes.
fn entry(kind: u8, path: &[u8], rest: &[&[u8]]) -> Vec<u8> {
    let field = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat();
    let numbers = |all: &[u64]| all.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>();
    let head = if matches!(kind, b'h' | b'w') { Vec::new() } else { numbers(&[0o755, 0, 0, 1]) };
    let attributes = if matches!(kind, b'd' | b'f') { numbers(&[0]) } else { Vec::new() };
    let rest: Vec<u8> = rest.iter().flat_map(|bytes| field(bytes)).collect();
    [vec![kind], field(path), head, attributes, rest].concat()
}

#[test]
fn no_stream_of_a_layer_leads_out_of_it() {
    let place = place();
    let id: LayerId = "0".repeat(64).try_into().expect("an id");
    let outside = place.directory.path().join("outside");
    fs::write(&outside, "kept").expect("written");
    let far = outside.to_string_lossy().into_owned();
    let root = entry(b'd', b"", &[]);
    let streams: [Vec<Vec<u8>>; 12] = [
        vec![],
        vec![entry(b'f', b"file", &[b"x"])],
        vec![root.clone(), entry(b'f', b"../outside", &[b"x"])],
        vec![root.clone(), entry(b'f', far.as_bytes(), &[b"x"])],
        vec![root.clone(), entry(b'd', b"..", &[]), entry(b'f', b"../outside", &[b"x"])],
        vec![root.clone(), entry(b'l', b"up", &[b"../.."]), entry(b'f', b"up/outside", &[b"x"])],
        vec![
            root.clone(),
            entry(b'l', b"up", &[b"../.."]),
            entry(b'd', b"up", &[]),
            entry(b'f', b"up/outside", &[b"x"]),
        ],
        vec![root.clone(), entry(b'h', b"mine", &[b"../../outside"])],
        vec![root.clone(), entry(b'h', b"mine", &[far.as_bytes()])],
        vec![root.clone(), entry(b'l', b"up", &[b"../.."]), entry(b'h', b"mine", &[b"up/outside"])],
        vec![root.clone(), entry(b'c', b"sda", &[])],
        vec![root.clone(), entry(b'd', b"a", &[]), root.clone()],
    ];
    for (n, stream) in streams.into_iter().enumerate() {
        assert!(place.store.read_layer(&id, &stream.concat()[..], roomy()).is_err(), "stream {n}");
        assert_eq!(fs::read_to_string(&outside).expect("there"), "kept", "stream {n}");
        assert_eq!((place.leftovers(), fs::metadata(&outside).expect("there").nlink()), (0, 1), "stream {n}");
    }
    let endless = std::io::repeat(b'd');
    assert!(place.store.read_layer(&id, endless, roomy()).is_err());
}
