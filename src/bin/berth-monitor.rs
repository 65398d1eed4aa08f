//! `berth-monitor`: the small process that stays beside every instance.

fn main() -> std::process::ExitCode {
    berth::monitor::program::main(std::env::args_os())
}
