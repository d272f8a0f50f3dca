//! Whose a worker is: `user`, limits, the environment, and rights given away for good.

use std::ffi::{CStr, CString, OsString};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Group, Uid, User};

use crate::contract::{MainConf, Site};
use crate::log::{ErrorLog, Level, Record};

/// The user when the configuration names none, as nginx is built on Debian.
const USER: &str = "nobody";
/// Its group.
const GROUP: &str = "nogroup";

/// Who serves; only known to a process that was started by root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The user's name, by which further groups are found.
    pub name: CString,
    /// The user.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
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

    /// Becomes that user, in every thread and without a way back.
    ///
    /// # Errors
    /// The call that failed; going on as root would be worse than not to serve.
    fn assume(&self) -> Result<(), (String, Errno)> {
        let (uid, gid) = (self.uid, self.gid);
        let name = CStr::to_string_lossy(&self.name);
        nix::unistd::setgid(gid).map_err(|e| (format!("setgid({gid}) failed"), e))?;
        nix::unistd::initgroups(&self.name, gid)
            .map_err(|e| (format!("initgroups({name}, {gid}) failed"), e))?;
        nix::unistd::setuid(uid).map_err(|e| (format!("setuid({uid}) failed"), e))
    }
}

/// What a worker is given and what it gives away, before it reads a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    /// Who it becomes.
    pub identity: Option<Identity>,
    /// `worker_priority`.
    pub priority: Option<i32>,
    /// `worker_rlimit_nofile`.
    pub files: Option<u64>,
    /// `worker_rlimit_core`, bytes.
    pub core: Option<u64>,
    /// `working_directory`.
    pub folder: Option<PathBuf>,
    /// Keeps CAP_NET_RAW, which connections from other hosts' addresses take (`proxy_bind … transparent`).
    pub net_raw: bool,
}

impl Rights {
    /// What a configuration says of them.
    pub fn of(site: &Site, identity: Option<Identity>) -> Rights {
        let main = &site.main;
        Rights {
            identity,
            priority: main.worker_priority.filter(|p| *p != 0),
            files: main.worker_rlimit_nofile,
            core: main.worker_rlimit_core,
            folder: main.working_directory.clone(),
            net_raw: site.binds_foreign(),
        }
    }

    /// Sets the limits, becomes the user and drops all rights above his; while there is one thread.
    ///
    /// # Errors
    /// What makes serving impossible has been logged.
    pub fn apply(&self, log: &ErrorLog) -> Result<(), ()> {
        self.set_limits(log);
        let emerg = |(message, errno): (String, Errno)| {
            log.record(&Record {
                errno: Some(errno.into()),
                ..Record::new(Level::Emerg, format_args!("{message}"))
            });
        };
        if let Some(identity) = &self.identity {
            if self.net_raw
                && let Err(errno) = nix::sys::prctl::set_keepcaps(true)
            {
                alert(log, "prctl(PR_SET_KEEPCAPS) failed", errno);
            }
            identity.assume().map_err(emerg)?;
        }
        let kept = if self.net_raw { CAP_NET_RAW } else { 0 };
        if !nix::unistd::geteuid().is_root()
            && let Err(errno) = drop_capabilities(kept)
        {
            alert(log, "capset() failed", errno);
        }
        if let Err(errno) = nix::sys::prctl::set_no_new_privs() {
            alert(log, "prctl(PR_SET_NO_NEW_PRIVS) failed", errno);
        }
        // changing the user switches core dumps and /proc/self off
        if let Err(errno) = nix::sys::prctl::set_dumpable(true) {
            alert(log, "prctl(PR_SET_DUMPABLE) failed", errno);
        }
        match &self.folder {
            Some(folder) => enter(folder, log),
            None => Ok(()),
        }
    }

    fn set_limits(&self, log: &ErrorLog) {
        if let Some(priority) = self.priority {
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
        let limits = [
            ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE, self.files),
            ("RLIMIT_CORE", Resource::RLIMIT_CORE, self.core),
        ];
        for (name, resource, limit) in limits {
            if let Some(limit) = limit
                && let Err(errno) = setrlimit(resource, limit, limit)
            {
                alert(log, &format!("setrlimit({name}, {limit}) failed"), errno);
            }
        }
    }
}

/// The bit of the capability.
const CAP_NET_RAW: u32 = 1 << 13;

/// Empties the sets of capabilities but for `kept`, those that a service manager gave included.
fn drop_capabilities(kept: u32) -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3: 64 bits in two words
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let none = Sets {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    };
    let low = Sets {
        effective: kept,
        permitted: kept,
        ..none
    };
    let sets = [low, none];
    // SAFETY: both live through the call and are laid out as capset(2) says; the prctl takes plain numbers
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        );
        libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr())
    };
    Errno::result(done).map(drop)
}

/// `working_directory`.
fn enter(folder: &Path, log: &ErrorLog) -> Result<(), ()> {
    nix::unistd::chdir(folder).map_err(|errno| {
        alert(
            log,
            &format!("chdir(\"{}\") failed", folder.display()),
            errno,
        )
    })
}

/// What `env` leaves of the environment, and `TZ`; libraries find what they were told as well.
pub(super) fn environment(main: &MainConf) -> Vec<(OsString, OsString)> {
    const LIBRARIES: [&str; 3] = ["OPENSSL_", "SSL_CERT_", "LD_LIBRARY_PATH"];
    let set = |name: &str| main.env.iter().any(|(n, v)| n == name && v.is_some());
    let kept = |name: &str| {
        name == "TZ"
            || main.env.iter().any(|(n, _)| n == name)
            || LIBRARIES.iter().any(|l| name.starts_with(l))
    };
    let mut all: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(name, _)| name.to_str().is_some_and(|n| kept(n) && !set(n)))
        .collect();
    for (name, value) in &main.env {
        if let Some(value) = value {
            all.push((name.into(), value.into()));
        }
    }
    all
}

/// Leaves of this process's own environment what [`environment`] says.
///
/// Must be called while there is one thread.
pub(super) fn set_environment(main: &MainConf) {
    let wanted = environment(main);
    for (name, _) in std::env::vars_os() {
        if !wanted.iter().any(|(n, _)| *n == name) {
            // SAFETY: no other thread reads the environment yet
            #[allow(unsafe_code)]
            unsafe {
                std::env::remove_var(name);
            }
        }
    }
    for (name, value) in wanted {
        // SAFETY: no other thread reads the environment yet
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(name, value);
        }
    }
}

fn alert(log: &ErrorLog, message: &str, errno: Errno) {
    log.record(&Record {
        errno: Some(errno.into()),
        ..Record::new(Level::Alert, format_args!("{message}"))
    });
}
