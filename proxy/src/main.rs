//! The `outgate` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    outgate::cli::main()
}
