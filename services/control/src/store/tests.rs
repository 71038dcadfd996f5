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
    store.put_places(&[(name("a"), link())].into()).unwrap();
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
    store.put_places(&[(name("a"), link())].into()).unwrap();
    store.begin_delete(&name("a")).unwrap();
    drop(store);

    let store = Store::open(&path).unwrap();
    let stored = store.load().unwrap();
    assert_eq!((stored.deleting, stored.specs.len()), (vec![name("a")], 1));
    store.end_delete(&name("a")).unwrap();
    store.put_places(&[(name("a"), link())].into()).unwrap();
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

#[test]
fn an_entry_that_cant_be_read_is_told_and_no_other_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("state.redb")).unwrap();
    store.put_specs(&specs(&["a", "b", "c"]), &BTreeMap::new()).unwrap();
    store.put_places(&[(name("a"), link())].into()).unwrap();
    store
        .write(|write| {
            write.open_table(VPS)?.insert("b", &b"{\"tenant\":7}"[..])?;
            write.open_table(VPS)?.insert("No Name", &b"{}"[..])?;
            write.open_table(WAKES)?.insert("a", &b"[[[["[..])?;
            write.open_table(SECRETS)?.insert("x", &b""[..])?;
            write.open_table(JOBS)?.insert("noslash", &b"{}"[..])?;
            let mut facts = write.open_table(FACTS)?;
            for key in ["link/b", "image/x", "importing/", "import/x", "deleting/..", "created/", "what", "later/x"] {
                facts.insert(key, &b"\xff"[..])?;
            }
            Ok(())
        })
        .unwrap();
    let stored = store.load().unwrap();
    assert_eq!(stored.specs, specs(&["a", "c"]));
    assert_eq!(stored.links.get(&name("a")), Some(&link()));
    assert!(stored.deleting.is_empty() && stored.imports.is_empty());
    assert_eq!(stored.damaged.len(), 11, "{:#?}", stored.damaged);
    assert!(stored.damaged.iter().any(|said| said.starts_with("`b` of control's VPSs is damaged: invalid type")));
    // What is applied anew takes its place.
    store.put_specs(&specs(&["b"]), &BTreeMap::new()).unwrap();
    assert_eq!(store.load().unwrap().specs, specs(&["a", "b", "c"]));
}

#[test]
fn a_damaged_file_is_put_aside_and_the_last_good_one_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let (store, stored) = good::open(&path).unwrap();
    assert!(stored.damaged.is_empty());
    store.put_specs(&specs(&["a"]), &BTreeMap::new()).unwrap();
    drop(store);
    drop(good::open(&path).unwrap());
    std::fs::write(&path, vec![7; 10_000]).unwrap();
    let (store, stored) = good::open(&path).unwrap();
    assert_eq!(stored.specs, specs(&["a"]));
    assert!(stored.damaged[0].contains("was damaged") && stored.damaged[0].contains("state.redb.damaged"));
    assert_eq!(std::fs::read(directory.path().join("state.redb.damaged")).unwrap(), vec![7; 10_000]);
    drop(store);
    // Without one it begins anew.
    std::fs::remove_file(directory.path().join("state.redb.good")).unwrap();
    std::fs::write(&path, "no database").unwrap();
    assert!(good::open(&path).unwrap().1.specs.is_empty());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24),
        failure_persistence: None,
        ..Default::default()
    })]

    /// Bytes changed, blocks zeroed, the end cut off: it opens, with what is good or what was.
    #[test]
    fn no_damage_to_the_file_stops_the_service(
        changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0u8..4, 1usize..5000), 1..8),
        cut in proptest::option::weighted(0.2, proptest::prelude::any::<proptest::sample::Index>()),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        let store = Store::open(&path).unwrap();
        store.put_specs(&specs(&["a", "b"]), &BTreeMap::new()).unwrap();
        drop(store);
        drop(good::open(&path).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, how, length) in changes {
            let at = at.index(bytes.len());
            let end = (at + length).min(bytes.len());
            match how {
                0 => bytes[at] ^= 1,
                1 => bytes[at] = 0xff,
                2 => bytes[at..end].fill(0),
                _ => bytes[at..end].rotate_left(1),
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&path, bytes).unwrap();
        let (store, stored) = good::open(&path).unwrap();
        if stored.damaged.is_empty() {
            proptest::prop_assert!(stored.specs.is_empty() || stored.specs == specs(&["a", "b"]));
        }
        store.put_specs(&specs(&["c"]), &BTreeMap::new()).unwrap();
        drop(store);
        proptest::prop_assert!(good::open(&path).unwrap().1.specs.contains_key(&name("c")));
    }
}
