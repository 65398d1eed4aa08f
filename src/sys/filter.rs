//! A seccomp filter of this process's own, made of a list of system calls.

use std::io;

use rustix::thread::set_no_new_privs;

/// Most instructions of a filter (BPF_MAXINSNS).
const MOST: usize = 4096;
/// Where `struct seccomp_data` has the number, the architecture, and the lower
/// half of the first argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "big") { 20 } else { 16 };

/// `AUDIT_ARCH_*` of the architecture that this is built for.
#[cfg(target_arch = "x86_64")]
const OWN_ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const OWN_ARCHITECTURE: u32 = 0xC000_00B7;
#[cfg(target_arch = "riscv64")]
const OWN_ARCHITECTURE: u32 = 0xC000_00F3;
#[cfg(target_arch = "s390x")]
const OWN_ARCHITECTURE: u32 = 0x8000_0016;
#[cfg(target_arch = "powerpc64")]
const OWN_ARCHITECTURE: u32 = if cfg!(target_endian = "big") { 0x8000_0015 } else { 0xC000_0015 };

/// A call that is let through.
#[derive(Clone, Copy, Debug)]
pub enum Allowed {
    /// Whatever its arguments are.
    Always(libc::c_long),
    /// When the first argument, as 32 bits, has `set` of the bits of `mask`.
    First {
        /// The call.
        call: libc::c_long,
        /// The bits that are looked at.
        mask: u32,
        /// Those of them that are to be set.
        set: u32,
    },
}

/// Holds this process, all of its threads and all that it becomes to these
/// calls: any other fails as one that the kernel does not know (ENOSYS). It
/// gives up the right to new privileges for it.
pub fn hold_to(allowed: &[Allowed]) -> io::Result<()> {
    set_no_new_privs(true)?;
    install(&mut program(allowed), libc::SECCOMP_FILTER_FLAG_TSYNC)
}

/// Holds this process, which has one thread, to a program of the kernel's classic BPF, given as
/// bytes. Without `no_new_privs` it takes `CAP_SYS_ADMIN` over its user namespace.
pub fn load(program: &[u8]) -> io::Result<()> {
    const SIZE: usize = size_of::<libc::sock_filter>();
    let mut instructions: Vec<_> = program
        .chunks_exact(SIZE)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    if !program.len().is_multiple_of(SIZE) || instructions.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    install(&mut instructions, 0)
}

fn install(program: &mut [libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions of `program`, which live through the call.
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn program(allowed: &[Allowed]) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    const GIVE: u32 = libc::BPF_RET | libc::BPF_K;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    // Codes are 16 bits wide, and all of these below.
    let jump = |code: u32, k, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
    let step = |code, k| jump(code, k, 0, 0);
    let mut program = vec![
        step(LOAD, ARCHITECTURE),
        jump(EQUAL, OWN_ARCHITECTURE, 1, 0),
        // Numbers mean other calls there.
        step(GIVE, libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD, NUMBER),
    ];
    for allowed in allowed {
        match *allowed {
            Allowed::Always(call) => {
                program.push(jump(EQUAL, call as u32, 0, 1));
                program.push(step(GIVE, libc::SECCOMP_RET_ALLOW));
            }
            Allowed::First { call, mask, set } => program.extend([
                jump(EQUAL, call as u32, 0, 5),
                step(LOAD, FIRST_ARGUMENT),
                step(AND, mask),
                jump(EQUAL, set, 0, 1),
                step(GIVE, libc::SECCOMP_RET_ALLOW),
                step(GIVE, refuse),
            ]),
        }
    }
    program.push(step(GIVE, refuse));
    debug_assert!(program.len() <= MOST);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers to a call, by a machine as simple as it needs.
    fn answer(program: &[libc::sock_filter], architecture: u32, call: u32, first: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let now = program[at];
            at += 1;
            match u32::from(now.code) & 0x07 {
                libc::BPF_LD => {
                    value = match now.k {
                        NUMBER => call,
                        ARCHITECTURE => architecture,
                        _ => first,
                    }
                }
                libc::BPF_ALU => value &= now.k,
                libc::BPF_JMP => at += usize::from(if value == now.k { now.jt } else { now.jf }),
                _ => return now.k,
            }
        }
    }

    #[test]
    fn a_list_lets_through_what_it_names_and_no_more() {
        let clone = Allowed::First { call: libc::SYS_clone, mask: 0xF0, set: 0x10 };
        let program = program(&[Allowed::Always(libc::SYS_read), clone, Allowed::Always(1000)]);
        let ask = |call, first| answer(&program, OWN_ARCHITECTURE, call, first);
        let refused = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        assert_eq!(ask(libc::SYS_read as u32, 7), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask(1000, 7), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask(1001, 7), refused);
        assert_eq!(ask(libc::SYS_read as u32 | 0x4000_0000, 7), refused, "x32");
        assert_eq!(ask(libc::SYS_clone as u32, 0x1F), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask(libc::SYS_clone as u32, 0x30), refused);
        assert_eq!(ask(libc::SYS_clone as u32, 0), refused);
        let foreign = answer(&program, OWN_ARCHITECTURE ^ 1, libc::SYS_read as u32, 0);
        assert_eq!(foreign, libc::SECCOMP_RET_KILL_PROCESS);
    }
}
