//! Setting a user's password by the instance's own programs, which know where
//! and how it keeps them. The password goes through their standard input only.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, fstat};

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::instance::action::ExecRequest;
use crate::instance::exec;
use crate::instance::host_parts::HostParts;
use crate::instance::record::Record;
use crate::sys::fs::open_in_root;
use crate::types::SetPassword;

/// Time for the program; hashing takes parts of a second.
const LIMIT: Duration = Duration::from_secs(30);

/// Where programs are.
const PATH: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Most characters of a program's complaint that are passed on.
const COMPLAINT: usize = 200;

/// Sets the password of a user of a running instance.
pub fn set(parts: &HostParts, record: &Record, wanted: &SetPassword) -> Result<()> {
    let root_path = parts.paths(record).rootfs();
    let root = File::open(&root_path).or_fault(format_args!("opening {}", root_path.display()))?;
    crate::image::resolve_user(&[root_path], &wanted.user, record.id_block.size)
        .map_err(|_| Fault::invalid("user", format!("the instance has no user {}", wanted.user)))?;
    let (command, input) = call(&root, wanted)?;
    let request = ExecRequest {
        env: BTreeMap::from([("PATH".to_owned(), PATH.join(":")), ("LC_ALL".into(), "C".into())]),
        command,
        ..Default::default()
    };
    let resolved = exec::resolve(parts, record, &request)?;
    let runtime = parts.runtime_of(&parts.paths(record));
    let said = runtime.exec(&record.id.to_string(), &resolved, input.as_bytes(), LIMIT)?;
    if said.status.success() {
        return Ok(());
    }
    Err(Fault::new(
        FaultKind::InstanceUnsupported,
        format!(
            "{} inside the instance failed ({}){}",
            request.command[0],
            said.status,
            complaint(&said.words, &wanted.password)
        ),
    ))
}

/// The program to run, and what it reads.
fn call(root: &File, wanted: &SetPassword) -> Result<(Vec<String>, String)> {
    let SetPassword { user, password } = wanted;
    if let Some(program) = find(root, "chpasswd") {
        // Without a method, BusyBox makes hashes of the first eight characters;
        // with shadow's name for it, it takes SHA-256.
        let command = vec![program, "-c".to_owned(), "SHA512".to_owned()];
        Ok((command, format!("{user}:{password}\n")))
    } else if let Some(program) = find(root, "passwd") {
        Ok((vec![program, user.clone()], format!("{password}\n{password}\n")))
    } else {
        Err(Fault::new(
            FaultKind::InstanceUnsupported,
            "the instance has neither chpasswd nor passwd to set a password with",
        ))
    }
}

fn find(root: &File, name: &str) -> Option<String> {
    PATH.iter().map(|directory| format!("{directory}/{name}")).find(|path| {
        let file = open_in_root(root.as_fd(), Path::new(path), OFlags::PATH, Mode::empty());
        file.and_then(fstat).is_ok_and(|found| {
            FileType::from_raw_mode(found.st_mode).is_file() && found.st_mode & 0o111 != 0
        })
    })
}

/// What the program said, unless it repeats the password.
fn complaint(words: &str, password: &str) -> String {
    if words.is_empty() || words.contains(password) {
        return String::new();
    }
    let line: String =
        words.chars().take(COMPLAINT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!(": {}", line.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn wanted() -> SetPassword {
        SetPassword { user: "root".into(), password: "a secret".into() }
    }

    #[test]
    fn the_program_that_is_there_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        assert_eq!(call(&root, &wanted()).unwrap_err().kind, FaultKind::InstanceUnsupported);
        for directory in ["bin", "usr/bin", "usr/sbin"] {
            fs::create_dir_all(dir.path().join(directory)).unwrap();
        }
        let busybox = dir.path().join("bin/busybox");
        fs::write(&busybox, "").unwrap();
        symlink("/bin/busybox", dir.path().join("usr/bin/passwd")).unwrap();
        assert!(call(&root, &wanted()).is_err(), "not executable");
        fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).unwrap();
        let (command, input) = call(&root, &wanted()).unwrap();
        assert_eq!(command, ["/usr/bin/passwd", "root"]);
        assert_eq!(input, "a secret\na secret\n");
        symlink("../../bin/busybox", dir.path().join("usr/sbin/chpasswd")).unwrap();
        let (command, input) = call(&root, &wanted()).unwrap();
        assert_eq!(command, ["/usr/sbin/chpasswd", "-c", "SHA512"]);
        assert_eq!(input, "root:a secret\n");
    }

    #[test]
    fn a_complaint_never_has_the_password() {
        assert_eq!(complaint("line 1: a secret is bad", "a secret"), "");
        assert_eq!(complaint("no\nspace", "a secret"), ": no space");
        assert!(!format!("{:?}", wanted()).contains("secret"));
    }
}
