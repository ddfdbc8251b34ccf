//! The `outgate` command.

mod heap;

use std::process::ExitCode;

fn main() -> ExitCode {
    heap::give_back();
    outgate::cli::main()
}
