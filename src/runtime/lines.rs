//! The lines of a machine that an init's configuration starts logins on.
//!
//! A machine has virtual consoles and serial lines, and images start a getty on each of them, again
//! and again where it ends because its line is not there. An instance therefore has every line that
//! is configured: one is its console, and the others are terminals that nobody looks at.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags};

use crate::sys::fs::open_in_root;
use crate::types::InitKind;

/// Most bytes of a file that are read.
const MAX_FILE: u64 = 1 << 16;
/// Most names of a directory that are looked at.
const MAX_NAMES: usize = 1024;
/// Most lines among which those are chosen.
const MAX_FOUND: usize = 1024;
/// Most lines that are supplied; each takes one of the host's terminals.
const MAX_LINES: usize = 16;
/// The first serial line, on which images that find out for themselves look for somebody.
const SERIAL: &str = "ttyS0";

/// An instance's lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// The name that the console has besides.
    pub console: Option<String>,
    /// Those that lead nowhere.
    pub idle: Vec<String>,
}

/// The lines for an instance with this init, whose files are below `root`. What cannot be read
/// starts no logins.
pub fn of(init: InitKind, root: BorrowedFd<'_>) -> Lines {
    let tree = Tree(root);
    let mut found = Logins::default();
    match init {
        InitKind::Busybox => match tree.read("etc/inittab") {
            Some(text) => found.inittab(&text, true),
            // What it does without (init.c): one at the console, and these.
            None => {
                found.console = true;
                found.lines.extend(["tty2", "tty3", "tty4"].map(str::to_owned));
            }
        },
        InitKind::Sysvinit => {
            let more = tree.files("etc/inittab.d", ".tab");
            for text in tree.read("etc/inittab").into_iter().chain(more) {
                found.inittab(&text, false);
            }
        }
        InitKind::Finit => {
            let more = ["etc/finit.d", "etc/finit.d/enabled"];
            let more = more.iter().flat_map(|directory| tree.files(directory, ".conf"));
            for text in tree.read("etc/finit.conf").into_iter().chain(more) {
                found.finit(&text);
            }
        }
        InitKind::Runit => {
            // Both names of one directory, here or there.
            for directory in ["etc/service", "var/service", "etc/runit/runsvdir/default"] {
                found.run_by(&tree, directory, "/run");
            }
        }
        InitKind::S6 => {
            for directory in
                ["etc/s6-linux-init/current/run-image/service", "etc/s6-rc/compiled/servicedirs"]
            {
                found.run_by(&tree, directory, "/run");
            }
        }
        InitKind::Dinit => {
            for directory in ["etc/dinit.d/boot.d", "usr/lib/dinit.d/boot.d", "lib/dinit.d/boot.d"]
            {
                found.run_by(&tree, directory, "");
            }
            for file in ["etc/dinit.d/boot", "usr/lib/dinit.d/boot", "lib/dinit.d/boot"] {
                let text = tree.read(file).unwrap_or_default();
                found.services(text.split_whitespace().map(str::to_owned));
            }
        }
        InitKind::Openrc | InitKind::Systemd | InitKind::Other => {}
    }
    // OpenRC's services, by whatever it is started.
    for level in tree.names("etc/runlevels") {
        found.services(tree.names(&format!("etc/runlevels/{level}")));
    }
    found.shared_out()
}

/// Where logins are started.
#[derive(Debug, Default)]
struct Logins {
    lines: BTreeSet<String>,
    /// On the console itself, too.
    console: bool,
}

impl Logins {
    /// Takes the words of a command.
    fn command(&mut self, command: &str) {
        for word in command.split_whitespace() {
            match word.trim_start_matches("/dev/") {
                "console" | "@console" => self.console = true,
                word if is_line(word) && self.lines.len() < MAX_FOUND => {
                    self.lines.insert(word.to_owned());
                }
                _ => {}
            }
        }
    }

    /// Takes what is started again and again. Of BusyBox's lines the first field is a terminal,
    /// and if it is empty the console.
    fn inittab(&mut self, text: &str, busybox: bool) {
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let fields: Vec<_> = line.splitn(4, ':').collect();
            let [first, _, "respawn" | "askfirst" | "ondemand", command] = fields.as_slice() else {
                continue;
            };
            let before = (self.lines.len(), self.console);
            self.command(command);
            if busybox {
                self.command(first);
                // A service, if it is not a shell or names a line itself.
                let shell = command.trim_start_matches('-').split_whitespace().next();
                let shell = shell
                    .is_some_and(|program| program.ends_with("sh") || program.ends_with("login"));
                self.console |=
                    first.is_empty() && shell && before == (self.lines.len(), self.console);
            }
        }
    }

    /// Takes `tty` stanzas: `tty [12345] /dev/tty1 38400 noclear`.
    fn finit(&mut self, text: &str) {
        for line in text.lines().map(str::trim) {
            if let Some(rest) =
                line.strip_prefix("tty").filter(|rest| rest.starts_with([' ', '\t']))
            {
                self.command(rest);
            }
        }
    }

    /// Takes services by their names: `agetty.tty1`, `getty-ttyS0`, `tty1`.
    fn services(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            let line = name.rsplit(['.', '-', '@']).next().unwrap_or_default();
            self.command(line);
        }
    }

    /// Takes the services in a directory: by their names, and what their scripts, which are
    /// called `script` there, start a login at.
    fn run_by(&mut self, tree: &Tree<'_>, directory: &str, script: &str) {
        let names = tree.names(directory);
        for name in &names {
            let text = tree.read(&format!("{directory}/{name}{script}")).unwrap_or_default();
            for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
                if line.split_whitespace().any(|word| word.ends_with("getty")) {
                    self.command(line);
                }
            }
        }
        self.services(names);
    }

    /// Which line the console is: the serial one, as in a cloud, before the first virtual one.
    fn shared_out(self) -> Lines {
        let Logins { lines, console } = self;
        let mut lines: Vec<_> = lines.into_iter().collect();
        lines.sort_by_key(|line| (line != SERIAL, is_virtual(line), line.len()));
        lines.truncate(MAX_LINES);
        if console || lines.is_empty() {
            let console = !lines.iter().any(|line| line == SERIAL);
            return Lines { console: console.then(|| SERIAL.to_owned()), idle: lines };
        }
        Lines { console: Some(lines.remove(0)), idle: lines }
    }
}

/// Whether it is the name of a terminal that a machine may have.
fn is_line(name: &str) -> bool {
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
    // `ttyS`, `ttyAMA` and the like; in small letters are other systems' names.
    let is_serial = kind
        .strip_prefix("tty")
        .is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_uppercase()) || port == "mxc");
    kind.len() < name.len()
        && name.len() <= 12
        && (is_serial || matches!(kind, "hvc" | "hvsi" | "xvc" | "vc"))
}

fn is_virtual(name: &str) -> bool {
    name.strip_prefix("tty").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The instance's files.
struct Tree<'a>(BorrowedFd<'a>);

impl Tree<'_> {
    fn read(&self, path: &str) -> Option<String> {
        // Looked at before it is opened: to open a device is to use it.
        let open = |flags| open_in_root(self.0, Path::new(path), flags, Mode::empty()).ok();
        let is_file = File::from(open(OFlags::PATH)?).metadata().ok()?.is_file();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = is_file.then(|| open(flags)).flatten()?;
        let mut bytes = Vec::new();
        File::from(file).take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn names(&self, path: &str) -> Vec<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Ok(directory) = open_in_root(self.0, Path::new(path), flags, Mode::empty()) else {
            return Vec::new();
        };
        let Ok(entries) = Dir::read_from(&directory) else { return Vec::new() };
        let entries = entries.map_while(Result::ok).take(MAX_NAMES);
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// One after the other: together they are as much as an image likes.
    fn files<'a>(&'a self, directory: &'a str, end: &'a str) -> impl Iterator<Item = String> + 'a {
        let names = self.names(directory).into_iter().filter(move |name| name.ends_with(end));
        names.filter_map(move |name| self.read(&format!("{directory}/{name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn lines(init: InitKind, files: &[(&str, &str)]) -> Lines {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        of(init, File::open(dir.path()).unwrap().as_fd())
    }

    fn expect(console: &str, idle: &[&str]) -> Lines {
        let idle = idle.iter().map(ToString::to_string).collect();
        Lines { console: (!console.is_empty()).then(|| console.to_owned()), idle }
    }

    const ALPINE: &str = "\
::sysinit:/sbin/openrc sysinit
::wait:/sbin/openrc default
# Set up a couple of getty's
tty1::respawn:/sbin/getty 38400 tty1
tty2::respawn:/sbin/getty 38400 tty2
#ttyS0::respawn:/sbin/getty -L 0 ttyS0 vt100
::ctrlaltdel:/sbin/reboot
";

    #[test]
    fn each_line_of_an_inittab_is_there_and_one_is_the_console() {
        let found = |text: &str| lines(InitKind::Busybox, &[("etc/inittab", text)]);
        assert_eq!(found(ALPINE), expect("tty1", &["tty2"]));
        let serial = ALPINE.replace("#ttyS0", "ttyS0");
        assert_eq!(found(&serial), expect("ttyS0", &["tty1", "tty2"]));
        // Somebody logs in at the console already.
        for console in ["::respawn:-/bin/sh\n", "console::respawn:/sbin/getty 0 console\n"] {
            assert_eq!(found(&format!("{ALPINE}{console}")), expect("ttyS0", &["tty1", "tty2"]));
            assert_eq!(
                found(&format!("{serial}{console}")),
                expect("", &["ttyS0", "tty1", "tty2"])
            );
        }
        // A service is no login, and without one scripts look for a line.
        assert_eq!(found("::respawn:/usr/sbin/daemon -f\n"), expect("ttyS0", &[]));
        assert_eq!(found("tty1::sysinit:/bin/true\n"), expect("ttyS0", &[]));
        assert_eq!(lines(InitKind::Busybox, &[]), expect("ttyS0", &["tty2", "tty3", "tty4"]));
    }

    #[test]
    fn every_init_names_its_lines_in_its_own_place() {
        let inittab = "id:2:initdefault:\n1:2345:respawn:/sbin/getty --noclear 38400 tty1\n\
                       2:23:respawn:/sbin/getty 38400 tty2\n#T0:23:respawn:/sbin/getty -L ttyS0 9600\n";
        for (init, files, expected) in [
            (InitKind::Sysvinit, &[("etc/inittab", inittab)][..], expect("tty1", &["tty2"])),
            (
                InitKind::Openrc,
                &[("etc/runlevels/default/agetty.tty1", ""), ("etc/runlevels/default/cron", "")],
                expect("tty1", &[]),
            ),
            (
                InitKind::Runit,
                &[("etc/service/getty-tty1/run", ""), ("etc/service/agetty-hvc0/run", "")],
                expect("hvc0", &["tty1"]),
            ),
            (
                InitKind::Finit,
                &[("etc/finit.d/x.conf", "tty [12] /dev/tty1 38400\ntty [12] @console\n")],
                expect("ttyS0", &["tty1"]),
            ),
            (InitKind::Dinit, &[("etc/dinit.d/boot.d/tty2", "")], expect("tty2", &[])),
            (InitKind::Dinit, &[("etc/dinit.d/boot", "waits-for = tty1\n")], expect("tty1", &[])),
            (
                InitKind::S6,
                &[("etc/s6-linux-init/current/run-image/service/getty-tty1/run", "")],
                expect("tty1", &[]),
            ),
            (
                InitKind::S6,
                &[(
                    "etc/s6-linux-init/current/run-image/service/early-getty/run",
                    "#!/bin/execlineb -P\n# ttyS0\n/sbin/getty 38400 tty3\ndaemon tty9\n",
                )],
                expect("tty3", &[]),
            ),
            (
                InitKind::Dinit,
                &[("etc/dinit.d/boot.d/login", "command = /sbin/agetty 38400 hvc0 linux\n")],
                expect("hvc0", &[]),
            ),
            (InitKind::Sysvinit, &[], expect("ttyS0", &[])),
        ] {
            assert_eq!(lines(init, files), expected, "{init:?}");
        }
    }

    #[test]
    fn what_an_image_says_bounds_nothing_of_the_host() {
        let mut text = String::new();
        for line in 0..100 {
            text +=
                &format!("x::respawn:getty tty{line} ../tty1 tty /dev/../tty9 ttyS ttys/0 ttyv0\n");
        }
        let found = lines(InitKind::Busybox, &[("etc/inittab", &text)]);
        assert_eq!(found.idle.len(), MAX_LINES - 1);
        assert!(found.idle.iter().chain(&found.console).all(|line| is_virtual(line)));
    }
}
