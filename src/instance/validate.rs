//! Checks of a create request that need nothing of the host: each fault names
//! its field and the remedy.

use crate::fault::{Fault, Result};
use crate::types::{Flavor, InstanceCreate, Rescue, Resize, SetPassword};

/// Largest size of a disk in GiB: a file system's own limit is far above, an
/// operator's typing error is not.
const MAX_DISK_GB: u64 = 65_536;
/// Largest memory and swap in MiB (16 TiB).
const MAX_MEMORY_MB: u64 = 16_777_216;
/// Longest that an init may be waited for, in seconds.
const MAX_TIMEOUT: u32 = 3600;

/// Checks everything but interfaces (`network::validate`) and limits (`cgroup::CgroupLimits`).
pub fn create(request: &InstanceCreate) -> Result<()> {
    text("name", &request.name, 255)?;
    if let Some(hostname) = &request.hostname {
        self::hostname(hostname)?;
    }
    flavor("flavor", &request.flavor)?;
    request.environment.iter().try_for_each(environment)?;
    if let Some(command) = &request.command {
        if command.is_empty() {
            return Err(Fault::invalid(
                "command",
                "must have at least one word; leave it out for the image's",
            ));
        }
        if let Some(i) = command.iter().position(|word| word.contains('\0')) {
            return Err(Fault::invalid(
                format!("command[{i}]"),
                "must not contain a NUL character",
            ));
        }
    }
    Ok(())
}

/// Checks what a rescue image is to be given.
pub fn rescue(wanted: &Rescue) -> Result<()> {
    wanted.environment.iter().flatten().try_for_each(environment)
}

/// Checks a user's new password: both are written to a line that the programs
/// inside take apart at `:`.
pub fn password(wanted: &SetPassword) -> Result<()> {
    let user = wanted.user.as_bytes();
    let is_first = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let is_good = |byte: &u8| is_first(byte) || b".-$".contains(byte);
    if user.len() > 32 || !user.first().is_some_and(is_first) || !user.iter().all(is_good) {
        return Err(Fault::invalid(
            "user",
            "must be a user name: 1 to 32 letters, digits, '_', '-' and '.'",
        ));
    }
    let bytes = wanted.password.as_bytes();
    // Linux-PAM takes 511.
    if bytes.is_empty() || bytes.len() > 511 || bytes.iter().any(u8::is_ascii_control) {
        return Err(Fault::invalid(
            "password",
            "must have 1 to 511 bytes and no control characters",
        ));
    }
    Ok(())
}

/// Checks a flavor's sizes; `field` is its path in the request.
pub fn flavor(field: &str, flavor: &Flavor) -> Result<()> {
    let range = |name: &str, value: u64, least: u64, most: u64| {
        if (least..=most).contains(&value) {
            Ok(())
        } else {
            Err(Fault::invalid(
                format!("{field}.{name}"),
                format!("{value} is out of range: {least} to {most}"),
            ))
        }
    };
    range("vcpus", flavor.vcpus.into(), 1, 1024)?;
    range("memory_mb", flavor.memory_mb, 16, MAX_MEMORY_MB)?;
    range("swap_mb", flavor.swap_mb, 0, MAX_MEMORY_MB)?;
    range("root_gb", flavor.root_gb, 0, MAX_DISK_GB)?;
    range("ephemeral_gb", flavor.ephemeral_gb, 0, MAX_DISK_GB)
}

/// Checks what a resize asks for.
pub fn resize(wanted: &Resize) -> Result<()> {
    flavor("flavor", &wanted.flavor)?;
    if wanted.timeout.is_some() && !wanted.keep {
        return Err(Fault::invalid(
            "timeout",
            "is for a resize with keep: any other stops nothing",
        ));
    }
    timeout(wanted.timeout)
}

/// Checks how long an init may take, in seconds.
pub fn timeout(seconds: Option<u32>) -> Result<()> {
    match seconds {
        Some(seconds) if seconds > MAX_TIMEOUT => Err(Fault::invalid(
            "timeout",
            format!("{seconds} is out of range: 0 to {MAX_TIMEOUT} seconds"),
        )),
        _ => Ok(()),
    }
}

fn text(field: &str, value: &str, most: usize) -> Result<()> {
    if value.is_empty() || value.len() > most {
        return Err(Fault::invalid(field, format!("must have 1 to {most} bytes")));
    }
    if value.chars().any(char::is_control) {
        return Err(Fault::invalid(field, "must not contain control characters"));
    }
    Ok(())
}

fn environment((name, value): (&String, &String)) -> Result<()> {
    let field = || format!("environment.{}", name.escape_debug());
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(Fault::invalid(field(), "a name must not be empty and not contain '=' or NUL"));
    }
    if value.contains('\0') {
        return Err(Fault::invalid(field(), "a value must not contain NUL"));
    }
    Ok(())
}

/// RFC 1123 labels with dots between them; 64 characters is the kernel's limit.
fn hostname(value: &str) -> Result<()> {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if value.len() <= 64 && value.split('.').all(label) {
        Ok(())
    } else {
        Err(Fault::invalid(
            "hostname",
            "must be at most 64 characters: labels of letters, digits and '-', with dots between them",
        ))
    }
}

/// A host name made of an instance's name, for requests that give none.
pub fn hostname_from(name: &str) -> String {
    let mapped: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(63)
        .collect();
    let trimmed = mapped.trim_matches('-');
    if trimmed.is_empty() { "instance".into() } else { trimmed.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::record::tests::request;

    #[test]
    fn each_bad_field_is_named() {
        type Change = fn(&mut InstanceCreate);
        let cases: &[(&str, Change)] = &[
            ("name", |r| r.name = String::new()),
            ("name", |r| r.name = "a\nb".into()),
            ("hostname", |r| r.hostname = Some("-x".into())),
            ("hostname", |r| r.hostname = Some("a..b".into())),
            ("hostname", |r| r.hostname = Some("x".repeat(65))),
            ("flavor.vcpus", |r| r.flavor.vcpus = 0),
            ("flavor.memory_mb", |r| r.flavor.memory_mb = 1),
            ("flavor.root_gb", |r| r.flavor.root_gb = u64::MAX),
            ("flavor.ephemeral_gb", |r| r.flavor.ephemeral_gb = 65_537),
            ("flavor.swap_mb", |r| r.flavor.swap_mb = u64::MAX),
            ("command", |r| r.command = Some(vec![])),
            ("command[1]", |r| r.command = Some(vec!["a".into(), "b\0".into()])),
            ("environment.A=B", |r| drop(r.environment.insert("A=B".into(), String::new()))),
            ("environment.A", |r| drop(r.environment.insert("A".into(), "\0".into()))),
        ];
        create(&request()).unwrap();
        for (field, change) in cases {
            let mut bad = request();
            change(&mut bad);
            let fault = create(&bad).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some(*field), "{fault}");
        }
    }

    #[test]
    fn a_timeout_is_for_what_stops() {
        let resize = |keep, timeout| Resize { flavor: request().flavor, keep, timeout };
        super::resize(&resize(false, None)).unwrap();
        super::resize(&resize(true, Some(0))).unwrap();
        for bad in [resize(false, Some(0)), resize(true, Some(3601))] {
            assert_eq!(super::resize(&bad).unwrap_err().field.as_deref(), Some("timeout"));
        }
    }

    #[test]
    fn a_rescue_images_environment_is_checked_and_what_it_is_given_is_not_shown() {
        let mut wanted: Rescue = serde_json::from_value(serde_json::json!({
            "image_id": uuid::Uuid::nil(), "environment": {"A": "b"},
            "files": [{"path": "/secret", "content": "c2VjcmV0"}],
        }))
        .unwrap();
        rescue(&wanted).unwrap();
        assert!(!format!("{wanted:?}").contains("c2VjcmV0"));
        wanted.environment = Some([("A=B".to_owned(), String::new())].into());
        assert_eq!(rescue(&wanted).unwrap_err().field.as_deref(), Some("environment.A=B"));
    }

    #[test]
    fn host_names_are_made_of_any_name() {
        for (name, expected) in [
            ("instance-00000001", "instance-00000001"),
            ("My Server!", "my-server"),
            ("***", "instance"),
        ] {
            assert_eq!(hostname_from(name), expected);
            hostname(&hostname_from(name)).unwrap();
        }
    }
}
