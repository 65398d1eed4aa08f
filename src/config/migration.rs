//! `[migration]`: which other services instances go to and come from.

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Result};

/// Moves of instances between hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Migration {
    /// Common names of the certificates of the other hosts' services; empty: no instance moves.
    pub peers: Vec<String>,
    /// MiB that a move sends in a second at most; 0: no limit.
    pub max_bandwidth_mb: u64,
    /// Seconds after which an instance on its way here is given up if nothing more comes of it;
    /// 10 to 86,400.
    pub idle_timeout: u64,
}

impl Default for Migration {
    fn default() -> Migration {
        Migration { peers: Vec::new(), max_bandwidth_mb: 0, idle_timeout: 300 }
    }
}

impl Migration {
    /// Checks what types alone cannot; `clients` are the names of the service's clients, where
    /// it listens with TLS.
    pub(super) fn validate(&self, clients: Option<&[String]>) -> Result<()> {
        let invalid = |key: &str, why: &str| Err(Fault::invalid(format!("migration.{key}"), why));
        if self.peers.iter().any(String::is_empty) {
            return invalid("peers", "a common name is not empty");
        }
        match clients {
            None if !self.peers.is_empty() => {
                invalid("peers", "takes [service.tls]: instances move over TCP with mutual TLS")
            }
            Some(clients) if self.peers.iter().any(|peer| clients.contains(peer)) => invalid(
                "peers",
                "must have no name that service.tls.client_names has: a peer does moves only",
            ),
            _ if self.max_bandwidth_mb > 1 << 20 => {
                invalid("max_bandwidth_mb", "must be 0 to 1048576")
            }
            _ if !(10..=86_400).contains(&self.idle_timeout) => {
                invalid("idle_timeout", "must be 10 to 86400")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_takes_tls_and_is_no_client() {
        let tls = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let peers = |names: &[&str]| Migration {
            peers: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Migration::default()
        };
        for (migration, tls, good) in [
            (peers(&[]), None, true),
            (peers(&["compute2"]), None, false),
            (peers(&["compute2"]), Some(tls(&[])), true),
            (peers(&["compute2"]), Some(tls(&["nova"])), true),
            (peers(&["compute2"]), Some(tls(&["nova", "compute2"])), false),
            (peers(&[""]), Some(tls(&[])), false),
            (Migration { max_bandwidth_mb: 1 << 21, ..peers(&[]) }, None, false),
            (Migration { idle_timeout: 9, ..peers(&[]) }, None, false),
            (Migration { idle_timeout: 86_401, ..peers(&[]) }, None, false),
        ] {
            let outcome = migration.validate(tls.as_deref());
            assert_eq!(outcome.is_ok(), good, "{migration:?} {outcome:?}");
        }
    }
}
