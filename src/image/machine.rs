//! Whether the programs of an image run on this host.

use std::env::consts::ARCH;
use std::path::PathBuf;

use super::init::{CANDIDATES, PATH};
use super::refusal::unacceptable;
use super::stacked::StackedLayers;
use crate::fault::Result;
use crate::types::ImageConfig;

/// Programs of which a root file system has one, besides its init and the one that the image starts.
const USUAL: [&str; 4] = ["/bin/sh", "/bin/busybox", "/usr/bin/env", "/bin/bash"];
/// Bytes of a program up to the number of its machine.
const HEAD: u64 = 20;

/// The first program of layers (lowest first): its path, and what it is for. Where none is found,
/// that says nothing: what starts may be a script.
pub(super) fn first(config: &ImageConfig, layers: &[PathBuf]) -> Result<Option<FirstProgram>> {
    let layers = StackedLayers::new(layers)?;
    let command = config.entrypoint.iter().chain(&config.cmd).next().map(String::as_str);
    let own: Vec<String> = match command {
        None | Some("") => Vec::new(),
        Some(path) if path.contains('/') => vec![path.to_owned()],
        Some(name) => PATH.iter().map(|directory| format!("{directory}/{name}")).collect(),
    };
    let usual = CANDIDATES.iter().chain(&USUAL).copied();
    for path in own.iter().map(String::as_str).chain(usual) {
        // What cannot be looked up is no reason to refuse the image.
        let Ok(Some(head)) = layers.read(path, HEAD) else { continue };
        if let Some(machine) = Machine::of(&head) {
            return Ok(Some(FirstProgram { path: path.to_owned(), machine }));
        }
    }
    Ok(None)
}

/// A program and what it is for.
pub(super) struct FirstProgram {
    path: String,
    machine: Machine,
}

impl FirstProgram {
    /// The machine, in the words of `uname -m`.
    pub(super) fn architecture(&self) -> String {
        self.machine.name()
    }

    /// Refuses it when it is none for this host.
    pub(super) fn check(&self) -> Result<()> {
        let FirstProgram { path, machine } = self;
        if machine.runs_here() {
            return Ok(());
        }
        Err(unacceptable(format!(
            "its {path} is a program for {}, this host is {ARCH}; take the image for this host's \
             architecture",
            machine.name()
        )))
    }
}

/// What an ELF program runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Machine {
    number: u16,
    little: bool,
    /// Bits of an address: 32 or 64.
    bits: u8,
}

impl Machine {
    /// Reads the head of a program; `None` when it is no ELF program.
    fn of(head: &[u8]) -> Option<Machine> {
        let head: &[u8; HEAD as usize] = head.get(..HEAD as usize)?.try_into().ok()?;
        if !head.starts_with(b"\x7fELF") {
            return None;
        }
        let bits = [32, 64][usize::from(head[4].checked_sub(1).filter(|class| *class < 2)?)];
        let little = head[5] == 1;
        let number = [head[18], head[19]];
        let number = if little { u16::from_le_bytes(number) } else { u16::from_be_bytes(number) };
        Some(Machine { number, little, bits })
    }

    /// What `elf.h` calls it, in the words of `uname -m`.
    fn name(self) -> String {
        let name = match (self.number, self.bits) {
            (3, _) => "i686",
            (8, _) => "mips",
            (21, _) if self.little => "powerpc64le",
            (21, _) => "powerpc64",
            (22, 64) => "s390x",
            (40, _) => "arm",
            (62, _) => "x86_64",
            (183, _) => "aarch64",
            (243, 32) => "riscv32",
            (243, _) => "riscv64",
            (258, _) => "loongarch64",
            (number, bits) => return format!("the machine {number} of {bits} bits"),
        };
        name.to_owned()
    }

    fn runs_here(self) -> bool {
        let name = self.name();
        match ARCH {
            "powerpc64" => {
                name == if cfg!(target_endian = "little") { "powerpc64le" } else { ARCH }
            }
            "x86" => name == "i686",
            // Kernels of these run the programs of 32 bits, too.
            "x86_64" => name == ARCH || name == "i686",
            "aarch64" => name == ARCH || name == "arm",
            _ => name == ARCH,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn program(class: u8, data: u8, machine: u16) -> Vec<u8> {
        let mut head = b"\x7fELF".to_vec();
        head.extend([class, data, 1]);
        head.resize(18, 0);
        let number = if data == 1 { machine.to_le_bytes() } else { machine.to_be_bytes() };
        head.extend(number);
        head
    }

    #[test]
    fn machines_by_their_numbers() {
        for (head, name) in [
            (program(2, 1, 62), "x86_64"),
            (program(2, 1, 183), "aarch64"),
            (program(2, 2, 22), "s390x"),
            (program(2, 1, 21), "powerpc64le"),
            (program(2, 2, 21), "powerpc64"),
            (program(1, 1, 243), "riscv32"),
            (program(2, 1, 999), "the machine 999 of 64 bits"),
        ] {
            assert_eq!(Machine::of(&head).unwrap().name(), name);
        }
        for other in [&b"#!/bin/sh\n0123456789abc"[..], b"\x7fELF", &program(3, 1, 62)] {
            assert_eq!(Machine::of(other), None);
        }
        let own = fs::read("/proc/self/exe").unwrap();
        assert!(Machine::of(&own).unwrap().runs_here());
    }

    #[test]
    fn the_first_program_decides() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| {
            fs::create_dir_all(root.path().join(name).parent().unwrap()).unwrap();
            fs::write(root.path().join(name), content).unwrap();
        };
        let layers = [root.path().to_owned()];
        let own = fs::read("/proc/self/exe").unwrap();
        let check = |command: &[&str]| {
            let cmd = command.iter().map(|&word| word.to_owned()).collect();
            let found = first(&ImageConfig { cmd, ..ImageConfig::default() }, &layers)?;
            found.map_or(Ok(()), |program| program.check())
        };
        check(&[]).unwrap();
        put("bin/sh", &program(2, 2, 22));
        let fault = check(&["/absent"]).unwrap_err();
        assert!(fault.detail.contains("/bin/sh") && fault.detail.contains("s390x"), "{fault}");
        put("usr/bin/tool", &own[..64]);
        check(&["tool", "x"]).unwrap();
        put("sbin/init", b"#!/bin/sh\n");
        assert!(check(&[]).is_err());
        put("sbin/init", &own[..64]);
        check(&[]).unwrap();
    }
}
