//! The `flotilla` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    flotilla::cli::main()
}
