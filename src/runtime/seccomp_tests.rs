//! What the profile lets through and what it does not.

use super::*;
use crate::types::InitKind;
use std::collections::BTreeMap;

/// Name → actions of its rules.
fn rules(role: Role) -> BTreeMap<String, Vec<(LinuxSeccompAction, bool)>> {
    rules_with(role, Walls::default())
}

fn rules_with(role: Role, walls: Walls) -> BTreeMap<String, Vec<(LinuxSeccompAction, bool)>> {
    let mut rules: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for call in profile(role, walls).unwrap().syscalls().as_ref().unwrap() {
        for name in call.names() {
            rules.entry(name.clone()).or_default().push((call.action(), call.args().is_some()));
        }
    }
    rules
}

const NEVER: &[&str] = &[
    "add_key",
    "keyctl",
    "request_key",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "swapon",
    "swapoff",
    "open_by_handle_at",
    "iopl",
    "ioperm",
    "io_uring_setup",
    "settimeofday",
    "acct",
    "socketcall",
];

#[test]
fn nobody_gets_what_is_not_namespaced() {
    for role in [Role::Application, Role::System(InitKind::Systemd)] {
        let rules = rules(role);
        for name in NEVER {
            let allowed = rules.get(*name).is_some_and(|rules| {
                rules.iter().any(|(action, _)| *action == LinuxSeccompAction::ScmpActAllow)
            });
            assert!(!allowed, "{name} for {role:?}");
        }
    }
}

#[test]
fn what_programs_have_another_way_for_is_absent_and_not_denied() {
    for role in [Role::Application, Role::System(InitKind::Systemd)] {
        let rules = rules(role);
        for name in ["keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd"] {
            assert!(!rules.contains_key(name), "{name} for {role:?}");
        }
    }
}

#[test]
fn applications_make_no_namespaces_and_no_mounts() {
    let application = rules(Role::Application);
    let system = rules(Role::System(InitKind::Other));
    for name in ["mount", "umount2", "unshare", "setns", "pivot_root", "reboot", "fsopen"] {
        assert_eq!(application[name], [(LinuxSeccompAction::ScmpActErrno, false)], "{name}");
        assert_eq!(system[name], [(LinuxSeccompAction::ScmpActAllow, false)], "{name}");
    }
    assert_eq!(application["clone"], [(LinuxSeccompAction::ScmpActAllow, true)]);
    assert!(!application.contains_key("clone3"), "ENOSYS, so that glibc falls back to clone");
}

/// What the rules of a call, which compare bits of its first argument, say of a value.
fn verdict(name: &str, value: u64) -> Vec<(LinuxSeccompAction, Option<u32>)> {
    let profile = profile(Role::Application, Walls::default()).unwrap();
    let rules = profile.syscalls().as_ref().unwrap().iter();
    let named = rules.filter(|rule| rule.names().iter().any(|n| n == name));
    named
        .filter(|rule| {
            let [arg] = rule.args().as_deref().unwrap() else { panic!("{rule:?}") };
            assert_eq!((arg.index(), arg.op()), (0, LinuxSeccompOperator::ScmpCmpMaskedEq));
            value & arg.value() == arg.value_two().unwrap()
        })
        .map(|rule| (rule.action(), rule.errno_ret()))
        .collect()
}

#[test]
fn a_sockets_family_is_looked_at_as_the_kernel_does() {
    let allowed = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET];
    let refused = (LinuxSeccompAction::ScmpActErrno, Some(libc::EAFNOSUPPORT.cast_unsigned()));
    for family in 0..64 {
        let wanted = if allowed.contains(&family) {
            (LinuxSeccompAction::ScmpActAllow, None)
        } else {
            refused
        };
        for above in [0, 1 << 32, 0xffff_ffff << 32] {
            let value = above | u64::from(family.cast_unsigned());
            assert_eq!(verdict("socket", value), [wanted], "{value:#x}");
            assert_eq!(verdict("socketpair", value), [wanted], "{value:#x}");
        }
    }
    assert_eq!(verdict("socket", 1 << 31), []);
}

#[test]
fn rings_of_packets_are_refused_alone() {
    let profile = profile(Role::Application, Walls::default()).unwrap();
    let rules = profile.syscalls().as_ref().unwrap().iter();
    let rules: Vec<_> = rules.filter(|r| r.names().iter().any(|n| n == "setsockopt")).collect();
    let allowed = |level: u64, option: u64| {
        rules.iter().any(|rule| {
            let [arg] = rule.args().as_deref().unwrap() else { panic!("{rule:?}") };
            let value = [0, level, option][arg.index()];
            value & arg.value() == arg.value_two().unwrap()
        })
    };
    for above in [0, 1 << 32, 0xffff_ffff << 32] {
        for level in (0..1024).chain([0x8000_0107]) {
            for option in (0..64).chain([0x8000_0005, 0x105]) {
                let ring = level == 263 && [5, 13].contains(&option);
                assert_eq!(allowed(above | level, above | option), !ring, "{level} {option}");
            }
        }
    }
}

#[test]
fn nothing_is_asked_of_a_loop_device() {
    let profile = profile(Role::Application, Walls::default()).unwrap();
    let rules = profile.syscalls().as_ref().unwrap().iter();
    let rules: Vec<_> = rules.filter(|r| r.names().iter().any(|n| n == "ioctl")).collect();
    let verdicts = |request: u64| -> Vec<_> {
        let fits = rules.iter().filter(|rule| {
            let [arg] = rule.args().as_deref().unwrap() else { panic!("{rule:?}") };
            assert_eq!((arg.index(), arg.op()), (1, LinuxSeccompOperator::ScmpCmpMaskedEq));
            request & arg.value() == arg.value_two().unwrap()
        });
        let mut said: Vec<_> = fits.map(|rule| (rule.action(), rule.errno_ret())).collect();
        said.dedup();
        said
    };
    let refused = [(LinuxSeccompAction::ScmpActErrno, Some(libc::ENOTTY.cast_unsigned()))];
    let allowed = [(LinuxSeccompAction::ScmpActAllow, None)];
    for above in [0, 1 << 32, 0xffff_ffff << 32] {
        for request in 0..0x1_0000 {
            let of_loops = (0x4c00..0x4c20).contains(&request);
            let expected = if of_loops { refused } else { allowed };
            assert_eq!(verdicts(above | request), expected, "{request:#x}");
        }
        // Terminals, block devices, sockets, with and without the direction's bits.
        for request in [0x8000_4c05, 0x4010_4c04, 0x8008_1272, 0xc020_660b] {
            assert_eq!(verdicts(above | request), allowed, "{request:#x}");
        }
    }
}

#[test]
fn without_nesting_a_user_namespace_is_refused_and_others_are_not() {
    let system = Role::System(InitKind::Systemd);
    let rules = rules_with(system, Walls { nesting: false, ..Walls::default() });
    let both = [(LinuxSeccompAction::ScmpActAllow, true), (LinuxSeccompAction::ScmpActErrno, true)];
    assert_eq!(rules["clone"], both);
    assert_eq!(rules["unshare"], both);
    assert!(!rules.contains_key("clone3"));
    assert!(rules_with(system, Walls::default()).contains_key("clone3"));
}

#[test]
fn no_call_has_two_opinions() {
    for role in [Role::Application, Role::System(InitKind::Systemd)] {
        for (name, rules) in rules(role) {
            assert!(rules.len() == 1 || rules.iter().all(|(_, args)| *args), "{name}");
        }
    }
}
