//! What VPSs have on disk. A VPS's directory appears and goes whole, by rename.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use isolation::{host::LAYER_IDS, remove_tree};
use model::{
    ListenAddress, TenantName, VolumeName, VpsName,
    host::{Ids, Paths},
};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
    process::{Signal, set_parent_process_death_signal},
};
use sys::{
    process::{Child, close_all_but, spawn_child},
    quota::{self, Counting, counting},
    share,
};
use tracing::warn;

use crate::{ids::Allocation, transfer::Files, watch::watch};

/// Prefixes of what is on its way in and out; no name begins with a dot.
const NEW: &str = ".new-";
const DEAD: &str = ".dead-";

/// What a volume's directory has besides its data while only an import knows of it: the import's mark.
const MARK: &str = "import";

/// How often a removal is begun again, and after how long.
const REMOVALS: u32 = 10;
const REMOVAL_PAUSE: Duration = Duration::from_millis(200);

/// The directory `vps`, and beside it `designated`.
#[derive(Debug, Clone)]
pub struct Place {
    state: PathBuf,
    ids: Ids,
    /// Whether what is in a directory can be counted, and else why not.
    counting: Result<Counting, String>,
    /// Whether files there can share blocks.
    shares: bool,
}

fn make(path: &Path, mode: u32, owner: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        done => done?,
    }
    chown(path, Some(owner), Some(owner))
}

impl Place {
    /// The places of this host, made where missing. What a crash left half-made is removed.
    pub fn open(paths: &Paths, ids: Ids) -> anyhow::Result<Self> {
        fs::create_dir_all(&paths.state).with_context(|| format!("making {}", paths.state.display()))?;
        let shares = share::possible(&paths.state).is_ok();
        let place = Self { state: paths.state.clone(), ids, counting: counting(&paths.state), shares };
        let [vps, designated, volumes] = ["vps", "designated", "volumes"].map(|name| place.state.join(name));
        for directory in [&vps, &designated, &volumes] {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        let tenants = entries(&volumes)?.into_iter().map(|tenant| tenant.path());
        for directory in tenants.chain([vps]) {
            for entry in entries(&directory)? {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.starts_with(NEW) || name.starts_with(DEAD) {
                    place.unbound(&entry.path());
                    remove_aside(entry.path())?;
                }
            }
        }
        Ok(place)
    }

    /// Why no sizes are enforced, if they are not.
    pub fn uncounted(&self) -> Option<&str> {
        self.counting.as_ref().err().map(String::as_str)
    }

    /// Makes a directory whose content is counted, where it can be.
    fn make_counted(&self, path: &Path, owner: u32) -> io::Result<()> {
        match quota::make_directory(self.counting.as_ref().ok().copied(), path, 0o700) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.and_then(|()| chown(path, Some(owner), Some(owner))),
        }
    }

    /// Bounds what a volume's directory, or a VPS's `state`, holds; none: no bound. What can't be counted is not bounded.
    pub fn limit(&self, path: &Path, bytes: Option<u64>) {
        let Ok(counting) = self.counting else { return };
        match quota::limit(counting, path, bytes) {
            Err(error) if bytes.is_some() => warn!(path = %path.display(), %error, "its size is not enforced"),
            _ => {}
        }
    }

    /// Takes the bound of a volume or a VPS that goes: where a quota group of btrfs is full, nothing can be removed either.
    fn unbound(&self, path: &Path) {
        self.limit(path, None);
        self.limit(&path.join("state"), None);
    }

    /// Bytes in such a directory; none: they are not counted.
    pub fn used(&self, path: &Path) -> Option<u64> {
        quota::used(*self.counting.as_ref().ok()?, path).ok()
    }

    fn vps_root(&self) -> PathBuf {
        self.state.join("vps")
    }

    /// One VPS's directory.
    pub fn vps(&self, name: &VpsName) -> PathBuf {
        self.vps_root().join(name.as_str())
    }

    /// All VPSs there are. One whose `ids` can't be read is an error: its ids must not be given to another.
    pub fn load(&self) -> anyhow::Result<BTreeMap<VpsName, Allocation>> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(self.vps_root())?.flatten() {
            let Ok(name) = entry.file_name().to_string_lossy().parse::<VpsName>() else { continue };
            let path = entry.path().join("ids");
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let ids = serde_json::from_slice(&text).with_context(|| {
                format!(
                    "{} is damaged; write it anew, or remove the directory with all that VPS's files",
                    path.display()
                )
            })?;
            all.insert(name, ids);
        }
        Ok(all)
    }

    /// Makes a VPS's directory.
    pub fn create(&self, name: &VpsName, allocation: &Allocation) -> io::Result<()> {
        let new = self.make_new(name.as_str(), allocation)?;
        fs::rename(&new, self.vps(name))
    }

    /// Makes the directory of a VPS that is not there yet; `label` is nobody else's.
    pub fn make_new(&self, label: &str, allocation: &Allocation) -> io::Result<PathBuf> {
        let new = self.vps_root().join(format!("{NEW}{label}"));
        let _ = fs::remove_dir_all(&new);
        let (root, shim) = (allocation.range(&self.ids).first, allocation.shim(&self.ids));
        make(&new, 0o700, 0)?;
        self.make_counted(&new.join("state"), root)?;
        make(&new.join("state/upper"), 0o755, root)?;
        make(&new.join("state/work"), 0o700, root)?;
        make(&new.join("log"), 0o700, shim)?;
        fs::write(new.join("ids"), serde_json::to_vec(allocation)?)?;
        Ok(new)
    }

    /// Has what `make_new` made be the VPS `name`, which is whose `allocation` says.
    pub fn adopt_new(&self, label: &str, name: &VpsName, allocation: &Allocation) -> io::Result<()> {
        let new = self.vps_root().join(format!("{NEW}{label}"));
        fs::write(new.join("ids"), serde_json::to_vec(allocation)?)?;
        fs::rename(&new, self.vps(name))
    }

    /// Removes what `make_new` made.
    pub fn forget_new(&self, label: &str) {
        let _ = isolation::remove_tree(&self.vps_root().join(format!("{NEW}{label}")));
    }

    /// Takes a VPS's directory away at once; its files go in a child process.
    pub fn delete(&self, name: &VpsName) -> io::Result<()> {
        self.set_aside(&self.vps(name))
    }

    /// Counts a start.
    pub fn next_run(&self, name: &VpsName) -> io::Result<u64> {
        let run = self.runs(name) + 1;
        // Always as many bytes, in place, so that a write is never seen in part and frees no block of the disk.
        let file = fs::File::options().write(true).create(true).truncate(false).open(self.vps(name).join("runs"))?;
        file.write_all_at(format!("{run:020}").as_bytes(), 0)?;
        Ok(run)
    }

    /// How many starts there were.
    pub fn runs(&self, name: &VpsName) -> u64 {
        let text = fs::read_to_string(self.vps(name).join("runs")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Notes the addresses that are listened on, so that the next host listens there before any service asks for it.
    pub fn note_listening(&self, addresses: &[ListenAddress]) -> io::Result<()> {
        let (new, path) = (self.state.join(".listening"), self.state.join("listening"));
        fs::write(&new, serde_json::to_vec(addresses)?)?;
        fs::rename(new, path)
    }

    /// The addresses that were listened on last.
    pub fn listening(&self) -> Vec<ListenAddress> {
        let text = fs::read(self.state.join("listening")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// A volume's directory, made where missing. It has ids as layers have, so that whichever VPS uses it next sees the same
    /// owners.
    pub fn volume(&self, tenant: &TenantName, name: &VolumeName) -> io::Result<PathBuf> {
        fs::create_dir_all(self.volumes_of(tenant))?;
        let path = self.volume_path(tenant, name);
        self.make_counted(&path, LAYER_IDS)?;
        Ok(path)
    }

    /// All volumes.
    pub fn volumes(&self) -> io::Result<Vec<(TenantName, VolumeName)>> {
        let mut all = Vec::new();
        for tenant in entries(&self.state.join("volumes"))? {
            let Ok(name) = tenant.file_name().to_string_lossy().parse::<TenantName>() else { continue };
            for volume in entries(&tenant.path())? {
                all.extend(volume.file_name().to_string_lossy().parse().ok().map(|volume| (name.clone(), volume)));
            }
        }
        all.sort();
        Ok(all)
    }

    /// Takes a volume away at once; its files go in a child process.
    pub fn delete_volume(&self, tenant: &TenantName, name: &VolumeName) -> io::Result<()> {
        self.set_aside(&self.volume_path(tenant, name))
    }

    /// Whether a volume has anything in it.
    pub fn has_data(&self, tenant: &TenantName, name: &VolumeName) -> bool {
        self.volumes_of(tenant).join(name.as_str()).join("data").exists()
    }

    /// Where a volume is.
    pub fn volume_path(&self, tenant: &TenantName, name: &VolumeName) -> PathBuf {
        self.volumes_of(tenant).join(name.as_str())
    }

    fn volumes_of(&self, tenant: &TenantName) -> PathBuf {
        self.state.join("volumes").join(tenant.as_str())
    }

    /// A directory that may become a volume's.
    pub fn new_volume(&self, tenant: &TenantName, name: &VolumeName) -> io::Result<PathBuf> {
        let tenant = self.volumes_of(tenant);
        fs::create_dir_all(&tenant)?;
        let path = tenant.join(format!("{NEW}{name}"));
        if path.exists() {
            self.set_aside(&path)?;
        }
        self.make_counted(&path, LAYER_IDS)?;
        Ok(path)
    }

    /// Makes that directory the volume's; what was in its place goes.
    pub fn take_volume(&self, tenant: &TenantName, name: &VolumeName) -> io::Result<()> {
        let new = self.volumes_of(tenant).join(format!("{NEW}{name}"));
        match renameat_with(CWD, &new, CWD, self.volume_path(tenant, name), RenameFlags::EXCHANGE) {
            Err(Errno::NOENT) => fs::rename(&new, self.volume_path(tenant, name))?,
            Err(error) => return Err(error.into()),
            Ok(()) => self.set_aside(&new)?,
        }
        fs::File::open(self.volumes_of(tenant))?.sync_all()
    }

    /// Marks a directory that may become a volume's.
    pub fn mark(&self, directory: &Path, mark: u64) -> io::Result<()> {
        fs::write(directory.join(MARK), mark.to_string())
    }

    /// Whether a volume is there with this mark.
    pub fn is_marked(&self, tenant: &TenantName, name: &VolumeName, mark: u64) -> bool {
        fs::read_to_string(self.volume_path(tenant, name).join(MARK)).is_ok_and(|found| found == mark.to_string())
    }

    /// Takes a volume's mark away.
    pub fn unmark(&self, directory: &Path) -> io::Result<()> {
        match fs::remove_file(directory.join(MARK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Takes that directory away again.
    pub fn drop_new_volume(&self, tenant: &TenantName, name: &VolumeName) -> io::Result<()> {
        self.set_aside(&self.volumes_of(tenant).join(format!("{NEW}{name}")))
    }

    /// Files for a copy of a volume, and the same to be read only. They are in no volume, and count as none's.
    pub fn copy_files(&self) -> io::Result<(Files, [OwnedFd; 2])> {
        let directory = self.state.join("volumes");
        let (log, content) = (share::nameless(&directory)?, share::nameless(&directory)?);
        let files = Files { log: log.0.into(), content: content.0.into(), shares: self.shares };
        Ok((files, [log.1, content.1]))
    }

    /// Takes a directory away at once; its files go in a child process.
    fn set_aside(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Counted: two may go within one millisecond.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dead = path.with_file_name(format!("{DEAD}{name}-{}-{count}", crate::table::now_ms()));
        fs::rename(path, &dead)?;
        self.unbound(&dead);
        remove_aside(dead)
    }

    /// A designated VPS's `/data`, owned by its root.
    pub fn data(&self, name: &VpsName, owner: u32) -> io::Result<PathBuf> {
        let path = self.state.join("designated").join(name.as_str());
        make(&path, 0o700, owner)?;
        Ok(path)
    }
}

/// What is in a directory; nothing where there is none.
fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read?.collect(),
    }
}

/// Makes the layer store; layers belong to a range of ids of their own, never to root.
pub fn open_layers(store: &Path) -> anyhow::Result<()> {
    let with = || format!("making the layer store {}", store.display());
    fs::create_dir_all(store).with_context(with)?;
    let layers = store.join("layers");
    match fs::create_dir(&layers) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).with_context(with),
        _ => {}
    }
    for path in [store, &layers] {
        if fs::metadata(path)?.uid() == 0 {
            chown(path, Some(LAYER_IDS), Some(LAYER_IDS)).with_context(with)?;
        }
    }
    // Layers have setuid programs: whoever could execute one on the host would become the owner of all layers.
    fs::set_permissions(store, fs::Permissions::from_mode(0o700)).with_context(with)
}

/// Has a child remove it, and another one where that is killed. What is not done when the daemon ends, the next one's does.
fn remove_aside(path: PathBuf) -> io::Result<()> {
    let mut child = remover(&path)?;
    // Where there is no daemon, nobody waits for children.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return Ok(()) };
    runtime.spawn(async move {
        for _ in 0..REMOVALS {
            if let Ok(end) = watch(child.pidfd) {
                let _ = end.readable().await;
            }
            if !path.exists() {
                return;
            }
            tokio::time::sleep(REMOVAL_PAUSE).await;
            match remover(&path) {
                Ok(next) => child = next,
                Err(error) => return warn!(path = %path.display(), %error, "it stays until the next start"),
            }
        }
        warn!(path = %path.display(), "it could not be removed, and stays until the next start");
    });
    Ok(())
}

/// A child, since a tree may be large and the daemon has one thread. It is reaped with all others, and holds nothing of the
/// host's.
fn remover(path: &Path) -> io::Result<Child> {
    let remove = || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        close_all_but(&[io::stderr().as_fd()])?;
        remove_tree(path)
    };
    let removed = || match remove() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            eprintln!("removing {}: {error}", path.display());
            1
        }
        _ => 0,
    };
    spawn_child(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vps_appears_with_its_ids_and_counts_its_starts() {
        let state = std::env::temp_dir().join(format!("bailiwick-place-{}", std::process::id()));
        let paths = Paths { config: state.join("host.toml"), state: state.clone(), run: state.join("run") };
        let place = Place::open(&paths, Ids { first: 1_048_576, blocks: 10, shims: 600_000 }).unwrap();
        let name: VpsName = "blog".parse().unwrap();
        let allocation = Allocation { first: 3, blocks: 1, tenant: Some("acme".parse().unwrap()) };
        place.create(&name, &allocation).unwrap();
        assert_eq!(place.load().unwrap(), [(name.clone(), allocation)].into());
        assert_eq!((place.next_run(&name).unwrap(), place.next_run(&name).unwrap(), place.runs(&name)), (1, 2, 2));
        let owner = |path: &str| fs::metadata(place.vps(&name).join(path)).unwrap().uid();
        assert_eq!((owner("state/upper"), owner("log")), (1_048_576 + 3 * 65_536, 600_003));
        fs::write(place.vps(&name).join("ids"), "half").unwrap();
        assert!(place.load().is_err(), "ids that can't be read must not be given out again");
        fs::remove_dir_all(&state).unwrap();
    }
}
