//! A layer store whose images share layers: what goes, and what stays, whoever uses it and whatever else is being done.
//! The store is each test's own.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

const WITHIN: Duration = Duration::from_secs(20);

struct Place {
    host: Host,
    layers: tempfile::TempDir,
}

fn place(config: &str) -> Result<Place> {
    let layers = tempfile::tempdir_in("/var/tmp")?;
    let options = HostOptions { layers: Some(layers.path().to_owned()), ..HostOptions::default() };
    Ok(Place { host: Host::start(HostOptions { config: config.to_owned(), ..options })?, layers })
}

impl Place {
    /// Writes `NAME.tar.gz`, an image that says `marker`; one marker is one layer, whatever the image's name.
    fn archive(&self, name: &str, marker: &str) -> Result<String> {
        let tree = self.host.root.join(format!("tree-{marker}"));
        if !tree.exists() {
            fs::create_dir_all(tree.join("bin"))?;
            fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
            fs::write(tree.join("marker"), marker)?;
        }
        let file = format!("{name}.tar");
        let sort = ["--sort=name", "--mtime=@0", "--numeric-owner", "--owner=0", "--group=0"];
        // A comment of its own makes it another archive of the same tree.
        let label = format!("--label={name}");
        let arguments = ["-cf", &file, "-C", &tree.to_string_lossy(), "."].map(str::to_owned);
        let made = Command::new("tar").args(sort).arg(label).args(arguments).current_dir(&self.host.root).status()?;
        ensure!(made.success(), "tar");
        Ok(format!("tar:{file}"))
    }

    fn apply(&self, vps: &str, image: &str) -> Result<()> {
        self.host.apply(&format!("{vps}.toml"), &spec(vps, image)).map(drop)
    }

    fn marker(&self, vps: &str) -> Result<String> {
        Ok(self.host.run(&["exec", vps, "--", "/bin/busybox", "cat", "/marker"])?.trim().to_owned())
    }

    fn layers(&self) -> Result<BTreeSet<String>> {
        let entries = fs::read_dir(self.layers.path().join("layers"))?.flatten();
        Ok(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }

    /// The layer of the image that a VPS is made of.
    fn layer_of(&self, vps: &str) -> Result<String> {
        let rows = self.host.json(&["images"])?;
        let rows = rows.as_array().context("rows")?;
        let row =
            rows.iter().find(|row| row["used_by"].as_array().is_some_and(|all| all.iter().any(|one| *one == vps)));
        Ok(row.and_then(|row| row["layers"][0].as_str()).context("a layer")?.to_owned())
    }

    fn await_prepared(&self, vps: &str) -> Result<()> {
        let deadline = Instant::now() + WITHIN;
        while self.host.row(vps)?["prepared"] != true {
            ensure!(Instant::now() < deadline, "{vps} is not prepared\n{}", self.host.daemon_log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn spare(&self) -> Result<Option<PathBuf>> {
        let entries = fs::read_dir(self.host.root.join("lib/vps"))?.flatten().map(|entry| entry.path());
        let is =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".new-spare_"));
        Ok(entries.into_iter().find(is))
    }
}

fn spec(vps: &str, image: &str) -> String {
    format!(
        "tenant = \"acme\"\n[vps.{vps}]\nimage = \"{image}\"\ncommand = [\"/bin/busybox\", \"sleep\", \"1000000\"]\n"
    )
}

#[test]
fn what_shares_a_layer_keeps_it_up_asleep_and_prepared() -> Result<()> {
    let mut place = place("pool = { memory = \"16MiB\" }")?;
    let host = &place.host;
    // Two images of one layer, one of another, and two that nobody uses: of a layer that is used, and of one that is not.
    for (vps, marker) in [("one", "shared"), ("two", "shared"), ("three", "own")] {
        place.apply(vps, &place.archive(vps, marker)?)?;
    }
    for (name, marker) in [("idle", "shared"), ("gone", "gone")] {
        let archive = place.archive(name, marker)?.replace("tar:", &format!("tar:{}/", host.root.display()));
        host.run(&["image", "build", &archive])?;
    }
    ensure!(place.layers()?.len() == 3 && place.layer_of("one")? == place.layer_of("two")?);
    host.run(&["start", "one"])?;
    place.await_prepared("two")?;
    place.await_prepared("three")?;
    let deadline = Instant::now() + WITHIN;
    while place.spare()?.is_none() {
        ensure!(Instant::now() < deadline, "no spare is made");
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = host.run(&["image", "prune"])?;
    ensure!(said.contains("tar:idle") && said.contains("tar:gone") && said.contains("1 layer removed"), "{said}");
    ensure!(place.layers()?.len() == 2, "{:?}", place.layers()?);
    for (vps, marker) in [("one", "shared"), ("two", "shared"), ("three", "own")] {
        ensure!(place.marker(vps)? == marker, "{vps}");
    }
    // A new VPS takes a spare, which was not touched.
    place.apply("four", &place.archive("three", "own")?)?;
    ensure!(place.marker("four")? == "own");

    // The last image of a layer goes: who still runs on it keeps it, and who is stopped then does not.
    let shared = place.layer_of("one")?;
    for vps in ["one", "two"] {
        place.apply(vps, &place.archive("next", "next")?)?;
    }
    host.run(&["image", "prune"])?;
    ensure!(place.layers()?.contains(&shared) && place.marker("one")? == "shared" && place.marker("two")? == "shared");
    host.run(&["restart", "one", "two"])?;
    ensure!(place.marker("one")? == "next" && place.marker("two")? == "next");
    host.run(&["image", "prune"])?;
    ensure!(!place.layers()?.contains(&shared), "{:?}", place.layers()?);

    // An image alone goes, and its layer with it; not as long as another one has that.
    for (name, marker) in [("a", "lone"), ("b", "lone")] {
        let archive = place.archive(name, marker)?.replace("tar:", &format!("tar:{}/", host.root.display()));
        host.run(&["image", "build", &archive])?;
    }
    let names = || -> Result<Vec<String>> {
        let rows = host.json(&["images"])?;
        let rows = rows.as_array().context("rows")?.iter().filter_map(|row| row["reference"].as_str());
        Ok(rows.filter(|name| name.starts_with("tar:a@") || name.starts_with("tar:b@")).map(str::to_owned).collect())
    };
    let (before, all) = (place.layers()?, names()?);
    host.run(&["image", "rm", &all[0]])?;
    ensure!(place.layers()? == before, "the layer of {} went with {}", all[1], all[0]);
    host.run(&["image", "rm", &all[1]])?;
    ensure!(place.layers()?.len() == before.len() - 1);
    host.run(&["image", "verify"])?;
    place.host.stop()
}

/// How long the race goes on, and how much longer at most until something was pruned.
const RACE: Duration = Duration::from_secs(4);

#[test]
fn prune_races_with_apply_build_and_import_and_takes_nothing_that_they_need() -> Result<()> {
    let mut place = place("pool = { memory = \"16MiB\" }")?;
    let host = &place.host;
    place.apply("carried", &place.archive("carried", "carried")?)?;
    let carried = host.root.join("carried.bailiwick");
    let carried = carried.to_string_lossy();
    host.run(&["export", "carried", &carried, "--with-image"])?;
    host.run(&["delete", "--yes", "carried"])?;
    for n in 0..6 {
        place.archive(&format!("n{n}"), &format!("marker{}", n / 2))?;
    }
    let (ended, pruned) = (AtomicBool::new(false), AtomicU32::new(0));
    let began = Instant::now();
    let goes_on = || began.elapsed() < RACE || pruned.load(Ordering::Relaxed) == 0 && began.elapsed() < WITHIN;
    std::thread::scope(|scope| -> Result<()> {
        let pruner = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Relaxed) {
                let answer = host.cli(&["image", "prune"])?;
                // A build goes on: it says so.
                ensure!(answer.code == 0 || answer.err.contains("is being built"), "{answer:?}");
                let took = answer.code == 0 && answer.out.contains("image ");
                pruned.fetch_add(u32::from(took), Ordering::Relaxed);
            }
            Ok(())
        });
        let users: Vec<_> = (0..2)
            .map(|user| {
                let (place, goes_on) = (&place, &goes_on);
                scope.spawn(move || -> Result<()> {
                    let vps = format!("user{user}");
                    for n in (0..6).cycle().take_while(|_| goes_on()) {
                        place.apply(&vps, &format!("tar:n{n}.tar"))?;
                        place.host.run(&["restart", &vps])?;
                        let marker = place.marker(&vps)?;
                        ensure!(marker == format!("marker{}", n / 2), "{vps}: {marker}, of n{n}");
                    }
                    Ok(())
                })
            })
            .collect();
        let importer = scope.spawn(|| -> Result<()> {
            while goes_on() {
                host.run(&["import", &carried])?;
                ensure!(place.marker("carried")? == "carried");
                host.run(&["delete", "--yes", "carried"])?;
            }
            Ok(())
        });
        let done: Vec<_> = users.into_iter().chain([importer]).map(|thread| thread.join()).collect();
        ended.store(true, Ordering::Relaxed);
        pruner.join().map_err(|_| anyhow::anyhow!("who prunes panicked"))??;
        for end in done {
            end.map_err(|_| anyhow::anyhow!("a user panicked"))??;
        }
        Ok(())
    })?;
    // When all have ended, nothing is being built, whatever they brought along that was there already.
    host.run(&["import", &carried])?;
    host.run(&["import", &carried, "--name", "again"])?;
    host.run(&["image", "prune"])?;
    ensure!(pruned.into_inner() > 0, "nothing was ever pruned");
    host.run(&["image", "verify"])?;
    let half = fs::read_dir(place.layers.path())?.flatten();
    let half: Vec<_> =
        half.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with(".tmp")).collect();
    ensure!(half.is_empty(), "{half:?}");
    place.host.stop()
}

#[test]
fn a_damaged_layer_is_named_with_all_its_images_and_replaced_under_all() -> Result<()> {
    let mut place = place("pool = { memory = \"16MiB\" }")?;
    let host = &place.host;
    for vps in ["one", "two"] {
        place.apply(vps, &place.archive(vps, "shared")?)?;
        place.await_prepared(vps)?;
    }
    let layer = place.layer_of("one")?;
    let tree = place.layers.path().join("layers").join(&layer);
    fs::write(tree.join("marker"), "damaged")?;
    let answer = host.cli(&["image", "verify"])?;
    let all = [&layer[..], "tar:one@", "tar:two@", "--refresh"];
    ensure!(answer.code != 0 && all.iter().all(|word| answer.err.contains(word)), "{answer:?}");
    let archive = format!("tar:{}", host.root.join("one.tar").display());
    host.run(&["image", "build", "--refresh", &archive])?;
    host.run(&["image", "verify"])?;
    // What was prepared on the damaged one is not what is started.
    for vps in ["one", "two"] {
        ensure!(place.marker(vps)? == "shared", "{vps} runs on what was damaged");
    }
    // One that is gone is told with all images too.
    host.run(&["stop", "one", "two"])?;
    fs::remove_dir_all(&tree)?;
    let answer = host.cli(&["image", "verify"])?;
    ensure!(answer.code != 0 && all.iter().all(|word| answer.err.contains(word)), "{answer:?}");
    host.run(&["image", "build", "--refresh", &archive])?;
    for vps in ["one", "two"] {
        ensure!(place.marker(vps)? == "shared", "{vps}");
    }
    place.host.stop()
}
