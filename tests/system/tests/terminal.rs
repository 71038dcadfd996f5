//! `exec` with a terminal, as a person at one has it.

use std::{
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Termios, Winsize, tcgetattr, tcsetwinsize},
};

const PATIENCE: Duration = Duration::from_secs(20);
const BOX: &str = r#"tenant = "acme"
[vps.box]
image   = "debian:"
command = ["sleep", "1000000"]
"#;

/// A terminal with a program of ours at it.
struct Terminal {
    master: std::fs::File,
    slave: OwnedFd,
    child: Child,
    said: String,
    heard: usize,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    fn start(command: &Command) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        unlockpt(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        tcsetwinsize(&master, size(24, 80))?;
        let stream = || Ok::<_, anyhow::Error>(Stdio::from(slave.try_clone()?));
        // It becomes the program itself, with this as its controlling terminal.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args()).env("TERM", "xterm-256color");
        let child = session.stdin(stream()?).stdout(stream()?).stderr(stream()?).spawn()?;
        Ok(Self { master: master.into(), slave, child, said: String::new(), heard: 0 })
    }

    fn modes(&self) -> Result<Termios> {
        Ok(tcgetattr(&self.slave)?)
    }

    fn keys(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Waits until it shows `text`, after what was waited for before.
    fn shows(&mut self, text: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.said[self.heard..].find(text) {
                self.heard += at + text.len();
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let ready = poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&timeout))?;
            ensure!(ready == 1 && !left.is_zero(), "it never shows {text:?}: {:?}", &self.said[self.heard..]);
            let mut bytes = [0; 4096];
            let n = self.master.read(&mut bytes)?;
            self.said.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    }

    fn code(&mut self) -> Result<i32> {
        self.child.wait()?.code().context("it was killed")
    }
}

#[test]
fn a_shell_has_a_terminal_of_its_own() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", BOX)?;
    let shell = host.command(&["exec", "-it", "-e", "PS1=> ", "box", "--", "bash", "--norc", "-i"]);
    let mut terminal = Terminal::start(&shell)?;
    let before = terminal.modes()?;
    terminal.shows("> ")?;
    ensure!(terminal.modes()?.local_modes != before.local_modes, "keys are not handed on one by one");
    terminal.keys("stty size; tty; echo $TERM\n")?;
    for text in ["24 80\r\n", "/dev/pts/0\r\n", "xterm-256color\r\n"] {
        terminal.shows(text)?;
    }

    // The window changes.
    terminal.keys(
        "perl -e '$SIG{WINCH} = sub { system(\"stty size\"); exit }; $| = 1; print \"wai\", \"ting\\n\"; sleep 100'\n",
    )?;
    terminal.shows("waiting\r\n")?;
    tcsetwinsize(&terminal.master, size(50, 132))?;
    terminal.shows("50 132\r\n")?;

    // Keys are signals to the program in front alone.
    // One program, that says so itself: between two of a list the shell takes the signal.
    terminal.keys("perl -e '$| = 1; print \"be\", \"gun\\n\"; sleep 1000'\n")?;
    terminal.shows("begun\r\n")?;
    terminal.keys("\x03")?;
    terminal.shows("> ")?;
    terminal.keys("echo status $?\n")?;
    terminal.shows("status 130\r\n")?;
    // Stopped, and in front again, which it says itself: then keys are its own once more.
    terminal.keys(
        "perl -e '$SIG{CONT} = sub { print \"ag\", \"ain\\n\" }; $| = 1; print \"in fr\", \"ont\\n\"; sleep 1000 while 1'\n",
    )?;
    terminal.shows("in front\r\n")?;
    terminal.keys("\x1a")?;
    terminal.shows("Stopped")?;
    terminal.keys("fg\n")?;
    terminal.shows("again\r\n")?;
    terminal.keys("\x03")?;
    terminal.shows("> ")?;
    terminal.keys("echo ov''er $?\n")?;
    terminal.shows("over 130\r\n")?;

    terminal.keys("exit 7\n")?;
    ensure!(terminal.code()? == 7);
    ensure!(terminal.modes()?.local_modes == before.local_modes, "the terminal is not given back");
    host.stop()
}

#[test]
fn without_a_command_a_shell_is_meant_and_only_at_a_terminal() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", BOX)?;
    let mut terminal = Terminal::start(&host.command(&["exec", "--user", "www-data", "--cwd", "/tmp", "box"]))?;
    terminal.keys("echo I am $(id -un) of $0 in $PWD at $(stat -c %U $(tty))\n")?;
    terminal.shows("I am www-data of bash in /tmp at www-data\r\n")?;
    // At its prompt: before, the terminal would take the key.
    terminal.shows("$ ")?;
    terminal.keys("\x04")?;
    ensure!(terminal.code()? == 0);
    let refused = host.cli(&["exec", "box"])?;
    ensure!(refused.code == 2 && refused.err.contains("exec box -- COMMAND"), "{refused:?}");
    let refused = host.cli(&["exec", "-t", "box", "--", "true"])?;
    ensure!(refused.code == 2 && refused.err.contains("leave -t out"), "{refused:?}");
    let mut missing = Terminal::start(&host.command(&["exec", "-t", "box", "--", "no-such-program"]))?;
    missing.shows("\"no-such-program\" not found")?;
    ensure!(missing.code()? == 127);
    host.stop()
}

#[test]
fn a_client_that_goes_away_hangs_up() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", BOX)?;
    let inside = |text: &str| host.cli(&["exec", "box", "--", "sh", "-c", text]);
    let until = |text: &str| -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while inside(text)?.code != 0 {
            ensure!(Instant::now() < deadline, "never: {text}");
        }
        Ok(())
    };
    // One that listens to the hang-up, when its client is asked to end.
    let script = "trap 'echo > /tmp/hup; exit' HUP; echo armed; while :; do read line; done";
    let mut terminal = Terminal::start(&host.command(&["exec", "-t", "box", "--", "bash", "-c", script]))?;
    terminal.shows("armed")?;
    let before = Terminal::start(&Command::new("true"))?.modes()?;
    let pid = Pid::from_raw(terminal.child.id() as i32).context("a pid")?;
    kill_process(pid, Signal::TERM)?;
    ensure!(terminal.code()? == 128 + 15);
    ensure!(terminal.modes()?.local_modes == before.local_modes, "the terminal is not given back");
    until("[ -e /tmp/hup ]")?;

    // One that does not, when its client is killed.
    let script = "trap '' HUP; echo armed; exec sleep 4711";
    let mut terminal = Terminal::start(&host.command(&["exec", "-t", "box", "--", "bash", "-c", script]))?;
    terminal.shows("armed")?;
    until("cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep 471[1]'")?;
    terminal.child.kill()?;
    terminal.child.wait()?;
    until("! cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q 'sleep 471[1]'")?;
    host.stop()
}
