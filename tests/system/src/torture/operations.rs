//! What is going on when somebody is killed: commands, and what each makes of the world.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{dice::Dice, site, world::World};

/// One step of what an operation does to the world.
type Effect = Box<dyn Fn(&mut World)>;

/// A command.
pub struct Operation {
    /// One word for its kind.
    pub kind: &'static str,
    /// Its arguments.
    pub words: Vec<String>,
    /// What has to be so before it can be done, as arguments too.
    pub first: Vec<Vec<String>>,
    /// What it reads from standard input.
    pub input: String,
    /// What it does: all of one, then all of the next.
    effects: Vec<Effect>,
}

impl Operation {
    fn new(kind: &'static str, words: &[&str]) -> Self {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Self { kind, words, first: Vec::new(), input: String::new(), effects: Vec::new() }
    }

    fn after(mut self, words: &[&str]) -> Self {
        self.first.push(words.iter().map(|word| (*word).to_owned()).collect());
        self
    }

    fn makes(mut self, effect: impl Fn(&mut World) + 'static) -> Self {
        self.effects.push(Box::new(effect));
        self
    }

    /// The worlds that may come of `world`: the last one is what it is for.
    pub fn outcomes(&self, world: &World) -> Vec<World> {
        let mut all = vec![world.clone()];
        for effect in &self.effects {
            let mut next = all[all.len() - 1].clone();
            effect(&mut next);
            all.push(next);
        }
        all
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "bailiwick {}", self.words.join(" "))
    }
}

/// Makes operations, each with marks of its own.
#[derive(Debug)]
pub struct Operations {
    /// For files that commands read and write.
    files: PathBuf,
    /// The programs of both versions.
    programs: [PathBuf; 2],
    count: u32,
}

/// What every secret says; nowhere in the host's files is it to be read.
pub const SECRET: &str = "what-nobody-but-its-vps-reads";

/// Where an export goes.
pub const ARCHIVE: &str = "store.tar";

impl Operations {
    /// With files under `files`, between versions of which the programs are in these directories.
    pub fn new(files: &Path, programs: [PathBuf; 2]) -> Result<Self> {
        fs::create_dir_all(files)?;
        Ok(Self { files: files.to_owned(), programs, count: 0 })
    }

    fn mark(&mut self) -> String {
        self.count += 1;
        format!("mark-{}", self.count)
    }

    fn path(&self, name: &str) -> String {
        self.files.join(name).to_string_lossy().into_owned()
    }

    /// A spec file of these VPSs with this mark.
    pub fn spec(&self, names: &[&str], mark: &str) -> Result<String> {
        let path = self.path(&format!("{}.toml", names.join("-")));
        let text: String = names.iter().map(|name| site::subject(name, mark)).collect();
        fs::write(&path, format!("tenant = \"acme\"\n{text}"))?;
        Ok(path)
    }

    /// Any operation that makes sense in `world`.
    pub fn any(&mut self, dice: &mut Dice, world: &World) -> Result<Operation> {
        let subjects = ["web", "store"];
        let subject = subjects[dice.below(2)];
        Ok(match dice.below(28) {
            0..=2 => self.apply(&[subject])?,
            3 | 4 => self.apply(&subjects)?,
            5 | 6 => Operation::new("start", &["start", subject]).after(&["stop", subject]),
            7 | 8 => Operation::new("stop", &["stop", subject]).after(&["start", subject]),
            9 => Operation::new("restart", &["restart", subject]),
            10 => Operation::new("freeze", &["freeze", subject]).after(&["start", subject]),
            11 => Operation::new("thaw", &["thaw", subject]).after(&["start", subject]).after(&["freeze", subject]),
            12..=14 => self.born(world)?,
            15 | 16 => self.import_volume()?,
            17 => Operation::new("volume export", &["volume", "export", "acme/cargo", &self.path("cargo.tar")]),
            18 => Operation::new("export", &["export", "store", &self.path(ARCHIVE), "--force"]),
            19 | 20 => self.copy(world),
            21 | 22 => self.image(world)?,
            23 | 24 => self.secret(world),
            25 | 26 => Operation::new("exec", &["exec", subject, "--", "sleep", "0.05"]),
            _ => self.upgrade(world),
        })
    }

    /// One that goes on beside `other` and has nothing to do with it, if there is one.
    pub fn beside(&mut self, other: &Operation) -> Result<Option<Operation>> {
        let said = || other.first.iter().chain([&other.words]).flatten();
        let free = ["web", "store"].into_iter().find(|name| !said().any(|word| word.contains(name)));
        match free {
            Some(name) if other.kind != "upgrade" => self.apply(&[name]).map(Some),
            _ => Ok(None),
        }
    }

    /// One that nobody uses.
    fn secret(&mut self, world: &World) -> Operation {
        if let Some(there) = world.secrets.first().cloned() {
            let remove = Operation::new("secret rm", &["secret", "rm", &there]);
            return remove.makes(move |world| world.secrets.retain(|secret| *secret != there));
        }
        self.count += 1;
        let name = format!("acme/secret-{}", self.count);
        let made = name.clone();
        let mut set = Operation::new("secret set", &["secret", "set", &name]);
        set.input = format!("{SECRET}\n");
        set.makes(move |world| world.secrets.extend([made.clone()]))
    }

    /// A change of these VPSs' specs, all at once.
    fn apply(&mut self, names: &[&str]) -> Result<Operation> {
        let mark = self.mark();
        let path = self.spec(names, &mark)?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let change =
            move |world: &mut World| names.iter().for_each(|name| drop(world.vps.insert(name.clone(), mark.clone())));
        Ok(Operation::new("apply", &["apply", &path]).makes(change))
    }

    /// A VPS that is made, started, and deleted with its volumes.
    fn born(&mut self, world: &World) -> Result<Operation> {
        let (made, volume) = (world.vps.contains_key("born"), world.volumes.contains_key("acme/born-data"));
        if made && volume {
            return Ok(delete("born"));
        }
        // Its volume is made by its start.
        let fill = |world: &mut World| drop(world.volumes.insert("acme/born-data".to_owned(), String::new()));
        if made {
            return Ok(Operation::new("first start", &["start", "born"]).makes(fill));
        }
        if volume {
            return Ok(remove_volume("acme/born-data"));
        }
        let mark = self.mark();
        let path = self.spec(&["born"], &mark)?;
        let make = move |world: &mut World| drop(world.vps.insert("born".to_owned(), mark.clone()));
        Ok(Operation::new("make", &["apply", &path]).makes(make))
    }

    fn import_volume(&mut self) -> Result<Operation> {
        let mark = self.mark();
        let path = self.path("cargo");
        site::cargo(Path::new(&path), &mark)?;
        let words = ["volume", "import", "acme/cargo", &path, "--replace"];
        let fill = move |world: &mut World| drop(world.volumes.insert("acme/cargo".to_owned(), mark.clone()));
        Ok(Operation::new("volume import", &words).after(&["stop", "hold"]).makes(fill))
    }

    /// A VPS out of an archive, or its end.
    fn copy(&self, world: &World) -> Operation {
        if world.vps.contains_key("copy") {
            return delete("copy");
        }
        if world.volumes.contains_key("acme/copy-data") {
            return remove_volume("acme/copy-data");
        }
        let archive = self.path(ARCHIVE);
        // A volume that was filled when the daemon or control died stays, and is nobody's: who asked may remove it.
        let fill = |world: &mut World| drop(world.volumes.insert("acme/copy-data".to_owned(), String::new()));
        let make = |world: &mut World| {
            let mark = world.vps.get("store").cloned().unwrap_or_default();
            world.vps.insert("copy".to_owned(), mark);
        };
        let words = ["import", &archive, "--name", "copy", "--no-routes"];
        Operation::new("import", &words).after(&["export", "store", &archive, "--force"]).makes(fill).makes(make)
    }

    fn image(&mut self, world: &World) -> Result<Operation> {
        let there = world.images.iter().find(|image| image.starts_with("dir:crate")).cloned();
        if let Some(there) = there {
            let gone = move |world: &mut World| world.images.retain(|image| *image != there);
            return Ok(Operation::new("image prune", &["image", "prune"]).makes(gone));
        }
        let mark = self.mark();
        let path = self.path("crate");
        site::cargo(Path::new(&path), &mark)?;
        let name = format!("crate-{}", self.count);
        let words = ["image", "build", &format!("dir:{path}"), "--name", &name];
        let made = format!("dir:{name}");
        let make = move |world: &mut World| world.images.extend([made.clone()]);
        Ok(Operation::new("image build", &words).makes(make))
    }

    /// To the version that does not run.
    fn upgrade(&self, world: &World) -> Operation {
        let is = |programs: &PathBuf| world.programs.contains(&programs.to_string_lossy().into_owned());
        let to = if is(&self.programs[0]) { &self.programs[1] } else { &self.programs[0] };
        let to = to.to_string_lossy().into_owned();
        let effect = to.clone();
        Operation::new("upgrade", &["upgrade", &to]).makes(move |world| world.programs = [effect.clone()].into())
    }
}

/// A VPS goes, then its volumes: those outlive it where the command is cut off.
fn delete(name: &'static str) -> Operation {
    let volume = format!("acme/{name}-data");
    Operation::new("delete", &["delete", name, "--volumes", "--yes"])
        .makes(move |world| drop(world.vps.remove(name)))
        .makes(move |world| drop(world.volumes.remove(&volume)))
}

fn remove_volume(name: &'static str) -> Operation {
    Operation::new("volume rm", &["volume", "rm", name, "--yes"]).makes(move |world| drop(world.volumes.remove(name)))
}
