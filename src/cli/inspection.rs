//! What an image would become, for people.

use super::output::{self, Table};
use crate::types::{
    DiskInspection, DiskMount, DiskPartition, ImageConfig, ImageInspection, ImageRole,
    LayerInspection,
};

/// Everything that was found, as one text. Why it is refused is not in it: the command's fault
/// says that.
pub(super) fn render(found: &ImageInspection) -> String {
    let mut texts = vec![summary(found)];
    if !found.layers.is_empty() {
        texts.push(layers(&found.layers));
    }
    if let Some(disk) = &found.disk {
        texts.push(partitions(disk));
        if !disk.mounts.is_empty() {
            texts.push(mounts(&disk.mounts));
        }
    }
    let texts: Vec<String> = texts.into_iter().map(|table| table.render()).collect();
    texts.join("\n")
}

fn summary(found: &ImageInspection) -> Table {
    let mut table = Table::new(&[]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    let format = word(&found.format).unwrap_or_else(|| "not known".to_owned());
    let compression = word(&found.compression).map(|name| format!(", {name}")).unwrap_or_default();
    let member = found.member.as_ref().map(|m| format!(", {m} in an archive")).unwrap_or_default();
    row("format", format!("{format}{compression}{member}"));
    row("accepted", if found.refusal.is_none() { "yes" } else { "no" }.to_owned());
    if let Some(size) = found.size {
        row("size", output::bytes(size));
    }
    if let Some(hash) = &found.hash {
        row(&hash.algorithm, hash.value.clone());
    }
    if let Some(disk) = &found.disk {
        row("disk", output::bytes(disk.size));
    }
    row("architecture", found.architecture.clone().unwrap_or_default());
    if let Some(role) = found.role {
        let name = match role {
            ImageRole::System => "system, boots an init",
            ImageRole::Application => "application, runs one program",
        };
        row("role", name.to_owned());
    }
    if let Some(config) = &found.config {
        for init in &config.inits {
            row("init", format!("{}, {}", init.command.join(" "), told(&init.kind)));
        }
        for program in &found.supervisors {
            let kind = told(&program.kind);
            row("supervisor", format!("{}, {kind}", program.command.join(" ")));
        }
        describe(config, &mut row);
    }
    if !found.layers.is_empty() {
        let unpacked = output::bytes(found.unpacked_size);
        row("unpacked", format!("{unpacked} in {} entries", found.entries));
    }
    if let Some(kept) = found.disk.as_ref().and_then(|disk| disk.kept.as_ref()) {
        let snapshots = match &kept.refusal {
            Some(why) => format!("archives only: {why}"),
            None => format!("also disks, for which {} are kept", output::bytes(kept.stored)),
        };
        row("snapshots", snapshots);
    }
    table
}

/// What an image says of its own start.
fn describe(config: &ImageConfig, row: &mut impl FnMut(&str, String)) {
    // As a list: an argument may have spaces.
    let words = |words: &[String]| serde_json::to_string(words).unwrap_or_default();
    for (name, value) in [("entry point", &config.entrypoint), ("command", &config.cmd)] {
        if !value.is_empty() {
            row(name, words(value));
        }
    }
    for (name, value) in [
        ("user", &config.user),
        ("directory", &config.working_dir),
        ("stop signal", &config.stop_signal),
    ] {
        if !value.is_empty() {
            row(name, value.clone());
        }
    }
    for entry in &config.env {
        row("environment", entry.clone());
    }
    if !config.exposed_ports.is_empty() {
        row("ports", config.exposed_ports.join(" "));
    }
}

fn layers(layers: &[LayerInspection]) -> Table {
    let mut table = Table::new(&["LAYER", "DIGEST", "PACKED", "UNPACKED", "ENTRIES"]);
    for (layer, number) in layers.iter().zip(1..) {
        table.row([
            number.to_string(),
            layer.digest.clone().unwrap_or_default(),
            layer.packed_size.map(output::bytes).unwrap_or_default(),
            output::bytes(layer.unpacked_size),
            layer.entries.to_string(),
        ]);
    }
    table
}

fn partitions(disk: &DiskInspection) -> Table {
    let head = ["PARTITION", "START", "SIZE", "TYPE", "NAME", "LABEL", "CONTENT", "TAKEN FOR"];
    let mut table = Table::new(&head);
    for partition in &disk.partitions {
        let DiskPartition { number, start, size, name, label, content, .. } = partition;
        let kind = partition.purpose.as_ref().or(partition.kind.as_ref());
        let reason = word(&partition.reason).map(|r| format!(", by {r}")).unwrap_or_default();
        table.row([
            number.map_or("none".to_owned(), |number| number.to_string()),
            output::bytes(*start),
            output::bytes(*size),
            kind.cloned().unwrap_or_default(),
            name.clone(),
            label.clone(),
            content.clone(),
            partition.place.as_ref().map(|place| format!("{place}{reason}")).unwrap_or_default(),
        ]);
    }
    table
}

fn mounts(mounts: &[DiskMount]) -> Table {
    let mut table = Table::new(&["FSTAB", "PLACE", "FROM"]);
    for DiskMount { source, place, partition, subvolume } in mounts {
        let from = match (partition, subvolume) {
            (Some(number), _) => format!("partition {number}"),
            (None, Some(path)) => format!("subvolume {path}"),
            (None, None) => "not there".to_owned(),
        };
        table.row([source.clone(), place.clone(), from]);
    }
    table
}

/// A value's own word in JSON; `None` of one that is absent.
fn word(value: &impl serde::Serialize) -> Option<String> {
    serde_json::to_value(value).ok()?.as_str().map(str::to_owned)
}

fn told(value: &impl serde::Serialize) -> String {
    word(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ImageCompression, ImageFormat, InitKind, InitProgram, PlaceReason};

    #[test]
    fn a_disk_and_an_application() {
        let partition = DiskPartition {
            number: Some(2),
            start: 1 << 20,
            size: 1 << 30,
            kind: Some("83".into()),
            purpose: Some("Linux".into()),
            name: String::new(),
            label: "root\x1b[2J".into(),
            content: "an ext2/3/4 file system".into(),
            place: Some("/".into()),
            reason: Some(PlaceReason::Label),
        };
        let mount = |source: &str, partition| DiskMount {
            source: source.into(),
            place: "/var".into(),
            partition,
            subvolume: None,
        };
        let mounts = vec![mount("LABEL=v", Some(3)), mount("LABEL=gone", None)];
        let init = InitProgram { command: vec!["/sbin/init".into()], kind: InitKind::Systemd };
        let found = ImageInspection {
            format: Some(ImageFormat::Qcow2),
            compression: Some(ImageCompression::Xz),
            role: Some(ImageRole::System),
            config: Some(ImageConfig { inits: vec![init], ..ImageConfig::default() }),
            disk: Some(DiskInspection {
                size: 2 << 30,
                partitions: vec![partition],
                mounts,
                kept: None,
            }),
            ..ImageInspection::default()
        };
        let text = render(&found);
        for line in [
            "format        qcow2, xz",
            "accepted      yes",
            "role          system, boots an init",
            "init          /sbin/init, systemd",
            "disk          2.0 GiB",
            "2          1.0 MiB  1.0 GiB  Linux  -     root\\u{1b}[2J  an ext2/3/4 file system  /, by label",
            "LABEL=v     /var   partition 3",
            "LABEL=gone  /var   not there",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
        }
        let config = ImageConfig {
            entrypoint: vec!["/bin/app".into(), "a b".into()],
            env: vec!["A=1".into()],
            exposed_ports: vec!["80/tcp".into()],
            ..ImageConfig::default()
        };
        let text = render(&ImageInspection { config: Some(config), ..found });
        for line in
            ["entry point   [\"/bin/app\",\"a b\"]", "environment   A=1", "ports         80/tcp"]
        {
            assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
        }
    }
}
