//! `etc/berth.toml` says what is true.

use berth::config::{Config, Keystone, Tls};

const SAMPLE: &str = include_str!("../etc/berth.toml");

/// The sample with its commented-out keys in force. Commentary has a space
/// after the `#`, keys have none.
fn in_force() -> String {
    let keys = SAMPLE.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key,
        _ => line,
    });
    keys.collect::<Vec<_>>().join("\n")
}

#[test]
fn as_it_is_it_changes_nothing() {
    assert_eq!(Config::parse(SAMPLE).unwrap(), Config::default());
}

#[test]
fn its_commented_out_values_are_the_defaults() {
    let mut config = Config::parse(&in_force()).unwrap();
    // Four keys have no default but an example.
    let tls = config.service.tls.take();
    assert!(matches!(tls, Some(Tls { client_names, .. }) if client_names.is_empty()));
    assert!(config.vnc.vencrypt.take().is_some());
    assert!(config.images.glance_ca.take().is_some());
    assert!(config.images.keystone.take().is_some_and(|k| k.interface == "internal"));
    assert_eq!(config, Config::default());
}

#[test]
fn it_names_every_key() {
    let written: toml::Table = in_force().parse().unwrap();
    let mut complete = Config::default();
    complete.service.tls = Config::parse(&in_force()).unwrap().service.tls;
    complete.vnc.vencrypt = Config::parse(&in_force()).unwrap().vnc.vencrypt;
    complete.images.glance_ca = Some("/x".into());
    complete.images.keystone = Some(Keystone::default());
    let known = toml::Table::try_from(&complete).unwrap();
    for (section, keys) in &known {
        for key in keys.as_table().unwrap().keys() {
            assert!(written[section].get(key).is_some(), "[{section}] {key} is not in the sample");
        }
    }
}

#[test]
fn every_key_is_explained() {
    let lines: Vec<&str> = SAMPLE.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let is_key =
            line.strip_prefix('#').is_some_and(|key| !key.starts_with(' ') && key.contains(" = "));
        if is_key {
            assert!(lines[index - 1].starts_with("# "), "nothing explains {line}");
        }
    }
}
