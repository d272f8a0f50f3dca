//! What `ps` shows: `couloir: master process …`, `couloir: worker process`.
//!
//! The kernel shows the memory in which a program's arguments were given; the environment stands behind it. The
//! environment is moved elsewhere, and then both may be written over.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The memory that a title is written to; none where the kernel does not tell.
pub(super) struct Title {
    /// Address and length of the arguments, and the length with the environment behind them.
    place: Option<(usize, usize, usize)>,
    /// How titles begin: `nginx` if that is the program's name, so that scripts find what they look for.
    program: String,
}

impl Title {
    /// Makes room. To be called while there is one thread, and before anybody keeps a pointer into the environment.
    pub fn new(program: &str) -> Title {
        let place = place();
        if place.is_some() {
            move_environment();
        }
        Title {
            place,
            program: program.to_owned(),
        }
    }

    /// How titles begin.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Shows `program: what`.
    pub fn set(&self, what: &OsStr) {
        let Some((start, arguments, all)) = self.place else {
            return;
        };
        let mut text = format!("{}: ", self.program).into_bytes();
        text.extend_from_slice(what.as_bytes());
        text.truncate(all.saturating_sub(1));
        // SAFETY: the kernel told where the arguments and the environment are, they are writable and ours until the
        // end of the process, nobody reads them any more (arguments were copied, the environment has been moved),
        // and the length was cut to theirs
        #[allow(unsafe_code)]
        unsafe {
            let at = std::ptr::with_exposed_provenance_mut::<u8>(start);
            std::ptr::write_bytes(at, 0, all);
            std::ptr::copy_nonoverlapping(text.as_ptr(), at, text.len());
            // an end of arguments that is no zero tells the kernel to read on to the next one
            if text.len() >= arguments {
                debug_assert!(*at.add(arguments - 1) != 0);
            }
        }
    }
}

/// `nginx` for a program of that name, otherwise `couloir`.
pub(super) fn program_name() -> &'static str {
    let first = std::env::args_os().next().unwrap_or_default();
    match Path::new(&first).file_name() {
        Some(name) if name == "nginx" => "nginx",
        _ => "couloir",
    }
}

/// The master's title: the command line behind it, as nginx has it.
pub(super) fn of_master(arguments: &[OsString]) -> OsString {
    let mut text = b"master process".to_vec();
    for argument in arguments {
        text.push(b' ');
        text.extend_from_slice(argument.as_bytes());
    }
    OsString::from_vec(text)
}

/// Start of the arguments, their length, and the length up to the end of the environment if that follows.
fn place() -> Option<(usize, usize, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    // proc(5): fields 48 to 51; the first behind the name is number 3
    let mut addresses = fields.split_whitespace().skip(48 - 3);
    let mut next = || addresses.next()?.parse::<usize>().ok();
    let (start, end, env_start, env_end) = (next()?, next()?, next()?, next()?);
    let arguments = end.checked_sub(start).filter(|n| *n > 0)?;
    let all = match end == env_start {
        true => env_end.checked_sub(start)?,
        false => arguments,
    };
    Some((start, arguments, all))
}

/// Gives every variable memory of its own.
fn move_environment() {
    let all: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    // SAFETY: there is one thread, and no pointer into the old environment is kept
    #[allow(unsafe_code)]
    unsafe {
        libc::clearenv();
        for (name, value) in all {
            let (Ok(name), Ok(value)) = (
                CString::new(name.into_vec()),
                CString::new(value.into_vec()),
            ) else {
                continue;
            };
            libc::setenv(name.as_ptr(), value.as_ptr(), 1);
        }
    }
}
