//! The program: `berth`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The jail first: it must not start anything of the service.
    if let Some(code) = berth::image::jail::main(std::env::args_os().skip(1)) {
        return code;
    }
    ExitCode::SUCCESS
}
