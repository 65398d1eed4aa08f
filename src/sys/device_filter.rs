//! Which devices a cgroup of version 2 may use: a program of the kernel's eBPF.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What a rule says of devices. Of several that fit, the last holds; of none, no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether they may be used.
    pub allow: bool,
    /// Whether it is of block devices, or of character devices; none: of both.
    pub block: Option<bool>,
    /// Major number; none: all.
    pub major: Option<u32>,
    /// Minor number; none: all.
    pub minor: Option<u32>,
    /// The uses that it is of.
    pub access: Access,
}

/// Uses of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Making a node of it.
    pub make: bool,
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
}

/// An instruction as the kernel takes it: code, registers (destination in the low half),
/// offset of a jump, number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    number: i32,
}

const LOAD_WORD: u8 = 0x61;
const COPY_32: u8 = 0xbc;
const SET_32: u8 = 0xb4;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const JUMP_UNLESS_NUMBER_32: u8 = 0x56;
const JUMP_UNLESS_REGISTER_32: u8 = 0x5e;
const EXIT: u8 = 0x95;

/// Registers: the answer, the question and then what is taken out of it.
const ANSWER: u8 = 0;
const QUESTION: u8 = 1;
const KIND: u8 = 2;
const USE: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SPARE: u8 = 1;

fn program(rules: &[Rule]) -> Vec<Instruction> {
    let op = |code, to: u8, from: u8, offset, number| Instruction {
        code,
        registers: from << 4 | to,
        offset,
        number,
    };
    // struct bpf_cgroup_dev_ctx: use and kind in one word, major, minor.
    let mut program = vec![
        op(LOAD_WORD, KIND, QUESTION, 0, 0),
        op(COPY_32, USE, KIND, 0, 0),
        op(AND_32, KIND, 0, 0, 0xffff),
        op(SHIFT_RIGHT_32, USE, 0, 0, 16),
        op(LOAD_WORD, MAJOR, QUESTION, 4, 0),
        op(LOAD_WORD, MINOR, QUESTION, 8, 0),
    ];
    let give = |allow: bool| [op(SET_32, ANSWER, 0, 0, allow.into()), op(EXIT, 0, 0, 0, 0)];
    for rule in rules.iter().rev() {
        let mut tests = Vec::new();
        let mut number = |register, wanted: Option<u32>| {
            let wanted = wanted.map(u32::cast_signed);
            tests.extend(wanted.map(|n| vec![op(JUMP_UNLESS_NUMBER_32, register, 0, 0, n)]));
        };
        number(KIND, rule.block.map(|block| if block { 1 } else { 2 }));
        number(MAJOR, rule.major);
        number(MINOR, rule.minor);
        let Access { make, read, write } = rule.access;
        let uses = i32::from(make) | i32::from(read) << 1 | i32::from(write) << 2;
        if uses != 7 {
            tests.push(vec![
                op(COPY_32, SPARE, USE, 0, 0),
                op(AND_32, SPARE, 0, 0, uses),
                op(JUMP_UNLESS_REGISTER_32, SPARE, USE, 0, 0),
            ]);
        }
        let tests: Vec<Instruction> = tests.into_iter().flatten().collect();
        // A test that fails goes on behind the answer, which is two long.
        let length = tests.len();
        program.extend(tests.into_iter().enumerate().map(|(at, test)| match test.code {
            JUMP_UNLESS_NUMBER_32 | JUMP_UNLESS_REGISTER_32 => {
                Instruction { offset: (length - at - 1 + 2) as i16, ..test }
            }
            _ => test,
        }));
        program.extend(give(rule.allow));
        if length == 0 {
            // It fits all. The kernel takes no program with instructions that are never reached.
            return program;
        }
    }
    program.extend(give(false));
    program
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// Holds all in a cgroup of version 2 to these rules instead of those that it is held to, whoever
/// made them. In between both hold, so never is more allowed than by the former or the latter.
pub fn replace(cgroup: BorrowedFd<'_>, rules: &[Rule]) -> io::Result<()> {
    let before = attached(cgroup)?;
    attach(cgroup, rules)?;
    for id in before {
        let former = bpf(BPF_PROG_GET_FD_BY_ID, &ById { id, next: 0, flags: 0 })?;
        // SAFETY: the kernel has just given the descriptor to this call.
        let former = unsafe { OwnedFd::from_raw_fd(former) };
        let detach = Attach {
            target: cgroup.as_raw_fd().cast_unsigned(),
            program: former.as_raw_fd().cast_unsigned(),
            kind: BPF_CGROUP_DEVICE,
            flags: 0,
        };
        bpf(BPF_PROG_DETACH, &detach)?;
    }
    Ok(())
}

/// Ids of the programs that a cgroup itself has.
fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // A runtime attaches one; the kernel takes no more than 64 (BPF_CGROUP_MAX_PROGS).
    let mut ids = [0u32; 64];
    let mut query = Query {
        target: cgroup.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        programs: ids.as_mut_ptr() as u64,
        count: 64,
        padding: 0,
    };
    bpf_mut(BPF_PROG_QUERY, &mut query)?;
    Ok(ids.into_iter().take(query.count as usize).collect())
}

/// Holds all in a cgroup of version 2, an open directory, and below it to these rules, for as
/// long as it is there.
pub fn attach(cgroup: BorrowedFd<'_>, rules: &[Rule]) -> io::Result<()> {
    let program = program(rules);
    // SAFETY: all-zero is valid: numbers and bytes alone.
    let mut load: Load = unsafe { zeroed() };
    load.kind = BPF_PROG_TYPE_CGROUP_DEVICE;
    load.count = u32::try_from(program.len()).map_err(io::Error::other)?;
    load.instructions = program.as_ptr() as u64;
    load.license = c"Apache-2.0".as_ptr() as u64;
    let loaded = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: the kernel has just given the descriptor to this call.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded) };
    let attach = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: loaded.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attach).map(drop)
}

/// [`bpf`] of a command that answers in its structure.
fn bpf_mut<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: as in `bpf`; nothing else refers to the structure that the kernel writes.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as libc::c_int) }
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads the structure, whose size stands beside it, and what it points
    // to; all of that lives through the call.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as libc::c_int) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Access = Access { make: true, read: true, write: true };

    /// What the program answers, by a machine as simple as it needs.
    fn allows(rules: &[Rule], block: bool, uses: u32, major: u32, minor: u32) -> bool {
        let program = program(rules);
        let question = [uses << 16 | if block { 1 } else { 2 }, major, minor];
        let mut registers = [0u32; 16];
        let mut at = 0usize;
        loop {
            let Instruction { code, registers: both, offset, number } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            at += 1;
            let mut jump = |unless: bool| at += if unless { offset as usize } else { 0 };
            match code {
                LOAD_WORD => registers[to] = question[offset as usize / 4],
                COPY_32 => registers[to] = registers[from],
                SET_32 => registers[to] = number as u32,
                AND_32 => registers[to] &= number as u32,
                SHIFT_RIGHT_32 => registers[to] >>= number,
                JUMP_UNLESS_NUMBER_32 => jump(registers[to] != number as u32),
                JUMP_UNLESS_REGISTER_32 => jump(registers[to] != registers[from]),
                EXIT => return registers[0] != 0,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_last_rule_that_fits_holds() {
        let all = Rule { allow: false, block: None, major: None, minor: None, access: ALL };
        let null =
            Rule { allow: true, block: Some(false), major: Some(1), minor: Some(3), access: ALL };
        let make = Access { make: true, read: false, write: false };
        let nodes = Rule { allow: true, access: make, ..all };
        let rules = [all, null, nodes];
        for uses in 1..8 {
            assert!(allows(&rules, false, uses, 1, 3), "{uses}");
            assert_eq!(allows(&rules, true, uses, 1, 3), uses == 1, "{uses}");
            assert_eq!(allows(&rules, false, uses, 1, 5), uses == 1, "{uses}");
            assert!(!allows(&[null, all], false, uses, 1, 3));
        }
        assert!(!allows(&[], false, 2, 1, 3));
    }

    #[test]
    fn root_the_kernel_takes_it_and_the_next() {
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(std::path::Path::new);
        let Some(root) = roots.iter().find(|root| root.join("cgroup.controllers").exists()) else {
            return;
        };
        let all = Rule { allow: false, block: None, major: None, minor: None, access: ALL };
        let null =
            Rule { allow: true, block: Some(false), major: Some(1), minor: Some(3), access: ALL };
        let null_rule = null;
        let read = Rule { access: Access { make: false, read: true, write: false }, ..null };
        let dir = root.join(format!("berth-test-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let cgroup = std::fs::File::open(&dir).unwrap();
        let tried = [&[all, null, read][..], &[null, all], &[], &[read]].map(|rules| {
            attach(std::os::fd::AsFd::as_fd(&cgroup), rules).map_err(|e| e.to_string())
        });
        let cgroup = std::os::fd::AsFd::as_fd(&cgroup);
        let had = attached(cgroup).map(|ids| ids.len());
        let replaced = replace(cgroup, &[all, null]).and_then(|()| attached(cgroup));
        // Whoever is in it is held to the latest alone.
        let tried_inside = |path: &str| {
            let command = format!("echo $$ > {}/cgroup.procs; : < {path}", dir.display());
            std::process::Command::new("sh")
                .args(["-c", &command])
                .stderr(std::process::Stdio::null())
                .status()
        };
        let (null, zero) = (tried_inside("/dev/null"), tried_inside("/dev/zero"));
        let widened = Rule { minor: Some(5), ..null_rule };
        let opened = replace(cgroup, &[all, widened]).and_then(|()| tried_inside("/dev/zero"));
        std::fs::remove_dir(&dir).unwrap();
        assert_eq!(tried, [Ok(()), Ok(()), Ok(()), Ok(())]);
        assert_eq!((had.unwrap(), replaced.unwrap().len()), (4, 1));
        assert!(null.unwrap().success() && !zero.unwrap().success());
        assert!(opened.unwrap().success());
    }
}
