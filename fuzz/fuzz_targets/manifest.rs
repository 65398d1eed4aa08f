//! Reads arbitrary docker-archive and OCI documents: the input, cut at zero
//! bytes, is the members in the order in which they are asked for.
#![no_main]

use std::cell::RefCell;
use std::collections::HashMap;

use berth::fault::{Fault, FaultKind};
use berth::image::manifest::{docker, oci};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for reader in [docker, oci] {
        let members = RefCell::new(bytes.split(|byte| *byte == 0));
        // A name read again is the same member.
        let known = RefCell::new(HashMap::new());
        let read = |name: &str| {
            let next = || members.borrow_mut().next().map(<[u8]>::to_vec);
            let bytes = known.borrow().get(name).cloned().or_else(next);
            let bytes =
                bytes.ok_or_else(|| Fault::new(FaultKind::ImageUnacceptable, "no more members"))?;
            known.borrow_mut().insert(name.to_owned(), bytes.clone());
            Ok(bytes)
        };
        if let Ok(plan) = reader(&read, "amd64") {
            assert!((1..=127).contains(&plan.layers.len()));
            assert!(plan.config.env.iter().all(|entry| entry.contains('=')));
            assert!(matches!(plan.config.architecture.as_str(), "" | "amd64"));
        }
    }
});
