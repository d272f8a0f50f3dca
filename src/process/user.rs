//! Whose the process is: `user`, limits, the environment.
//!
//! Without a master there is nobody left who is root when a reload must bind a low port or read a key of mode 0600.
//! So the user is changed with root kept as the saved id, and one thread takes root back for as long as a reload
//! lasts. It is the system call that does so, not the C library, which would give root to every thread.

use std::ffi::{CStr, CString};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Group, Uid, User};

use crate::log::{ErrorLog, Level, Record};
use crate::module::MainConf;

/// The user when the configuration names none, as nginx is built on Debian.
const USER: &str = "nobody";
/// Its group.
const GROUP: &str = "nogroup";

/// Who serves; only known to a process that was started by root.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    name: CString,
    uid: Uid,
    gid: Gid,
}

impl Identity {
    /// The user and group of `user`; none if the process is not root's and so cannot change.
    ///
    /// # Errors
    /// `getpwnam("name") failed`, `getgrnam("name") failed`.
    pub fn of(main: &MainConf) -> Result<Option<Identity>, String> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(None);
        }
        let (user, group) = match &main.user {
            Some((user, group)) => (user.as_str(), group.as_deref().unwrap_or(user)),
            None => (USER, GROUP),
        };
        let unknown_user = || format!("getpwnam(\"{user}\") failed");
        let found = User::from_name(user)
            .ok()
            .flatten()
            .ok_or_else(unknown_user)?;
        let gid = Group::from_name(group).ok().flatten().map(|g| g.gid);
        let gid = gid.ok_or_else(|| format!("getgrnam(\"{group}\") failed"))?;
        let name = CString::new(user).map_err(|_| unknown_user())?;
        Ok(Some(Identity {
            name,
            uid: found.uid,
            gid,
        }))
    }

    /// The user's id.
    pub fn uid(&self) -> Uid {
        self.uid
    }

    /// Becomes that user, in every thread; root stays the saved id.
    ///
    /// # Errors
    /// The call that failed; going on as root would be worse than not to serve.
    pub fn assume(&self) -> Result<(), (String, Errno)> {
        let (uid, gid) = (self.uid, self.gid);
        let keep = Gid::from_raw(0);
        nix::unistd::initgroups(&self.name, gid).map_err(|e| {
            (
                format!(
                    "initgroups({}, {gid}) failed",
                    CStr::to_string_lossy(&self.name)
                ),
                e,
            )
        })?;
        nix::unistd::setresgid(gid, gid, keep).map_err(|e| (format!("setgid({gid}) failed"), e))?;
        nix::unistd::setresuid(uid, uid, Uid::from_raw(0))
            .map_err(|e| (format!("setuid({uid}) failed"), e))?;
        // changing the user switches core dumps and /proc/self off
        let _ = nix::sys::prctl::set_dumpable(true);
        Ok(())
    }
}

/// The calling thread is root while this lives, if the process was started by root.
pub(super) struct Root {
    back: Option<Uid>,
}

impl Root {
    /// Takes root back for the calling thread alone, where it is not root at the time.
    pub fn take(identity: Option<&Identity>) -> Root {
        let lacks = !nix::unistd::geteuid().is_root();
        let back = identity
            .map(|i| i.uid)
            .filter(|_| lacks && set_thread_euid(Uid::from_raw(0)));
        Root { back }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Some(uid) = self.back
            && !set_thread_euid(uid)
        {
            // a thread that cannot give root away must not go on
            std::process::abort();
        }
    }
}

fn set_thread_euid(uid: Uid) -> bool {
    const SAME: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: plain numbers go in; the C library's wrapper would change all threads
    #[allow(unsafe_code)]
    let done = unsafe { libc::syscall(libc::SYS_setresuid, SAME, uid.as_raw(), SAME) };
    done == 0
}

/// `worker_priority` and `worker_rlimit_nofile`; while still root, and before there are threads.
pub(super) fn set_limits(main: &MainConf, log: &ErrorLog) {
    if let Some(priority) = main.worker_priority.filter(|p| *p != 0) {
        // SAFETY: plain numbers go in
        #[allow(unsafe_code)]
        let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, priority) };
        if done != 0 {
            alert(
                log,
                &format!("setpriority({priority}) failed"),
                Errno::last(),
            );
        }
    }
    if let Some(files) = main.worker_rlimit_nofile
        && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, files, files)
    {
        alert(
            log,
            &format!("setrlimit(RLIMIT_NOFILE, {files}) failed"),
            errno,
        );
    }
}

/// `working_directory`.
///
/// # Errors
/// It has been logged.
pub(super) fn enter(folder: &Path, log: &ErrorLog) -> Result<(), ()> {
    nix::unistd::chdir(folder).map_err(|errno| {
        alert(
            log,
            &format!("chdir(\"{}\") failed", folder.display()),
            errno,
        )
    })
}

/// Leaves of the environment what `env` names, and `TZ`.
///
/// Must be called while there is one thread.
pub(super) fn set_environment(main: &MainConf) {
    let named = |name: &str| main.env.iter().find(|(n, _)| n == name);
    for (name, _) in std::env::vars_os() {
        if name != "TZ" && name.to_str().is_none_or(|n| named(n).is_none()) {
            // SAFETY: no other thread reads the environment yet
            #[allow(unsafe_code)]
            unsafe {
                std::env::remove_var(name);
            }
        }
    }
    for (name, value) in &main.env {
        if let Some(value) = value {
            // SAFETY: no other thread reads the environment yet
            #[allow(unsafe_code)]
            unsafe {
                std::env::set_var(name, value);
            }
        }
    }
}

fn alert(log: &ErrorLog, message: &str, errno: Errno) {
    log.record(&Record {
        errno: Some(errno.into()),
        ..Record::new(Level::Alert, format_args!("{message}"))
    });
}
