//! What there is no more of: it is said, what runs goes on, and all is well when there is some again.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Answer, Host, HostOptions,
    disk::Disk,
    netns::sh,
    spec::{ECHO, perl, server},
};

fn sleepers(names: std::ops::Range<usize>) -> String {
    let one = |n| {
        format!("[vps.v{n}]\nimage = \"debian:\"\ncommand = [\"sleep\", \"1000000\"]\nidle = {{ after = \"1h\" }}\n")
    };
    format!("tenant = \"acme\"\n{}", names.map(one).collect::<String>())
}

fn host(config: &str) -> Result<Host> {
    Host::start(HostOptions { config: config.to_owned(), ..HostOptions::default() })
}

/// Refused, and told so in these words.
fn told(answer: &Answer, words: &[&str]) -> Result<()> {
    ensure!(answer.code != 0, "it was done: {answer:?}");
    for word in words {
        ensure!(answer.err.contains(word), "`{word}` is not said: {}", answer.err);
    }
    Ok(())
}

/// Names, and what was said.
type Refused = Vec<(String, Answer)>;

/// Starts all of them; those that run, and what was said of each of the others. Who has a place, the apply has decided.
fn start_all(host: &Host, most: usize) -> Result<(Vec<String>, Refused)> {
    let (mut up, mut refused) = (Vec::new(), Vec::new());
    for n in 0..most {
        let name = format!("v{n}");
        match host.cli(&["start", &name])? {
            answer if answer.code == 0 => up.push(name),
            answer => refused.push((name, answer)),
        }
    }
    Ok((up, refused))
}

#[test]
fn ids_and_addresses() -> Result<()> {
    for (config, words) in [
        ("ids = { blocks = 16 }", ["ids in a row are free", "raise `blocks`"]),
        ("pool = { memory = \"0B\" }\nnetwork = { subnet = \"10.80.0.0/27\" }", ["10.80.0.0/27", "delete a VPS"]),
    ] {
        let mut host = host(config)?;
        host.apply("v.toml", &sleepers(0..18))?;
        let (up, refused) = start_all(&host, 18)?;
        ensure!(up.len() > 3 && !refused.is_empty(), "{up:?} run; {refused:?}");
        for (name, answer) in &refused {
            told(answer, &words)?;
            ensure!(host.run(&["why", name])?.contains(words[0]), "{}", host.run(&["why", name])?);
        }
        // What runs goes on; and room that one leaves is another's.
        ensure!(host.state(&up[0])? == "running");
        host.run(&["restart", &up[0]])?;
        host.run(&["delete", &up[1], "--yes"])?;
        let next = refused.iter().map(|(name, _)| host.cli(&["start", name])).collect::<Result<Vec<_>>>()?;
        ensure!(next.iter().filter(|answer| answer.code == 0).count() == 1, "{next:?}");
        host.stop()?;
    }
    Ok(())
}

/// The rights of its own user namespace's root are needed.
fn prlimit(pid: i32) -> String {
    let same = fs::read_link("/proc/self/ns/user").ok() == fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let enter = if same { String::new() } else { format!("nsenter -t {pid} -U ") };
    format!("{enter}prlimit --pid {pid} --nofile=")
}

/// Sets the limit of open descriptors of a process to what it has and `more`; the old limit comes back on drop.
struct FewDescriptors {
    pid: i32,
    before: String,
}

impl FewDescriptors {
    fn of(pid: i32, more: usize) -> Result<Self> {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("its limits")?;
        let before = line.split_whitespace().take(2).collect::<Vec<_>>().join(":");
        // The limit is on the number of the next one: the lowest that is free.
        let mut open: Vec<usize> = fs::read_dir(format!("/proc/{pid}/fd"))?
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        open.sort_unstable();
        let free = (0..).filter(|n| open.binary_search(n).is_err()).nth(more).unwrap_or(0);
        let hard = before.split(':').nth(1).unwrap_or("1024");
        sh(&format!("{}{free}:{hard}", prlimit(pid)))?;
        Ok(Self { pid, before })
    }
}

impl Drop for FewDescriptors {
    fn drop(&mut self) {
        let _ = sh(&format!("{}{}", prlimit(self.pid), self.before));
    }
}

/// The process of a designated VPS's service: its init's child.
fn service(host: &Host, name: &str) -> Result<i32> {
    let init = host.pid_of(name)?;
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children"))?;
    Ok(children.split_whitespace().next().context("a service")?.parse()?)
}

#[test]
fn descriptors_of_the_daemon() -> Result<()> {
    // What is prepared has its descriptors already.
    let mut host = host("pool = { memory = \"0B\" }")?;
    host.apply("v.toml", &sleepers(0..2))?;
    host.run(&["start", "v0"])?;
    let daemon = host.daemon()?;
    {
        let _few = FewDescriptors::of(daemon, 2)?;
        told(&host.cli(&["start", "v1"])?, &["Too many open files"])?;
    }
    host.run(&["start", "v1"])?;
    ensure!(host.daemon()? == daemon && host.state("v0")? == "running", "{}", host.daemon_log());
    host.stop()
}

#[test]
fn descriptors_of_control_and_the_gateway() -> Result<()> {
    const PORT: u16 = 21010;
    let mut host = host("")?;
    host.apply("web.toml", &perl("web", PORT, &server("", ECHO), "idle = \"never\""))?;
    host.run(&["start", "web"])?;
    let echo = || -> Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(b"hello\n")?;
        Ok(stream)
    };
    let answered = |mut stream: TcpStream| -> Result<()> {
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).context("an answer")?;
        ensure!(&answer == b"hello\n");
        Ok(())
    };
    answered(echo()?)?;
    let (gateway, control) = (service(&host, "gateway")?, service(&host, "control")?);
    let waiting = {
        let _few = FewDescriptors::of(gateway, 2)?;
        let waiting = (0..20).map(|_| echo()).collect::<Result<Vec<_>>>()?;
        host.run(&["ps"])?;
        waiting
    };
    // Who waited is served, or was told by the end of its connection; who comes is served.
    let served = waiting.into_iter().map(answered).filter(Result::is_ok).count();
    ensure!(served >= 15, "only {served} of 20 that waited were served");
    answered(echo()?)?;
    let busy: Vec<_> = {
        let _few = FewDescriptors::of(control, 1)?;
        let busy = (0..4)
            .map(|_| host.command(&["ps"]).stdout(std::process::Stdio::null()).spawn())
            .collect::<Result<_, _>>()?;
        // The gateway asks control of nothing for who is up.
        answered(echo()?)?;
        busy
    };
    for mut child in busy {
        child.wait()?;
    }
    host.run(&["ps"])?;
    ensure!(service(&host, "gateway")? == gateway && service(&host, "control")? == control, "one was started again");
    host.stop()
}

#[test]
fn inodes() -> Result<()> {
    let disk = Disk::new(300, &["mkfs.ext4", "-q", "-m", "0", "-N", "1200"], "loop")?;
    let mut host = Host::start(HostOptions { root: Some(disk.root.clone()), ..HostOptions::default() })?;
    host.apply("v.toml", &sleepers(0..2))?;
    host.run(&["start", "v0"])?;
    let filler = disk.path().join("filler");
    fs::create_dir(&filler)?;
    let mut made = 0;
    while fs::write(filler.join(format!("{made}")), "").is_ok() {
        made += 1;
    }
    told(&host.cli(&["volume", "import", "acme/v", "/etc/apt"])?, &["No space left"])?;
    ensure!(host.state("v0")? == "running");
    host.run(&["ps"])?;
    // Whichever step finds none: one more is left each time.
    let mut tries = 0;
    loop {
        let start = host.cli(&["start", "v1"])?;
        if start.code == 0 {
            break;
        }
        told(&start, &["No space left"])?;
        ensure!(tries < 40, "it does not start with {tries} inodes: {start:?}");
        fs::remove_file(filler.join(format!("{tries}")))?;
        tries += 1;
    }
    ensure!(tries > 0, "there were inodes");
    fs::remove_dir_all(&filler)?;
    host.run(&["volume", "import", "acme/v", "/etc/apt"])?;
    host.stop()
}

/// Where the pids of this host are counted.
fn pids_max(host: &Host) -> Result<PathBuf> {
    let config = fs::read_to_string(host.root.join("host.toml"))?;
    let name = config
        .lines()
        .find_map(|line| line.strip_prefix("cgroup = "))
        .context("a cgroup")?
        .trim_matches('"')
        .to_owned();
    let places = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
    let mut found = places.iter().map(|place| PathBuf::from(place).join(&name).join("pids.max"));
    found.find(|path| path.exists()).context("pids.max")
}

#[test]
fn processes() -> Result<()> {
    let mut host = host("")?;
    let spec = sleepers(0..2).replace("idle =", "limits = { processes = 16 }\nidle =");
    host.apply("v.toml", &spec)?;
    host.run(&["start", "v0"])?;
    // Of one VPS: its own programs are refused, nobody else's.
    let hold = "$| = 1; while (defined(my $p = fork)) { $p or sleep 1000 and exit } print 'held!'; sleep 1000";
    let mut holding =
        host.command(&["exec", "v0", "--", "perl", "-e", hold]).stdout(std::process::Stdio::piped()).spawn()?;
    let mut line = [0; 5];
    let _ = holding.stdout.take().context("its output")?.read(&mut line)?;
    told(&host.cli(&["exec", "v0", "--", "true"])?, &["limits.processes"])?;
    host.run(&["start", "v1"])?;
    host.run(&["stop", "v1"])?;
    holding.kill()?;
    holding.wait()?;
    host.run(&["restart", "v0"])?;
    host.run(&["exec", "v0", "--", "true"])?;
    // Of the whole host.
    let max = pids_max(&host)?;
    let before = fs::read_to_string(&max)?;
    fs::write(&max, "1")?;
    let answer = host.cli(&["start", "v1"])?;
    fs::write(&max, before.trim())?;
    told(&answer, &["no process can be added"])?;
    host.run(&["start", "v1"])?;
    ensure!(host.state("v0")? == "running");
    host.stop()
}

#[test]
fn a_state_directory_that_can_not_be_written() -> Result<()> {
    let disk = Disk::new(300, &["mkfs.ext4", "-q", "-m", "0"], "loop")?;
    let mut host = Host::start(HostOptions { root: Some(disk.root.clone()), ..HostOptions::default() })?;
    host.apply("v.toml", &sleepers(0..2))?;
    host.run(&["start", "v0"])?;
    let remount = |how: &str| -> Result<()> {
        let options = format!("remount,bind,{how}");
        ensure!(
            Command::new("mount").args(["-o", &options]).arg(disk.path()).status()?.success(),
            "mount -o {options}"
        );
        Ok(())
    };
    remount("ro")?;
    told(&host.cli(&["start", "v1"])?, &["Read-only file system"])?;
    told(&host.cli(&["volume", "import", "acme/v", "/etc/apt"])?, &["Read-only file system"])?;
    ensure!(host.state("v0")? == "running");
    remount("rw")?;
    host.run(&["start", "v1"])?;
    host.run(&["volume", "import", "acme/v", "/etc/apt"])?;
    host.stop()
}
