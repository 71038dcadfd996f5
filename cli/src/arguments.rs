//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use model::{
    ImageRef, JobName, SecretName, TenantName, VolumeName, VpsName,
    host::Paths,
    image::{ImageName, ImageSource},
};

mod source;

use source::Source;

/// Runs many unmodified server programs, each in its own isolated VPS, on one Linux host.
#[derive(Debug, Parser)]
#[command(
    name = "bailiwick",
    version = model::version(),
    max_term_width = 110,
    disable_help_subcommand = false,
    after_help = "\
Examples:
  bailiwick doctor                    what this machine has and lacks
  bailiwick apply blog.toml           make what the file says
  bailiwick ps                        what is there, and what it does
  bailiwick why blog                  why it is awake, asleep or failed

Exit status: 0 done, 1 failed, 2 wrong request, 3 not found, 4 conflict, 5 not permitted, 6 no host answers, 7 the
machine lacks something. `exec` exits as its command did."
)]
pub struct Arguments {
    /// The host's directory, for one that is not the system's [BAILIWICK_ROOT]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// Where the host's files are.
    pub fn paths(&self) -> Paths {
        let root = self.root.clone().or_else(|| std::env::var_os("BAILIWICK_ROOT").map(PathBuf::from));
        Paths::new(root.filter(|root| !root.as_os_str().is_empty()).as_deref())
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make what spec files say, all or nothing
    #[command(after_help = "\
Examples:
  bailiwick apply blog.toml                what will change, then the change
  bailiwick apply blog.toml --dry-run      only what would change
  bailiwick apply - < blog.toml

A spec file:
  tenant = \"acme\"
  [vps.blog]
  image   = \"debian:nginx-light\"
  command = [\"nginx\", \"-g\", \"daemon off;\"]
  routes  = { \"http://blog.example.org\" = 80 }
  limits  = { memory = \"512MiB\", cpu = 1.0, processes = 200 }
  idle    = { after = \"10m\", then = \"stop\" }     # or idle = \"never\"

Also: cwd, user, hostname, env, env_file, files, volumes, secrets, job, ids, restart, ready, start_deadline, stop, setuid, nesting
(docs/spec.schema.json says what each may be).")]
    Apply(Apply),
    /// Delete VPSs and what they have on disk; volumes stay
    #[command(after_help = "Examples:\n  bailiwick delete blog shop --yes\n  bailiwick delete db --volumes")]
    Delete {
        /// The VPSs' names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VpsName>,
        /// Their volumes too, but for those that another VPS uses
        #[arg(long)]
        volumes: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Print the stored spec, in the form `apply` takes
    #[command(after_help = "Example:\n  bailiwick get blog > blog.toml")]
    Get {
        /// The VPS's name
        name: VpsName,
    },
    /// List VPSs
    #[command(after_help = "Examples:\n  bailiwick ps\n  bailiwick ps --tenant acme\n  bailiwick ps --all --json")]
    Ps {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<TenantName>,
        /// Designated VPSs too
        #[arg(long, short)]
        all: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Print all that is known of a VPS, as JSON
    #[command(after_help = "Example:\n  bailiwick inspect blog")]
    Inspect {
        /// The VPS's name
        name: VpsName,
        #[command(flatten)]
        form: Form,
    },
    /// Say why a VPS is awake, asleep or failed
    #[command(after_help = "Example:\n  bailiwick why blog")]
    Why {
        /// The VPS's name
        name: VpsName,
        #[command(flatten)]
        form: Form,
    },
    /// Start VPSs and wait until they are ready
    #[command(after_help = "Example:\n  bailiwick start blog")]
    Start(Names),
    /// Stop VPSs; the next request wakes them
    #[command(after_help = "Example:\n  bailiwick stop blog shop")]
    Stop(Names),
    /// Stop VPSs and start them again
    #[command(after_help = "Example:\n  bailiwick restart blog")]
    Restart(Names),
    /// Let VPSs stand still; their memory stays
    #[command(after_help = "Example:\n  bailiwick freeze blog")]
    Freeze(Names),
    /// Let frozen VPSs go on
    #[command(after_help = "Example:\n  bailiwick thaw blog")]
    Thaw(Names),
    /// Print what a VPS's program wrote
    #[command(
        after_help = "Examples:\n  bailiwick logs blog\n  bailiwick logs -f -n 20 blog\n  bailiwick logs --source log,err --since 10m blog\n  bailiwick logs --targets"
    )]
    Logs {
        /// The VPS's name
        #[arg(required_unless_present = "targets", conflicts_with = "targets")]
        name: Option<VpsName>,
        /// List where host.toml has all logs shipped, and how that goes
        #[arg(long)]
        targets: bool,
        /// Go on with what it writes from now on
        #[arg(long, short)]
        follow: bool,
        /// How many of its last lines, at most 10000 [default: 100]
        #[arg(long, short = 'n', value_name = "N")]
        lines: Option<u32>,
        /// Only lines of these: out, err, log (/dev/log), file (files of `logs`), one such file's path, vps (its supervisor)
        #[arg(long, value_delimiter = ',', value_parser = Source)]
        source: Vec<String>,
        /// Only lines since then: a time ago such as 10m, or a UTC time such as 2026-11-22T13:58:00Z or its beginning
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        #[command(flatten)]
        form: Form,
    },
    /// Run a program inside a VPS; without one, and at a terminal, a shell
    #[command(after_help = "\
Examples:
  bailiwick exec blog                      a shell with a terminal
  bailiwick exec -it blog -- vi /etc/motd
  bailiwick exec blog -- nginx -t
  bailiwick exec blog --user www-data --cwd /var/www -- ls -l
  tar c site | bailiwick exec blog -- tar x -C /var/www")]
    Exec(Exec),
    /// List images
    #[command(after_help = "Example:\n  bailiwick images")]
    Images {
        #[command(flatten)]
        form: Form,
    },
    /// Build or remove an image
    #[command(
        subcommand,
        after_help = "Examples:\n  bailiwick image build debian:nginx-light\n  bailiwick image rm debian:nginx-light"
    )]
    Image(Image),
    /// List, look at, fill, save or remove volumes, which outlive the VPSs that use them
    #[command(
        subcommand,
        after_help = "Examples:\n  bailiwick volume ls\n  bailiwick volume import acme/data dump.tar.gz\n  bailiwick volume export acme/data data.tar\n  bailiwick volume rm acme/data"
    )]
    Volume(Volume),
    /// Write a whole VPS to one archive: spec, volumes, its image by its layers' ids; no secrets
    #[command(after_help = "\
Examples:
  bailiwick export db                      to db.bailiwick.tar
  bailiwick export db - | ssh other bailiwick import -
  bailiwick export db --with-secrets --passphrase-file /root/phrase

In it are spec, volumes and the name of its image (with --with-image all of it); not what it wrote beside its volumes, and no directory of the host.
It stands still for the moment in which its volumes are copied. Where the file system can't share blocks (`doctor` says so) and
they have more than 256 MiB, it does so while they are read; requests meanwhile are told to come again. Stop it
first to have its program write all it has to say.")]
    Export {
        /// The VPS's name
        name: VpsName,
        /// Where to; `-` is standard output [default: NAME.bailiwick.tar]
        file: Option<PathBuf>,
        /// Take the place of a file that is there
        #[arg(long)]
        force: bool,
        /// With the layers of its image, so that where it is imported nothing has to be built
        #[arg(long)]
        with_image: bool,
        /// With what its secrets say, sealed with a passphrase
        #[arg(long)]
        with_secrets: bool,
        #[command(flatten)]
        passphrase: PassphraseFrom,
    },
    /// Make a VPS of an archive of `export`, whole or not at all
    #[command(after_help = "\
Examples:
  bailiwick import db.bailiwick.tar
  bailiwick import db.bailiwick.tar --name db-copy --no-routes
  bailiwick import db.bailiwick.tar --tenant beta
  bailiwick import db.bailiwick.tar --with-secrets

Its image must be there, and the secrets that it needs must be set, or come with it. An image that comes with it and is not here
yet is called after the VPS: tar:NAME@sha256:…. With --name, a volume whose name is taken becomes
NEW-VOLUME.")]
    Import(Import),
    /// Save all specs and secrets of this host, or make a saved state so
    #[command(
        subcommand,
        after_help = "Examples:\n  bailiwick state export host.state\n  bailiwick state import host.state"
    )]
    State(State),
    /// Set, list or remove secrets, which VPSs see as files
    #[command(
        subcommand,
        after_help = "Examples:\n  bailiwick secret set acme/db-password\n  bailiwick secret ls\n  bailiwick secret rm acme/db-password"
    )]
    Secret(Secret),
    /// List jobs: what is run inside VPSs at certain times
    #[command(after_help = "Examples:\n  bailiwick jobs\n  bailiwick jobs blog --json")]
    Jobs {
        /// Only this VPS's
        name: Option<VpsName>,
        #[command(flatten)]
        form: Form,
    },
    /// Run a job now
    #[command(subcommand, after_help = "Example:\n  bailiwick job run blog tidy")]
    Job(Job),
    /// List routes: what leads where
    #[command(after_help = "Example:\n  bailiwick routes")]
    Routes {
        #[command(flatten)]
        form: Form,
    },
    /// See what the firewall lets VPSs connect to, or try it
    #[command(
        subcommand,
        after_help = "Examples:\n  bailiwick network rules blog\n  bailiwick network test blog db:3306\n  \
                      bailiwick network test blog deb.debian.org:80"
    )]
    Network(Network),
    /// List services and the designated VPSs that run them
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  bailiwick services\n  bailiwick services upgrade gateway"
    )]
    Services {
        #[command(subcommand)]
        action: Option<Services>,
        #[command(flatten)]
        form: Form,
    },
    /// Print what happened: the last 1024 events, or all since a time, as far as they are kept
    #[command(
        after_help = "Examples:\n  bailiwick events\n  bailiwick events --since 10m\n  bailiwick events -f --json"
    )]
    Events {
        /// Go on with what happens from now on
        #[arg(long, short)]
        follow: bool,
        /// Only what happened since then: a time ago such as 10m, or a UTC time such as 2026-11-22T13:58:00Z or its beginning
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        #[command(flatten)]
        form: Form,
    },
    /// Have the host go on as another version, while server VPSs run on
    #[command(after_help = "\
Examples:
  bailiwick upgrade --check                   what would be done
  bailiwick upgrade                           to the version that this program is of
  bailiwick upgrade /usr/lib/bailiwick/0.2.0

Keeper and daemon become the new version in place; then designated VPSs are restarted with it, one after the other. No
connection is refused. When the new version does not come up, the old one goes on.")]
    Upgrade(Upgrade),
    /// Say what this machine has and lacks
    #[command(after_help = "\
Examples:
  bailiwick doctor
  bailiwick doctor --host-toml new.toml    a host.toml, before it is used

Exits with 7 when something needed is missing.")]
    Doctor {
        /// Check this file in place of the host's host.toml
        #[arg(long, value_name = "FILE")]
        host_toml: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell
    #[command(after_help = "Example:\n  bailiwick completions bash > /etc/bash_completion.d/bailiwick")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages
    #[command(hide = true)]
    Manual {
        /// Into this directory
        directory: PathBuf,
    },
    /// Print the names of all VPSs, for completions
    #[command(hide = true)]
    Names,
    /// Run services; what designated VPSs execute
    #[command(hide = true)]
    Serve {
        /// Which
        #[arg(required = true)]
        services: Vec<String>,
    },
}

/// `upgrade`
#[derive(Debug, Args)]
pub struct Upgrade {
    /// Where the programs of the new version are [default: where this program is]
    pub directory: Option<PathBuf>,
    /// Only say what would be done
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub form: Form,
}

/// `services …`
#[derive(Debug, Subcommand)]
pub enum Services {
    /// Restart one designated VPS with another version
    #[command(after_help = "Example:\n  bailiwick services upgrade gateway")]
    Upgrade {
        /// The designated VPS
        name: VpsName,
        /// Where the programs of that version are [default: where this program is]
        directory: Option<PathBuf>,
    },
}

/// In which form to answer.
#[derive(Debug, Clone, Copy, Args)]
pub struct Form {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// VPSs to do something with.
#[derive(Debug, Args)]
pub struct Names {
    /// The VPSs' names
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<VpsName>,
}

/// `apply`
#[derive(Debug, Args)]
pub struct Apply {
    /// Spec files; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Take routes from the VPSs that have them
    #[arg(long)]
    pub take_routes: bool,
    #[command(flatten)]
    pub form: Form,
}

/// `import`
#[derive(Debug, Args)]
pub struct Import {
    /// The archive; `-` is standard input
    pub file: PathBuf,
    /// What it is called here
    #[arg(long, value_name = "NEW")]
    pub name: Option<VpsName>,
    /// Whose it is here
    #[arg(long)]
    pub tenant: Option<TenantName>,
    /// Without its routes, which may be in use
    #[arg(long)]
    pub no_routes: bool,
    /// With its secrets, which a passphrase opens
    #[arg(long)]
    pub with_secrets: bool,
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
    #[command(flatten)]
    pub form: Form,
}

/// `exec`
#[derive(Debug, Args)]
pub struct Exec {
    /// The VPS's name; one that is asleep is started
    pub name: VpsName,
    /// As whom: `name`, `name:group`, `uid` or `uid:gid`
    #[arg(long, short)]
    pub user: Option<String>,
    /// More environment
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// The directory it begins in
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// With a terminal: job control, window size, Ctrl-C for the program alone
    #[arg(long, short)]
    pub tty: bool,
    /// Hand on standard input, which is done anyway
    #[arg(long, short)]
    pub interactive: bool,
    /// Program and arguments [default: a shell, with a terminal]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// `image …`
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Build an image
    #[command(
        after_help = "Examples:\n  bailiwick image build debian:nginx-light,php-fpm\n  bailiwick image build tar:app.tar.zst --name app\n  bailiwick image build dir:./rootfs"
    )]
    Build {
        /// `debian:PACKAGE[,PACKAGE]`, `tar:FILE` (plain, gzip or zstd) or `dir:DIRECTORY`
        image: ImageSource,
        /// Its name, for `tar:` and `dir:` [default: the file's]
        #[arg(long)]
        name: Option<ImageName>,
        /// Build again although it is there
        #[arg(long)]
        refresh: bool,
        #[command(flatten)]
        form: Form,
    },
    /// List images
    #[command(after_help = "Example:\n  bailiwick image ls --json")]
    Ls {
        #[command(flatten)]
        form: Form,
    },
    /// Print all that is known of an image, as JSON
    #[command(after_help = "Example:\n  bailiwick image inspect debian:nginx-light")]
    Inspect {
        /// Its name, as `image ls` shows it
        image: ImageRef,
        #[command(flatten)]
        form: Form,
    },
    /// Remove all images and layers that nothing uses, here or on another host with the same layer store
    #[command(after_help = "Examples:\n  bailiwick image prune --dry-run\n  bailiwick image prune --json")]
    Prune {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Read an image's layers, or all, and name those that are damaged
    #[command(after_help = "Examples:\n  bailiwick image verify\n  bailiwick image verify debian:nginx-light")]
    Verify {
        /// Its name, as `image ls` shows it
        image: Option<ImageRef>,
        #[command(flatten)]
        form: Form,
    },
    /// Remove images that no VPS uses
    #[command(after_help = "Example:\n  bailiwick image rm debian:nginx-light")]
    Rm {
        /// Their names, as `images` lists them
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<ImageRef>,
    },
}

/// `job …`
#[derive(Debug, Subcommand)]
pub enum Job {
    /// Run a job now, wait for its end, and print the end of what it wrote
    #[command(after_help = "Example:\n  bailiwick job run blog tidy\n\nExits as the job did.")]
    Run {
        /// The VPS's name; one that is asleep is started
        name: VpsName,
        /// The job's name, as `jobs` lists it
        job: JobName,
        #[command(flatten)]
        form: Form,
    },
}

/// `network …`
#[derive(Debug, Subcommand)]
pub enum Network {
    /// List what VPSs may connect to, what of it they did, and what they were refused in the last hour
    #[command(after_help = "Examples:\n  bailiwick network rules\n  bailiwick network rules blog --json")]
    Rules {
        /// Only this VPS's
        name: Option<VpsName>,
        #[command(flatten)]
        form: Form,
    },
    /// Say which rule decides whether a VPS may connect somewhere, and send a true packet
    #[command(
        after_help = "Examples:\n  bailiwick network test blog db:3306\n  bailiwick network test blog udp://192.0.2.53:53\n\n\
                      Exits with 1 when it is refused, or nobody is there."
    )]
    Test {
        /// The VPS that would connect; only one that is up sends a packet
        name: VpsName,
        /// To whom: VPS:PORT of its tenant, or a name or address of the outside with its port
        to: String,
        #[command(flatten)]
        form: Form,
    },
}

/// `volume …`
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// List volumes
    #[command(after_help = "Example:\n  bailiwick volume ls --tenant acme")]
    Ls {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<TenantName>,
        #[command(flatten)]
        form: Form,
    },
    /// Print all that is known of a volume, as JSON
    #[command(after_help = "Example:\n  bailiwick volume inspect acme/data")]
    Inspect {
        /// Which: `TENANT/NAME`
        volume: VolumeRef,
        #[command(flatten)]
        form: Form,
    },
    /// Fill a volume from a directory or an archive: all of it, or nothing
    #[command(
        after_help = "Examples:\n  bailiwick volume import acme/data dump.tar.gz\n  bailiwick volume import acme/data /srv/old-redis --owner 101:103\n  bailiwick volume import acme/data dump.tar --replace\n\nOwners are numbers as the programs inside see them: 0 is the VPS's own root. What the archive has replaces what the\nimage has in that place. A VPS that uses the volume must be stopped."
    )]
    Import {
        /// Which: `TENANT/NAME`; made where it is missing
        volume: VolumeRef,
        /// A directory, a tar archive (also packed by gzip, xz, zstd or bzip2), or `-`: a plain one on standard input
        path: PathBuf,
        /// Give all of it to this user and group, instead of whom it says
        #[arg(long, value_name = "UID[:GID]")]
        owner: Option<String>,
        /// Take the place of what is in the volume
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Write a volume as a tar archive
    #[command(
        after_help = "Examples:\n  bailiwick volume export acme/data data.tar\n  bailiwick volume export acme/data | zstd > data.tar.zst\n\nFiles that a running program changes meanwhile may be torn; stop or freeze the VPS first where that matters."
    )]
    Export {
        /// Which: `TENANT/NAME`
        volume: VolumeRef,
        /// Where to; left out: standard output
        file: Option<PathBuf>,
    },
    /// Remove volumes that no VPS uses, with all that is in them
    #[command(after_help = "Example:\n  bailiwick volume rm acme/data --yes")]
    Rm {
        /// Which: `TENANT/NAME`
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<VolumeRef>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Where a passphrase comes from.
#[derive(Debug, Args)]
pub struct PassphraseFrom {
    /// A file whose first line is the passphrase; `-` is standard input [default: asked for on the terminal]
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

impl PassphraseFrom {
    /// Whether something was said.
    pub fn is_said(&self) -> bool {
        self.passphrase_file.is_some()
    }
}

/// `state …`
#[derive(Debug, Subcommand)]
pub enum State {
    /// Write the specs of all VPSs, their addresses, wakes and jobs' ends, and all secrets sealed with a passphrase, to a file
    #[command(after_help = "\
Examples:
  bailiwick state export host.state                                   asks for a passphrase
  bailiwick state export host.state --passphrase-file /root/phrase
  bailiwick state export specs.state --no-secrets

With it a host is rebuilt on another machine: `state import` there, then the images, then `volume import`. What volumes hold
is not in it (`volume export`, `export`), nor host.toml.")]
    Export {
        /// Where to; `-` is standard output
        file: PathBuf,
        /// Take the place of a file that is there
        #[arg(long)]
        force: bool,
        /// Without secrets
        #[arg(long, conflicts_with = "passphrase_file")]
        no_secrets: bool,
        #[command(flatten)]
        passphrase: PassphraseFrom,
    },
    /// Make a saved state so, whole or not at all
    #[command(after_help = "\
Examples:
  bailiwick state import host.state
  bailiwick state import host.state --passphrase-file /root/phrase
  bailiwick state import host.state --replace

A host that has VPSs or secrets takes it only with --replace. What is asleep stays so; images that are missing are named. VPSs
that are new get the addresses they had, where those are free.")]
    Import {
        /// The file; `-` is standard input
        file: PathBuf,
        /// Although there are VPSs or secrets: those of the same name become as the file says, others stay
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        passphrase: PassphraseFrom,
        #[command(flatten)]
        form: Form,
    },
}

/// `secret …`
#[derive(Debug, Subcommand)]
pub enum Secret {
    /// Set a secret: asked for on a terminal, else read from standard input
    #[command(after_help = "\
Examples:
  bailiwick secret set acme/db-password
  openssl rand -hex 32 | bailiwick secret set acme/session-key
  bailiwick secret set acme/tls-key < key.pem

A VPS sees it as the file that its spec names, from its next start on: secrets = { db-password = \"/run/secrets/db\" }.
The line end of a single line is left out; --exact keeps every byte.")]
    Set {
        /// Which: `TENANT/NAME`
        secret: SecretRef,
        /// Keep the line end of a single line
        #[arg(long)]
        exact: bool,
        #[command(flatten)]
        form: Form,
    },
    /// List secrets, without what they say
    #[command(after_help = "Example:\n  bailiwick secret ls --tenant acme")]
    Ls {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<TenantName>,
        #[command(flatten)]
        form: Form,
    },
    /// Remove secrets that no VPS uses
    #[command(after_help = "Example:\n  bailiwick secret rm acme/db-password")]
    Rm {
        /// Which: `TENANT/NAME`
        #[arg(required = true, value_name = "SECRET")]
        secrets: Vec<SecretRef>,
        /// Although a VPS uses it, which can't start any more
        #[arg(long)]
        force: bool,
    },
}

/// `TENANT/NAME`
#[derive(Debug, Clone)]
pub struct TenantsOwn<N> {
    /// Whose.
    pub tenant: TenantName,
    /// Which.
    pub name: N,
}

/// A volume.
pub type VolumeRef = TenantsOwn<VolumeName>;
/// A secret.
pub type SecretRef = TenantsOwn<SecretName>;

impl<N: std::str::FromStr<Err = model::name::NameError>> std::str::FromStr for TenantsOwn<N> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tenant, name) = text.split_once('/').ok_or("write TENANT/NAME, as `ls` lists them")?;
        let legal = |error: model::name::NameError| error.to_string();
        Ok(Self { tenant: tenant.parse().map_err(legal)?, name: name.parse().map_err(legal)? })
    }
}

impl<N: std::fmt::Display> std::fmt::Display for TenantsOwn<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_fit_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn exec_takes_its_command_with_and_without_dashes() {
        for line in
            ["bailiwick exec blog --user www -e A=b=c -- ls -l", "bailiwick exec --user www -e A=b=c blog ls -l"]
        {
            let arguments = Arguments::try_parse_from(line.split(' ')).expect("legal");
            let Command::Exec(exec) = arguments.command else { panic!("{line} is no exec") };
            assert_eq!((exec.command.join(" ").as_str(), exec.user.as_deref()), ("ls -l", Some("www")));
            assert_eq!(exec.env, [("A".to_owned(), "b=c".to_owned())]);
        }
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Arguments::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{}", command.get_name());
        }
    }
}
