use super::*;
use crate::fixtures::{link, spec};

fn name(text: &str) -> VpsName {
    text.parse().unwrap()
}

fn specs(names: &[&str]) -> BTreeMap<VpsName, VpsSpec> {
    names.iter().map(|n| (name(n), spec("acme", &[]))).collect()
}

fn image() -> ImageInfo {
    ImageInfo { reference: "debian:redis".parse().unwrap(), layers: Vec::new(), sizes: Vec::new(), built: 1 }
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let store = Store::open(&path).unwrap();
    store.put_specs(&specs(&["a", "b"]), &Default::default()).unwrap();
    store.put_place(&name("a"), &link()).unwrap();
    store.put_images(&BTreeMap::from([(image().reference, image())])).unwrap();
    let wakes = Wakes { last: None, starts: 3, up: false };
    store.put_wakes(&BTreeMap::from([(name("a"), wakes.clone()), (name("gone"), wakes)])).unwrap();
    drop(store);

    let stored = Store::open(&path).unwrap().load().unwrap();
    assert_eq!(stored.specs, specs(&["a", "b"]));
    assert_eq!((stored.links.get(&name("a")), stored.created), (Some(&link()), vec![name("a")]));
    assert_eq!(stored.images.values().collect::<Vec<_>>(), [&image()]);
    assert_eq!(stored.wakes.keys().collect::<Vec<_>>(), [&name("a")]);
    assert_eq!(stored.wakes[&name("a")].starts, 3);
}

#[test]
fn a_deletion_is_seen_until_it_is_done_and_then_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let store = Store::open(&path).unwrap();
    store.put_specs(&specs(&["a"]), &Default::default()).unwrap();
    store.put_place(&name("a"), &link()).unwrap();
    store.begin_delete(&name("a")).unwrap();
    drop(store);

    let store = Store::open(&path).unwrap();
    let stored = store.load().unwrap();
    assert_eq!((stored.deleting, stored.specs.len()), (vec![name("a")], 1));
    store.end_delete(&name("a")).unwrap();
    store.put_place(&name("a"), &link()).unwrap();
    let stored = store.load().unwrap();
    assert!(stored.deleting.is_empty() && stored.specs.is_empty() && stored.links.is_empty());
}

#[test]
fn an_image_that_went_away_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("state.redb")).unwrap();
    store.put_images(&BTreeMap::from([(image().reference, image())])).unwrap();
    store.put_images(&BTreeMap::new()).unwrap();
    assert!(store.load().unwrap().images.is_empty());
}

/// A copy of the file while transactions go on is what a SIGKILL leaves: all of a transaction, or nothing of it.
#[test]
fn a_file_cut_off_at_any_moment_holds_whole_transactions() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("state.redb"), directory.path().join("copy.redb"));
    let store = Store::open(&path).unwrap();
    store.put_specs(&specs(&["a", "b"]), &Default::default()).unwrap();
    for round in 0..20 {
        let mut both = specs(&["a", "b"]);
        both.values_mut().for_each(|spec| spec.cwd = format!("/{round}"));
        store.put_specs(&both, &Default::default()).unwrap();
        // The process still has the file open: nothing was closed in good order.
        std::fs::copy(&path, &copy).unwrap();
        let found = Store::open(&copy).unwrap().load().unwrap().specs;
        assert_eq!(found, both);
    }
}
