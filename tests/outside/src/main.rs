//! Modules of an outsider, one for each kind of hook, and a program with them.

mod access;
mod audit;
mod balance;
mod body;
mod content;
mod head;
mod panics;
mod request_body;
mod ticks;
mod visits;

use std::process::ExitCode;

fn main() -> ExitCode {
    couloir::main_with(|modules| {
        modules
            .add::<access::ApiKey>()
            .add::<audit::Audit>()
            .add::<balance::LastFirst>()
            .add::<body::Stamp>()
            .add::<content::Greet>()
            .add::<head::Mark>()
            .add::<panics::Panics>()
            .add::<request_body::MaskDigits>()
            .add::<ticks::Ticks>()
            .add::<visits::Visits>()
    })
}
